"""Every hook that a plugin can implement. Only `register` is needed; all others are optional.

A plugin marks its functions with `recloom.hookimpl`. Hooks run in the order in which plugins are named alphabetically.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule
    from lightning.pytorch.strategies import Strategy

    from recloom.catalog import Catalog

hookspec = pluggy.HookspecMarker("recloom")
hookimpl = pluggy.HookimplMarker("recloom")


@hookspec
def register(catalog: Catalog) -> None:
    """Add components to `catalog` as import paths: `catalog.models.add("DLRM", "recloom_dlrm.model:DLRM")`.

    Runs at discovery, before torch is imported: import nothing heavy here.
    """


@hookspec
def configure_module(module: LightningModule) -> None:
    """Wrap or replace layers of any model, in `LightningModule.configure_model`, before optimizers are made.

    For quantisation noise, counting, sharding: whatever a plugin adds to models that it did not write. It may be
    called more than once for one module (fit, then test): do nothing the second time.
    """


@hookspec
def configure_strategy(strategy: Strategy, module: LightningModule) -> None:
    """Adapt `strategy` to `module` when the trainer is set up, before parameters move or are wrapped.

    `module.configure_model` has run. For a strategy that shards or synchronises only some parameters.
    """


@hookspec
def on_parameters_updated(module: LightningModule, step: int) -> None:
    """Act after each optimizer step; `step` counts them from 1. On the hot path: keep it to microseconds."""


@hookspec
def summarize(module: LightningModule) -> list[tuple[str, str]]:  # type: ignore[empty-body]
    """Return (name, value) rows about `module` for reports: table sizes, cost, sparsity."""
