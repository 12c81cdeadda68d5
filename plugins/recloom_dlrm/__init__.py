"""DLRM (Naumov et al. 2019, arXiv 1906.00091): deep learning recommendation model and its hybrid parallelism."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recloom import hookimpl

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

    from recloom.catalog import Catalog


@hookimpl
def register(catalog: Catalog) -> None:
    """Register the model, its interactions, embeddings, strategy, benchmark and experiment."""
    catalog.models.add("DLRM", "recloom_dlrm.model:DLRM", summary="the paper's model")
    interactions = catalog.interactions
    interactions.add("DotInteraction", "recloom_dlrm.interactions:DotInteraction", summary="all pairs of vectors")
    interactions.add("ConcatInteraction", "recloom_dlrm.interactions:ConcatInteraction", summary="side by side")
    interactions.add("FMInteraction", "recloom_dlrm.interactions:FMInteraction", summary="bi-interaction pooling")
    catalog.embeddings.add(
        "ShardedEmbeddingBag", "recloom_dlrm.sharding:ShardedEmbeddingBag", summary="tables spread over ranks"
    )
    for name in ("hybrid", "HybridParallelStrategy"):
        catalog.strategies.add(
            name, "recloom_dlrm.strategy:HybridParallelStrategy", summary="tables sharded, dense layers replicated"
        )


@hookimpl
def configure_module(module: LightningModule) -> None:
    """Take memory for sharded tables, now that the number of ranks is known."""
    from recloom_dlrm.sharding import place_tables

    place_tables(module)
