"""EDGE (Chen et al. 2021, arXiv 2112.07768): dynamic graphs, learned in parallel; JODIE and TGN beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recloom import hookimpl

if TYPE_CHECKING:
    from recloom.catalog import Catalog


@hookimpl
def register(catalog: Catalog) -> None:
    """Register the models, the callback, the experiment and the benchmark."""
    models = catalog.models
    models.add("EDGE", "recloom_edge.model:EDGE", summary="dynamic embeddings; a few nodes decoupled")
    models.add("JODIE", "recloom_edge.jodie:JODIE", summary="two RNNs, a projection, t-batches (Kumar et al. 2019)")
    catalog.benchmarks.add("edge", "recloom_edge.bench.speed:main", summary="EDGE's training speed beside JODIE's")
    models.add("TGN", "recloom_edge.tgn:TGN", summary="memory and attention (Rossi et al. 2020)", extra="edge")
    catalog.callbacks.add("ExportNodes", "recloom_edge.export:ExportNodes", summary="writes node embeddings to files")
    catalog.experiments.add("edge", "recloom_edge.experiments:EDGEExperiment", summary="steps and quality by share")
