"""Divergences, kernels, PSD repairs and engines by name, with their options: "renyi:0.8", "polynomial:3:1", "clip"."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

from recloom.errors import RecloomError, unknown
from recloom.plugins import catalog

T = TypeVar("T")

_ALIASES = {
    "js": "JensenShannon",
    "bc": "Bhattacharyya",
    "rbf": "GaussianKernel",
    "sw": "SlicedWasserstein",
    "poly": "PolynomialKernel",
    "kdtree": "TreeKnn",
}


def parse(text: str | T, base: Callable[..., T]) -> T:
    """Return the component that `text` names, "NAME" or "NAME:OPTION:OPTION"; a component is returned as it is.

    Args:
        text: A name as it is registered under `catalog.kernels`, in any case, with or without the ending Kernel, PSD
            or Knn; the options are constructor arguments in order. Or a component.
        base: What it is to be: Divergence, Kernel, PSDRepair or KnnEngine.

    Raises:
        RecloomError: There is none of that name and kind, or it does not take those options.
    """
    if not isinstance(text, str):
        return text
    name, *options = text.split(":")
    component = _find(name, base)
    try:
        return component(*[_value(option) for option in options])
    except TypeError as error:
        raise RecloomError(f"{text!r}: {error}", "Options follow the name: renyi:0.8, polynomial:3:1.") from error


def names(base: type) -> list[str]:
    """Return the short names of the registered components of a kind; those that cannot be imported are left out."""
    found = []
    for entry in catalog().kernels:
        with contextlib.suppress(RecloomError):  # one plugin's broken component is no reason to refuse the others'
            if _is(entry.load(), base):
                found.append(_short(entry.name))
    return found


def _find(name: str, base: Any) -> Any:
    wanted = name.lower().replace("_", "").replace("-", "")
    for entry in catalog().kernels:
        if wanted not in (entry.name.lower(), _short(entry.name)) and _ALIASES.get(wanted) != entry.name:
            continue
        component = entry.load()
        if _is(component, base):
            return component
    raise unknown(base.__name__, name, names(base))


def _is(component: Any, base: type) -> bool:
    return isinstance(component, type) and issubclass(component, base)


def _short(name: str) -> str:
    for ending in ("Kernel", "PSD", "Knn"):
        name = name.removesuffix(ending)
    return name.lower()


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)
