"""The kit that a plugin author tests with: `check_plugin("mine")`, small data, the command line in-process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from recloom.errors import ComponentImportError
from recloom.plugins import host
from recloom.testing.components import component_problems
from recloom.testing.declarations import class_problems, hook_problems, registration_problems
from recloom.testing.helpers import CliResult, run_cli, tiny_batch, tiny_schema

__all__ = ["CliResult", "check_plugin", "plugin_problems", "run_cli", "tiny_batch", "tiny_schema"]

Options = Mapping[str, Mapping[str, Any]]


def check_plugin(name: str, options: Options | None = None) -> None:
    """Check all that recloom expects of plugin `name`, and of each of its components.

    It is discovered; registering imports no torch; hooks exist; every registered path loads, or its extra is not
    installed; classes have the right base, no `**kwargs`, and documented parameters (they are `--help`);
    interactions give outputs as wide as they say, and gradients; so do sequence encoders, which mind their mask and
    export; embeddings meet their contract (shared tables, bags, one-hot, single rows, ids outside a table); models
    train a few steps on tiny data, with one-hot categories, with bags and with histories, and their checkpoint is
    read with weights_only; models that need no more than `forward` export.

    Args:
        name: The entry point's name.
        options: Constructor arguments by component name, for those that cannot be built with defaults.

    Raises:
        AssertionError: Something is amiss; a sentence for each thing.
    """
    problems = plugin_problems(name, options)
    assert not problems, f"plugin {name!r}:\n" + "\n".join(f"- {problem}" for problem in problems)


def plugin_problems(name: str, options: Options | None = None) -> list[str]:
    """Return what `check_plugin` finds amiss, a sentence each."""
    infos = {info.name: info for info in host().plugins}
    if name not in infos:
        known = ", ".join(infos) or "none"
        return [f"it is not installed: no entry point of that name in group recloom.plugins (installed: {known})"]
    if infos[name].error:
        return [f"it is not in use: {infos[name].error}"]
    return [*registration_problems(name), *hook_problems(name), *_entry_problems(name, options or {})]


def _entry_problems(name: str, options: Options) -> Iterator[str]:
    for entry in host().catalog.entries():
        if entry.plugin != name:
            continue
        try:
            component = entry.load()
        except ComponentImportError as error:
            if not entry.extra or not isinstance(error.__cause__, ImportError):
                yield str(error)
            continue
        found = list(class_problems(entry, component))
        yield from found
        if not found:
            yield from component_problems(entry, component, dict(options.get(entry.name, {})))
