"""Errors that say what happened, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RecloomError(ValueError):
    """A user's mistake: printed as one cause and one hint, exit code 2, no traceback unless asked.

    Args:
        message: What is wrong, with the file, line and field where there is one.
        hint: What to do about it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message if not hint else f"{message}\n  {hint}")
        self.message = message
        self.hint = hint


class OptionError(RecloomError):
    """A value or a name of an option that does not fit.

    Args:
        message: What is wrong.
        hint: What to do about it.
        key: The option, dotted.
    """

    def __init__(self, message: str, hint: str = "", key: str = "") -> None:
        super().__init__(message, hint)
        self.key = key


class UnknownNameError(OptionError):
    """A name that no registry, option or column has; suggests the nearest ones."""


class ComponentImportError(RecloomError):
    """A registered component whose module cannot be imported; says which extra to install."""


class PluginError(RecloomError):
    """A plugin's hook raised something; says which plugin and which hook."""


class DataError(RecloomError):
    """Input that cannot be used: malformed raw files, corrupt shards, ids outside their table."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a hint naming the known names nearest to `name`, or listing them when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.55)
    lowered = {n.lower(): n for n in names}
    if not near and name.lower() in lowered:
        near = [lowered[name.lower()]]
    if near:
        return "Did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "Known: " + (", ".join(names) if names else "none") + "."


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Return the error for an unknown `name` of a `kind`."""
    return UnknownNameError(f"there is no {kind} named {name!r}", suggest(name, known))
