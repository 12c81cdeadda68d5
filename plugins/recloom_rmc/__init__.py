"""RMC (Gupta et al. 2019, arXiv 1906.03109): production-scale recommendation workloads, and how they are served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recloom import hookimpl

if TYPE_CHECKING:
    from recloom.catalog import Catalog


@hookimpl
def register(catalog: Catalog) -> None:
    """Register the companions of RMC1-3; these are DLRM itself, by preset (`recloom_rmc.presets`)."""
    models = catalog.models
    models.add("NCF", "recloom_rmc.ncf:NCF", summary="neural collaborative filtering (He et al. 2017)")
    models.add("WideDeep", "recloom_rmc.wide_deep:WideDeep", summary="wide linear part, deep part (Cheng et al. 2016)")
    models.add(
        "MultiTaskWideDeep", "recloom_rmc.multitask:MultiTaskWideDeep", summary="a wide part and a tower for each label"
    )
    catalog.experiments.add(
        "rmc", "recloom_rmc.experiments:RMCExperiment", summary="what binds, and serving under load"
    )
    catalog.benchmarks.add("rmc", "recloom_rmc.bench.sweep:main", summary="operators, floors, locality of RMC1-3")
    catalog.datamodules.add(
        "SyntheticConversions", "recloom_rmc.conversions:SyntheticConversions", summary="clicks, and what follows them"
    )
