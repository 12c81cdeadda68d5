"""EDGE (Chen et al. 2021, arXiv 2112.07768): dynamic graphs, learned in parallel; JODIE beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recloom import hookimpl

if TYPE_CHECKING:
    from recloom.catalog import Catalog


@hookimpl
def register(catalog: Catalog) -> None:
    """Register the models, the experiment and the benchmark."""
    models = catalog.models
    models.add("EDGE", "recloom_edge.model:EDGE", summary="dynamic embeddings; a few nodes decoupled")
    models.add("JODIE", "recloom_edge.jodie:JODIE", summary="two RNNs, a projection, t-batches (Kumar et al. 2019)")
