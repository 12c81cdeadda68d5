"""The catalog: which components exist, by kind and name, without importing any of them.

Plugins add import paths as strings; a class is imported when it is first asked for. That keeps discovery free of
torch and lets a component with a missing optional dependency be listed, with the reason, instead of breaking the rest.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from recloom.errors import ComponentImportError, RecloomError, unknown

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One registered component.

    Args:
        kind: Singular name of its registry ("model", "interaction", ...).
        name: The short name that configs use.
        path: Import path, "package.module:Attribute".
        plugin: The plugin that registered it.
        summary: One line for `recloom components`.
        extra: The optional dependency group that its module needs, if any.
        distribution: The installed package that the plugin, and its extras, are of.
    """

    kind: str
    name: str
    path: str
    plugin: str
    summary: str = ""
    extra: str = ""
    distribution: str = "recloom"

    def load(self) -> Any:
        """Import and return the component.

        Raises:
            ComponentImportError: Its module, or something that it imports, is missing or broken.
        """
        module, _, attribute = self.path.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, OSError, AttributeError) as error:
            wanted = f"{self.distribution}[{self.extra}]"
            hint = f"Try: pip install {wanted!r}" if self.extra else f"It is registered as {self.path!r}."
            raise ComponentImportError(
                f"{self.kind} {self.name!r} (plugin {self.plugin!r}) cannot be imported: {error}", hint
            ) from error


class Registry(Generic[T]):
    """All components of one kind, by name.

    Args:
        kind: Singular name of the kind, as error messages use it.
        plugin: Owner recorded with each added entry.
        distribution: The installed package that the owner is of.
    """

    def __init__(self, kind: str, plugin: str = "recloom", distribution: str = "recloom") -> None:
        self.kind = kind
        self.plugin = plugin
        self.distribution = distribution
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, path: str, *, summary: str = "", extra: str = "") -> None:
        """Register the component at import path `path` ("package.module:Attribute") under `name`."""
        if ":" not in path:
            raise RecloomError(f"{self.kind} {name!r}: {path!r} is no import path", "Write 'package.module:Attribute'.")
        self._insert(Entry(self.kind, name, path, self.plugin, summary, extra, self.distribution))

    def _insert(self, entry: Entry) -> None:
        if other := self._entries.get(entry.name):
            raise RecloomError(
                f"{self.kind} {entry.name!r} is registered by plugin {other.plugin!r} and by plugin {entry.plugin!r}",
                "Rename one, or leave a plugin out with RECLOOM_DISABLE_PLUGINS.",
            )
        self._entries[entry.name] = entry

    def get(self, name: str) -> Entry:
        """Return the entry named `name`, or raise UnknownNameError with the nearest names."""
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
        return self._entries[name]

    def load(self, name: str) -> type[T]:
        """Import and return the component named `name`."""
        return self.get(name).load()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(sorted(self._entries.values(), key=lambda entry: entry.name))

    def __len__(self) -> int:
        return len(self._entries)


KINDS = {
    "models": "model",
    "datamodules": "datamodule",
    "embeddings": "embedding",
    "interactions": "interaction",
    "sequence_encoders": "sequence encoder",
    "strategies": "strategy",
    "callbacks": "callback",
    "sync_algorithms": "sync algorithm",
    "search_spaces": "search space",
    "supernets": "supernet",
    "search_methods": "search method",
    "blocks": "block",
    "evaluators": "evaluator",
    "cost_models": "cost model",
    "indexes": "index",
    "kernels": "kernel",
    "formats": "raw format",
    "benchmarks": "benchmark",
    "experiments": "experiment",
    "commands": "command",
}


class Catalog:
    """Every registry, as attributes: `catalog.models`, `catalog.interactions`, ... (the keys of `KINDS`)."""

    models: Registry[Any]
    datamodules: Registry[Any]
    embeddings: Registry[Any]
    interactions: Registry[Any]
    sequence_encoders: Registry[Any]
    strategies: Registry[Any]
    callbacks: Registry[Any]
    sync_algorithms: Registry[Any]
    search_spaces: Registry[Any]
    supernets: Registry[Any]
    search_methods: Registry[Any]
    blocks: Registry[Any]
    evaluators: Registry[Any]
    cost_models: Registry[Any]
    indexes: Registry[Any]
    kernels: Registry[Any]
    formats: Registry[Any]
    benchmarks: Registry[Any]
    experiments: Registry[Any]
    commands: Registry[Any]

    def __init__(self, plugin: str = "recloom", distribution: str = "recloom") -> None:
        self.plugin = plugin
        for attribute, kind in KINDS.items():
            setattr(self, attribute, Registry(kind, plugin, distribution))

    def registries(self) -> dict[str, Registry[Any]]:
        """Return the registries by attribute name."""
        return {attribute: getattr(self, attribute) for attribute in KINDS}

    def entries(self) -> list[Entry]:
        """Return every entry of every kind."""
        return [entry for registry in self.registries().values() for entry in registry]

    def merge(self, other: Catalog) -> None:
        """Take over all entries of `other`, or none: a clash of names leaves this catalog unchanged."""
        for attribute, registry in other.registries().items():
            mine: Registry[Any] = getattr(self, attribute)
            for entry in registry:
                if entry.name in mine:
                    mine._insert(entry)  # raises, naming both owners
        for attribute, registry in other.registries().items():
            for entry in registry:
                getattr(self, attribute)._insert(entry)
