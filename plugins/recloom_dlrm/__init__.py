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
    models = catalog.models
    models.add("DLRM", "recloom_dlrm.model:DLRM", summary="the paper's model")
    models.add("LogisticRegression", "recloom_dlrm.baselines:LogisticRegression", summary="no interactions")
    models.add("FactorizationMachine", "recloom_dlrm.baselines:FactorizationMachine", summary="pairs (Rendle 2010)")
    interactions = catalog.interactions
    interactions.add("DotInteraction", "recloom_dlrm.interactions:DotInteraction", summary="all pairs of vectors")
    interactions.add("ConcatInteraction", "recloom_dlrm.interactions:ConcatInteraction", summary="side by side")
    interactions.add("FMInteraction", "recloom_dlrm.interactions:FMInteraction", summary="bi-interaction pooling")
    catalog.embeddings.add(
        "ShardedEmbeddingBag", "recloom_dlrm.sharding:ShardedEmbeddingBag", summary="tables spread over ranks"
    )
    catalog.embeddings.add(
        "TorchRecEmbeddingBag",
        "recloom_dlrm.torchrec_backend:TorchRecEmbeddingBag",
        summary="TorchRec's, on one rank or several",
        extra="torchrec",
    )
    for name, path, summary in (
        ("QREmbeddingBag", "compressed:QREmbeddingBag", "n rows from n/c + c: quotient-remainder trick"),
        ("HashedEmbeddingBag", "compressed:HashedEmbeddingBag", "tables of at most max_rows rows, ids modulo"),
        ("MixedDimEmbeddingBag", "mixed_dim:MixedDimEmbeddingBag", "large tables narrow, projected to one width"),
        ("WeightedPoolingEmbeddingBag", "weighted_pooling:WeightedPoolingEmbeddingBag", "a pooling weight a row"),
    ):
        catalog.embeddings.add(name, f"recloom_dlrm.{path}", summary=summary)
    catalog.commands.add(
        "import-weights", "recloom_dlrm.weights:main", summary="read DLRM weights of the reference or TorchRec"
    )
    catalog.experiments.add(
        "dlrm", "recloom_dlrm.experiments:DLRMExperiment", summary="DLRM beside DCN V2, FM, logistic regression"
    )
    catalog.benchmarks.add("dlrm", "recloom_dlrm.bench.training:main", summary="training speed beside its peers")
    for name in ("hybrid", "HybridParallelStrategy"):
        catalog.strategies.add(
            name, "recloom_dlrm.strategy:HybridParallelStrategy", summary="tables sharded, dense layers replicated"
        )


@hookimpl
def configure_module(module: LightningModule) -> None:
    """Take memory for sharded tables, now that the number of ranks is known."""
    from recloom_dlrm.sharding import place_tables

    place_tables(module)


@hookimpl
def summarize(module: LightningModule) -> list[tuple[str, str]]:
    """Return the sizes of the embedding tables, and what compression saves."""
    from recloom_dlrm.sizes import size_rows

    return size_rows(module)
