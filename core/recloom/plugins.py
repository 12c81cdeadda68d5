"""Discovery of plugins by entry points: each in its own try, so that a broken one is reported and never fatal."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from recloom import builtin, hookspecs
from recloom.catalog import Catalog

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
        # pluggy calls the latest registered first: load in reverse, so that hooks run in alphabetical order
        for point in sorted(found, key=lambda p: p.name, reverse=True):
            self.plugins.append(self._load(point, disabled))
        self.plugins.sort(key=lambda info: info.name)

    @property
    def hook(self) -> Any:
        """The hook caller: `host.hook.summarize(module=module)`."""
        return self.manager.hook

    def _load(self, point: EntryPoint, disabled: set[str]) -> PluginInfo:
        origin = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"
        if point.name in disabled:
            return PluginInfo(point.name, origin, error="left out by RECLOOM_DISABLE_PLUGINS")
        plugin: Any = None
        try:
            plugin = point.load()
            scratch = Catalog(point.name)
            self.manager.register(plugin, name=point.name)
            if not hasattr(plugin, "register"):
                raise AttributeError("it has no register(catalog) function marked with recloom.hookimpl")
            plugin.register(scratch)
            self.catalog.merge(scratch)
        # A plugin is somebody else's code: whatever it raises (even SystemExit) is its error, not ours.
        except (Exception, SystemExit) as error:
            if plugin is not None and self.manager.is_registered(plugin):
                self.manager.unregister(plugin)
            return PluginInfo(
                point.name, origin, error=f"{type(error).__name__}: {error}", details=traceback.format_exc()
            )
        return PluginInfo(point.name, origin, summary=(plugin.__doc__ or "").strip().split("\n")[0])


@functools.cache
def host() -> PluginHost:
    """Return this process's plugin host; discovery runs once, at the first call."""
    return PluginHost()


def catalog() -> Catalog:
    """Return the catalog that core and every plugin filled."""
    return host().catalog
