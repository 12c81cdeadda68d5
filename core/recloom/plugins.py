"""Discovery of plugins by entry points: each in its own try, so that a broken one is reported and never fatal."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from recloom import builtin, hookspecs
from recloom.catalog import Catalog
from recloom.errors import PluginError, RecloomError

GROUP = "recloom.plugins"


@dataclass(frozen=True)
class PluginInfo:
    """What discovery found out about one plugin.

    Args:
        name: Its entry point's name.
        origin: The distribution and version that it came from.
        summary: First line of its docstring.
        error: Why it could not be loaded; empty when it is in use.
        details: The traceback behind `error`, for `recloom plugins --verbose`.
    """

    name: str
    origin: str
    summary: str = ""
    error: str = ""
    details: str = ""


class PluginHost:
    """The plugin manager with the catalog that plugins filled and the list of what was found."""

    def __init__(self, points: Iterable[EntryPoint] | None = None) -> None:
        self.manager = pluggy.PluginManager("recloom")
        self.manager.add_hookspecs(hookspecs)
        self.catalog = Catalog()
        self.plugins: list[PluginInfo] = []
        builtin.register(self.catalog)
        disabled = {name.strip() for name in os.environ.get("RECLOOM_DISABLE_PLUGINS", "").split(",")} - {""}
        found = entry_points(group=GROUP) if points is None else points
        # pluggy calls the latest registered first: import in reverse, so that hooks run in alphabetical order
        ordered = sorted(found, key=lambda point: point.name, reverse=True)
        loaded = [(point, *self._load(point, disabled)) for point in ordered]
        # recloom's own plugins name their components first: whoever clashes with them is the one left out
        for point, info, plugin in sorted(reversed(loaded), key=lambda item: not _ours(item[0])):
            self.plugins.append(info if plugin is None else self._fill(point, info, plugin))
        self.plugins.sort(key=lambda info: info.name)

    @property
    def hook(self) -> Any:
        """The hook caller: `host.hook.summarize(module=module)`."""
        return self.manager.hook

    def _load(self, point: EntryPoint, disabled: set[str]) -> tuple[PluginInfo, Any]:
        """Import a plugin and register its hooks; the plugin is None if that failed."""
        info = PluginInfo(point.name, f"{point.dist.name} {point.dist.version}" if point.dist else "unknown")
        if point.name in disabled:
            return replace(info, error="left out by RECLOOM_DISABLE_PLUGINS"), None
        try:
            plugin = point.load()
            self.manager.register(plugin, name=point.name)
            for caller in self.manager.get_hookcallers(plugin) or ():
                for implementation in caller.get_hookimpls():
                    if implementation.plugin is plugin:
                        told = _told(point.name, caller.name, implementation.function)
                        implementation.function = told  # type: ignore[misc]  # pluggy has no place for this
        # A plugin is somebody else's code: whatever it raises (even SystemExit) is its error, not ours.
        except (Exception, SystemExit) as error:
            return _failed(info, error), None
        return replace(info, summary=(plugin.__doc__ or "").strip().split("\n")[0]), plugin

    def _fill(self, point: EntryPoint, info: PluginInfo, plugin: Any) -> PluginInfo:
        """Let a plugin name its components, all or none."""
        scratch = Catalog(point.name, point.dist.name if point.dist else "recloom")
        try:
            if not hasattr(plugin, "register"):
                raise AttributeError("it has no register(catalog) function marked with recloom.hookimpl")
            plugin.register(scratch)
            self.catalog.merge(scratch)
        except (Exception, SystemExit) as error:
            self.manager.unregister(plugin)
            return _failed(info, error)
        return info


def _told(plugin: str, hook: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook's function whose errors name the plugin; a failed `summarize` is a row of the report."""

    @functools.wraps(function)
    def told(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except RecloomError:
            raise
        except (Exception, SystemExit) as error:  # as in discovery: a plugin ends no command of ours
            cause = f"{type(error).__name__}: {error}"
            if hook == "summarize":
                return [(f"plugin {plugin}", f"failed in summarize: {cause}")]
            raise PluginError(
                f"plugin {plugin!r} failed in {hook}: {cause}",
                f"RECLOOM_TRACEBACK=1 shows where; RECLOOM_DISABLE_PLUGINS={plugin} leaves it out.",
            ) from error

    return told


def _ours(point: EntryPoint) -> bool:
    return point.dist is not None and point.dist.name == "recloom"


def _failed(info: PluginInfo, error: BaseException) -> PluginInfo:
    return replace(info, error=f"{type(error).__name__}: {error}", details=traceback.format_exc())


@functools.cache
def host() -> PluginHost:
    """Return this process's plugin host; discovery runs once, at the first call."""
    return PluginHost()


def catalog() -> Catalog:
    """Return the catalog that core and every plugin filled."""
    return host().catalog
