"""HSNN (arXiv 2408.06653): MoNN, a learned hierarchical index with any scorer, and its search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recloom import hookimpl

if TYPE_CHECKING:
    from recloom.catalog import Catalog


@hookimpl
def register(catalog: Catalog) -> None:
    """Register the models, the index, the experiment and the benchmark."""
    catalog.models.add("HSNN", "recloom_hsnn.model:HSNN", summary="MoNN with nodes learned jointly")
    catalog.models.add("MoNN", "recloom_hsnn.monn:MoNN", summary="user, item and interaction towers, over arch")
    catalog.models.add("TwoTower", "recloom_hsnn.two_tower:TwoTower", summary="two towers, inner product")
    catalog.indexes.add("HSNN", "recloom_hsnn.retrieval:HSNNIndex", summary="the model chooses nodes, then items")
    catalog.callbacks.add("CollapseMonitor", "recloom_hsnn.callbacks:CollapseMonitor", summary="how nodes are used")
    catalog.callbacks.add("IndexRefresh", "recloom_hsnn.callbacks:IndexRefresh", summary="an index in step")
    catalog.experiments.add("hsnn", "recloom_hsnn.experiments:HSNNExperiment", summary="recall kept, against cost")
    catalog.benchmarks.add("hsnn", "recloom_hsnn.bench.search:main", summary="CPU time of a query, by index")
