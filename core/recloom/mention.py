"""Import on mention: short class names resolve only for imported classes, so what a command names is imported first."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from recloom.catalog import Entry
from recloom.errors import ComponentImportError, RecloomError, unknown
from recloom.plugins import catalog

_CLASS_KINDS = (
    *("models", "datamodules", "embeddings", "interactions", "sequence_encoders", "kernels", "callbacks"),
    *("sync_algorithms", "search_spaces", "supernets", "search_methods", "evaluators", "cost_models"),
)

MOST_VALUES = 1_000_000
"""Values in a config file, anchors written out; more are an attack or a mistake."""
PARTS = {
    "model": "models",
    "data": "datamodules",
    "space": "search_spaces",
    "method": "search_methods",
    "evaluator": "evaluators",
    "hardware": "cost_models",
}


def load_mentioned(argv: list[str]) -> None:
    """Import every registered component that `argv`, or a YAML file named in it, mentions; all of them for --help.

    Raises:
        ComponentImportError: A mentioned component cannot be imported.
        RecloomError: A config file cannot be read.
        UnknownNameError: A `class_path` without a dot that no registry has.
    """
    if any(argument in ("-h", "--help") or argument.endswith(".help") for argument in argv):
        for entry in _entries():
            _load_guarded(entry)
        return
    words: set[str] = set()
    for argument in argv:
        words.update(re.split(r"[=\s]", argument))
    for path in config_files(argv):
        document = read_yaml(path)
        words.update(strings(document))
        _check_class_paths(document, path)
    load_named(words)


def load_named(words: set[str]) -> None:
    """Import every registered component whose name is in `words`; ComponentImportError when one cannot be."""
    by_name: dict[str, list[Entry]] = {}
    for entry in _entries():
        by_name.setdefault(entry.name, []).append(entry)
    for word in words & by_name.keys():
        for entry in by_name[word]:
            component = entry.load()
            if entry.kind == "strategy":
                _register_strategy(entry, component)


def _entries() -> list[Entry]:
    return [e for kind in _CLASS_KINDS for e in getattr(catalog(), kind)] + list(catalog().strategies)


def long_names(argv: list[str]) -> list[str]:
    """Return `argv` with the registered names of parts as import paths: jsonargparse knows a class's own name alone."""
    found = []
    for place, argument in enumerate(argv):
        option, equals, value = argument.partition("=")
        before = argv[place - 1] if place else ""
        name, kind = (value, option[2:]) if equals else (argument, before[2:] if before.startswith("--") else "")
        registry = getattr(catalog(), PARTS.get(kind, ""), None)
        if registry is not None and name in registry:
            path = registry.get(name).path.replace(":", ".")
            argument = f"{option}={path}" if equals else path
        found.append(argument)
    return found


def config_files(argv: Sequence[str]) -> list[Path]:
    """Return the YAML files that `argv` names with --config, -c, or as the value of any option."""
    found = []
    for argument in argv:
        value = argument.partition("=")[2] if argument.startswith("-") else argument
        if value.endswith((".yaml", ".yml")):
            found.append(Path(value))
    return found


def read_yaml(path: Path) -> Any:
    """Return the parsed YAML file at `path`; RecloomError names the file, line and column of what is wrong."""
    try:
        found = yaml.safe_load(path.read_text())
        size = _expanded(found, {})
        if math.isinf(size):
            raise RecloomError(f"{path}: an anchor (&) stands for something that holds itself", "Write it out.")
        if size > MOST_VALUES:
            raise RecloomError(f"{path}: with its anchors (&) written out it has {size:,.0f} values", "Use fewer.")
        return found
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise RecloomError(
            f"{path}: there is no such config file", f"Beside it: {', '.join(near)}." if near else ""
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise RecloomError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None


def _expanded(value: Any, sizes: dict[int, float]) -> float:
    """Return how many values a parsed document has once its anchors are written out: infinite if it holds itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = math.inf  # until it is known: what meets itself inside has no end
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(_expanded(part, sizes) for part in parts)
    return sizes[id(value)]


def strings(value: Any) -> Iterator[str]:
    """Yield every string, and every key, in a parsed document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def _check_class_paths(value: Any, path: Path, where: str = "") -> None:
    """Refuse short names under model, data and a search's parts that no registry has; name the nearest of the kind."""
    if not isinstance(value, dict):
        return
    for part, kind in PARTS.items():
        section = value.get(part)
        name = section.get("class_path") if isinstance(section, dict) else section
        registry = getattr(catalog(), kind)
        if isinstance(name, str) and "." not in name and name not in registry:
            error = unknown(registry.kind, name, [entry.name for entry in registry])
            raise RecloomError(f"{path}: {part}: {error.message}", error.hint)


def _load_guarded(entry: Entry) -> None:
    """Load for --help: a component that cannot be imported is simply not offered there (`components` lists it)."""
    try:
        component = entry.load()
    except ComponentImportError:
        return
    if entry.kind == "strategy":
        _register_strategy(entry, component)


def _register_strategy(entry: Entry, component: Any) -> None:
    from lightning.pytorch.strategies import StrategyRegistry

    if entry.name not in StrategyRegistry:
        StrategyRegistry.register(entry.name, component, description=entry.summary)
