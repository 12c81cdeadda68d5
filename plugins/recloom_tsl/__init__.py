"""TSL / TBSM (Ishkhanov et al. 2020, arXiv 2008.11922): time-based sequence model, and encoders of histories."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recloom import hookimpl

if TYPE_CHECKING:
    from recloom.catalog import Catalog


@hookimpl
def register(catalog: Catalog) -> None:
    """Register the model, the encoders, the designed data, the benchmark and the experiment."""
    catalog.models.add("TBSM", "recloom_tsl.tbsm:TBSM", summary="one tower over all positions, TSL, final MLP")
    catalog.models.add("DesignedModel", "recloom_tsl.designed:DesignedModel", summary="attention over given vectors")
    catalog.datamodules.add(
        "DesignedSequences", "recloom_tsl.designed:DesignedSequences", summary="the paper's designed data set"
    )
    encoders = catalog.sequence_encoders
    encoders.add("TSL", "recloom_tsl.tsl:TSL", summary="time series layer: dot, ind, def")
    encoders.add("MeanPooling", "recloom_tsl.encoders.mean:MeanPooling", summary="the mean of the steps")
    encoders.add("DIN", "recloom_tsl.encoders.din:DIN", summary="local activation unit (Zhou et al. 2018)")
    encoders.add("DIEN", "recloom_tsl.encoders.dien:DIEN", summary="GRU, attention, AUGRU (Zhou et al. 2019)")
    encoders.add("Transformer", "recloom_tsl.encoders.transformer:Transformer", summary="BST or SASRec style")
    encoders.add("GRU", "recloom_tsl.encoders.gru:GRU", summary="last state of a GRU (Hidasi et al. 2016)")
    catalog.experiments.add("tsl", "recloom_tsl.experiments:TSLExperiment", summary="the layers and encoders compared")
    catalog.benchmarks.add("tsl", "recloom_tsl.bench.throughput:main", summary="TBSM's speed beside the reference's")
