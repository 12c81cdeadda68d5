"""PIM co-design (arXiv 2411.07569): models and processing-in-memory hardware searched together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recloom import hookimpl

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

    from recloom.catalog import Catalog


@hookimpl
def register(catalog: Catalog) -> None:
    """Register the cost model, the space, the model on crossbars, the experiment and the benchmark."""
    costs = catalog.cost_models
    costs.add("PIMCost", "recloom_pim.cost:PIMCost", summary="energy, latency, area on crossbars")
    costs.add("isaac", "recloom_pim.cost:PIMCost", summary="short for PIMCost: ISAAC's crossbars, 8 bits")
    catalog.search_spaces.add("PIMSpace", "recloom_pim.space:PIMSpace", summary="any space x crossbars x bits")
    catalog.search_methods.add(
        "NSGA2FromModel", "recloom_pim.method:NSGA2FromModel", summary="NSGA-II from a known model on random crossbars"
    )
    catalog.callbacks.add("PIMNoise", "recloom_pim.model:PIMNoise", summary="the trained model's layers on crossbars")
    catalog.models.add("OnCrossbars", "recloom_pim.model:OnCrossbars", summary="any model, quantised, with noise")
    catalog.experiments.add("pim", "recloom_pim.experiments:PIMExperiment", summary="co-search beside naive mapping")
    catalog.benchmarks.add("pim", "recloom_pim.bench.pricing:main", summary="configurations priced a second")


@hookimpl
def configure_module(module: LightningModule) -> None:
    """Put the linear layers of a module on crossbars, if it says so: by OnCrossbars, or the callback PIMNoise."""
    board = getattr(module, "pim", None)
    if board is not None:
        from recloom_pim.layers import place

        place(module, board)


@hookimpl
def summarize(module: LightningModule) -> list[tuple[str, str]]:
    """Return which layers are on crossbars, for reports."""
    board = getattr(module, "pim", None)
    return [] if board is None else board.rows()  # type: ignore[no-any-return]
