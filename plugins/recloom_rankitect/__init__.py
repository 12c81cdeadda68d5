"""Rankitect (Wen et al. 2023, arXiv 2311.08430): ranking models composed from low-level blocks by search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recloom import hookimpl

if TYPE_CHECKING:
    from recloom.catalog import Catalog

BLOCKS = {
    "linear": ("features:Linear", "W x + b, of features"),
    "token_linear": ("features:TokenLinear", "W x + b, of each token"),
    "efc": ("tokens:EFC", "new tokens, weighted sums of all"),
    "mix": ("tokens:Mix", "token mixing: X + W_2 relu(W_1 X)"),
    "transpose": ("tokens:Transpose", "the tokens' values read by columns"),
    "attention": ("tokens:Attention", "self-attention of tokens, one head"),
    "dot": ("tokens:Dot", "inner products of all pairs of tokens"),
    "compressed_dot": ("tokens:CompressedDot", "X (X^T Y), linear in the tokens"),
    "fm": ("tokens:FM", "factorization machine, as a vector"),
    "mean_pool": ("tokens:MeanPool", "the mean of tokens"),
    "max_pool": ("tokens:MaxPool", "the maximum of tokens"),
    "add": ("pairs:Add", "x + y"),
    "multiply": ("pairs:Multiply", "x * y"),
    "gate": ("pairs:Gate", "x * sigmoid(W y + b)"),
    "cross": ("pairs:Cross", "x * (W y + b) + y (DCN V2)"),
    "low_rank_cross": ("pairs:LowRankCross", "x * (U V y + b) + y (DCN V2, low rank)"),
    "mask": ("pairs:Mask", "x * MLP(y) (MaskNet)"),
    "concat": ("pairs:Concat", "features or tokens side by side"),
    "residual": ("pairs:Residual", "layer normalisation of x + y"),
    "layer_norm": ("features:LayerNorm", "layer normalisation"),
    "rms_norm": ("features:RMSNorm", "root mean square normalisation"),
    "batch_norm": ("features:BatchNorm", "batch normalisation"),
    "relu": ("features:ReLU", "max(x, 0)"),
    "silu": ("features:SiLU", "x sigmoid(x)"),
    "sigmoid": ("features:Sigmoid", "1 / (1 + exp(-x))"),
    "tanh": ("features:Tanh", "tanh(x)"),
}
"""The blocks of this plugin by their names in configs: import path and summary."""


@hookimpl
def register(catalog: Catalog) -> None:
    """Register the blocks, models and spaces, and the experiment."""
    for name, (path, summary) in BLOCKS.items():
        catalog.blocks.add(name, f"recloom_rankitect.blocks.{path}", summary=summary)
    catalog.models.add("GraphModel", "recloom_rankitect.model:GraphModel", summary="a model composed of blocks")
    catalog.models.add(
        "StackModel", "recloom_rankitect.stack:StackModel", summary="layers of DHEN, Wukong, DCN V2, ..."
    )
    catalog.supernets.add("GraphSupernet", "recloom_rankitect.supernet:GraphSupernet", summary="weights of all graphs")
    catalog.search_spaces.add(
        "BlockSpace", "recloom_rankitect.space:BlockSpace", summary="graphs of blocks, from scratch"
    )
    catalog.search_spaces.add(
        "EngineersSpace", "recloom_rankitect.engineers:EngineersSpace", summary="a stack as engineers would design it"
    )
    catalog.cost_models.add("LogMACs", "recloom_rankitect.costs:LogMACs", summary="log10 of multiply-accumulates")
    catalog.experiments.add(
        "rankitect",
        "recloom_rankitect.experiments:RankitectExperiment",
        summary="every search method on the same ground",
    )
