"""DLRM (Naumov et al. 2019, arXiv 1906.00091): deep learning recommendation model and its hybrid parallelism."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recloom import hookimpl

if TYPE_CHECKING:
    from recloom.catalog import Catalog


@hookimpl
def register(catalog: Catalog) -> None:
    """Register the model, its interactions, embeddings, strategy, benchmark and experiment."""
    catalog.models.add("DLRM", "recloom_dlrm.model:DLRM", summary="the paper's model")
    interactions = catalog.interactions
    interactions.add("DotInteraction", "recloom_dlrm.interactions:DotInteraction", summary="all pairs of vectors")
    interactions.add("ConcatInteraction", "recloom_dlrm.interactions:ConcatInteraction", summary="side by side")
    interactions.add("FMInteraction", "recloom_dlrm.interactions:FMInteraction", summary="bi-interaction pooling")
