"""NASRec (Zhang et al. 2022, arXiv 2207.07187): a weight-sharing supernet searched for recommender models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recloom import hookimpl

if TYPE_CHECKING:
    from recloom.catalog import Catalog


@hookimpl
def register(catalog: Catalog) -> None:
    """Register the models, the space and the benchmark."""
    catalog.models.add("NASRecNet", "recloom_nasrec.model:NASRecNet", summary="a model of NASRec's space")
    catalog.search_spaces.add(
        "NASRecSpace", "recloom_nasrec.space:NASRecSpace", summary="operators, widths, wiring: small and full"
    )
    catalog.supernets.add("NASRecSupernet", "recloom_nasrec.supernet:NASRecSupernet", summary="weights of all of them")
    catalog.experiments.add(
        "nasrec", "recloom_nasrec.experiments:NASRecExperiment", summary="the supernet's search beside random search"
    )
    catalog.benchmarks.add(
        "nasrec", "recloom_nasrec.bench.supernet:main", summary="supernet training and ranking beside the reference"
    )
