"""Checks of what a plugin declares: registration, hooks, base classes, constructors and their documentation."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import docstring_parser
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.strategies import Strategy

from recloom.catalog import Entry
from recloom.data.formats.base import RawFormat
from recloom.embedding import EmbeddingBagCollection
from recloom.errors import suggest
from recloom.experiment import Experiment
from recloom.model import Interaction
from recloom.plugins import host
from recloom.retrieval.index import RetrievalIndex
from recloom.search.block import Block
from recloom.search.evaluator import CostModel, Evaluator
from recloom.search.method import SearchMethod
from recloom.search.space import SearchSpace
from recloom.search.supernet import Supernet
from recloom.sequence import SequenceEncoder
from recloom.sync import SyncAlgorithm

BASES: dict[str, type] = {
    "model": LightningModule,
    "datamodule": LightningDataModule,
    "embedding": EmbeddingBagCollection,
    "interaction": Interaction,
    "sequence encoder": SequenceEncoder,
    "strategy": Strategy,
    "sync algorithm": SyncAlgorithm,
    "raw format": RawFormat,
    "callback": Callback,
    "search space": SearchSpace,
    "supernet": Supernet,
    "search method": SearchMethod,
    "evaluator": Evaluator,
    "cost model": CostModel,
    "block": Block,
    "index": RetrievalIndex,
    "experiment": Experiment,
}
CONFIGURED = (
    *("model", "datamodule", "embedding", "interaction", "sequence encoder", "strategy", "sync algorithm", "callback"),
    *("search space", "supernet", "search method", "evaluator", "cost model", "index", "kernel"),
)
"""Kinds whose constructor parameters are options of the command line."""

_PROBE = """
import sys
from recloom.plugins import host
host()
print(",".join(name for name in ("torch", "lightning", "matplotlib", "polars", "pyarrow") if name in sys.modules))
"""


def registration_problems(name: str) -> Iterator[str]:
    """Yield whether discovering the plugin, alone in a fresh process, imports something heavy."""
    others = ",".join(info.name for info in host().plugins if info.name != name)
    found = subprocess.run(
        [sys.executable, "-c", _PROBE],
        env={**os.environ, "RECLOOM_DISABLE_PLUGINS": others, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        yield f"discovery fails in a fresh process: {found.stderr.strip().splitlines()[-1]}"
    elif heavy := found.stdout.strip():
        yield f"importing and registering it imports {heavy}: keep its __init__ to strings and `recloom.hookimpl`"


def hook_problems(name: str) -> Iterator[str]:
    """Yield each function marked with hookimpl that implements no hook: it would never be called."""
    manager = host().manager
    known = [attribute for attribute in dir(manager.hook) if not attribute.startswith("_")]
    specified = [hook for hook in known if getattr(manager.hook, hook).has_spec()]
    for caller in manager.get_hookcallers(manager.get_plugin(name)) or []:
        if not caller.has_spec():
            yield f"there is no hook {caller.name!r}: {suggest(caller.name, specified)}"


def class_problems(entry: Entry, component: Any) -> Iterator[str]:
    """Yield what is wrong with the component's base, constructor and documentation."""
    label = f"{entry.kind} {entry.name!r}"
    if entry.kind in ("command", "benchmark"):
        if not callable(component) or len(inspect.signature(component).parameters) != 1:
            yield f"{label}: it is to be a function of one parameter, the list of arguments"
        return
    base = BASES.get(entry.kind)
    if base is not None and not (isinstance(component, type) and issubclass(component, base)):
        yield f"{label}: {entry.path!r} is no subclass of {base.__module__}.{base.__qualname__}"
        return
    if entry.kind == "experiment":
        missing = [name for name in ("paper", "summary", "scope") if not hasattr(component, name)]
        yield from (f"{label}: attribute {name!r} is not set" for name in missing)
    if entry.kind not in CONFIGURED or not isinstance(component, type):
        return
    abstract: frozenset[str] = getattr(component, "__abstractmethods__", frozenset())
    yield from (f"{label}: method {name!r} is not implemented" for name in sorted(abstract))
    if any(part.startswith("_") for part in component.__module__.split(".")):
        yield f"{label}: module {component.__module__!r} is private: configs cannot name its classes"
    yield from _constructor_problems(label, component)


def _constructor_problems(label: str, component: type) -> Iterator[str]:
    documented = _documented(component)
    for parameter in inspect.signature(component).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            yield f"{label}: its constructor takes {parameter}: name the options, so that a typo is found"
            continue
        if parameter.name not in documented:
            yield f"{label}: parameter {parameter.name!r} is not in the docstring's Args: it is the text of --help"
        if parameter.annotation is parameter.empty:
            yield f"{label}: parameter {parameter.name!r} has no type: the command line checks values by it"


def _documented(component: type) -> set[str]:
    """Return the parameters that the docstrings of the class and its bases document."""
    texts = [cls.__dict__.get("__doc__") for cls in component.__mro__]
    texts += [getattr(cls.__dict__.get("__init__"), "__doc__", None) for cls in component.__mro__]
    return {parameter.arg_name for text in texts if text for parameter in docstring_parser.parse(text).params}
