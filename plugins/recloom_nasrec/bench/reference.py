"""The reference implementation (facebookresearch/NasRec) from a checkout, on our paths and with our weights."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recloom.errors import RecloomError
from recloom_nasrec.architecture import Architecture
from recloom_nasrec.blocks import ChoiceBlock
from recloom_nasrec.mergers import SPLITS
from recloom_nasrec.model import NASRecNet
from recloom_nasrec.supernet import NASRecSupernet

_CONFIGS = {"small": "autoctr", "full": "xlarge"}
_NAMES = {
    "fc": "linear-2d",
    "dot": "dot-product",
    "gating": "sigmoid-gating",
    "sum": "sum",
    "efc": "linear-3d",
    "transformer": "transformer",
}


def build(
    path: Path, size: str, dense: int, rows: Sequence[int], norm: bool, blocks: int = 7, choice: Any = None
) -> Any:
    """Return the reference's supernet, its lazy layers made; or with `choice` a model of its own.

    Args:
        path: A checkout.
        size: "small" or "full".
        dense: Number of dense features.
        rows: Rows of each embedding table.
        norm: Whether operators have layer normalisations.
        blocks: Number of blocks.
        choice: An architecture, as `choices` gives it.
    """
    module = _import(path)
    fixed = {"fixed": True, "fixed_choice": choice, "path_sampling_strategy": "fixed-path"} if choice else {}
    model = module.SuperNet(
        blocks,
        module.ops_config_lib[_CONFIGS[size]],
        norm,
        num_embeddings=list(rows),
        sparse_input_size=len(rows),
        anypath_choice="binomial-0.5",
        **fixed,
    )
    with torch.no_grad():
        if not choice:
            model.configure_path_sampling_strategy("full-path")
        model(torch.zeros(2, dense), torch.zeros(2, len(rows), dtype=torch.int64))
        if not choice:
            model.configure_path_sampling_strategy("fixed-path")
    return model


def choices(size: str, path: Architecture, checkout: Path) -> dict[str, Any]:
    """Return a path as the reference writes it."""
    names = _import(checkout).ops_config_lib[_CONFIGS[size]]["node_names"]
    micro = [
        {
            "active_nodes": sorted(names.index(_NAMES[op]) for op in (*block.dense_ops, *block.sparse_ops)),
            "dense_in_dims": block.dense_dim,
            "sparse_in_dims": block.sparse_dim,
            "dense_sparse_interact": int(block.interact),
            "deep_fm": int(block.fm),
        }
        for block in path
    ]
    macro = [
        {
            "dense_idx": list(block.dense_from),
            "sparse_idx": list(block.sparse_from),
            "dense_left_idx": list(block.left),
            "dense_right_idx": list(block.right),
        }
        for block in path
    ]
    return {"micro": micro, "macro": macro}


@torch.no_grad()
def copy_weights(mine: NASRecSupernet, theirs: Any) -> None:
    """Give the reference's supernet our weights; its tokens made of features come last, ours first."""
    for place, table in enumerate(mine.sparse_arch.tables):
        theirs._embedding[place].weight.copy_(mine.sparse_arch.table_weight(table.name))
    stem, most = mine.network.stem.tokens, max(mine.nasrec.sparse_dims)
    for place, block in enumerate(mine.network.blocks, start=1):
        assert isinstance(block, ChoiceBlock)
        order = list(range(stem))
        for source in range(1, place):
            start = stem + (source - 1) * (most + SPLITS)
            order += [*range(start + SPLITS, start + SPLITS + most), *range(start, start + SPLITS)]
        copy_block(block, theirs._blocks[place - 1], torch.tensor(order))
    copy_head(mine.network.head, theirs._final, SPLITS)


@torch.no_grad()
def copy_model(mine: NASRecNet, theirs: Any) -> None:
    """Give the reference's model our weights."""
    for place, table in enumerate(mine.sparse_arch.tables):
        theirs._embedding[place].weight.copy_(mine.sparse_arch.table_weight(table.name))
    architecture = mine.network.architecture
    tokens = [mine.network.stem.tokens, *(block.sparse_dim + SPLITS * block.interact for block in architecture)]
    for place, block in enumerate(architecture):
        order: list[int] = []
        for source in block.sparse_from:
            start, lead = len(order), SPLITS if source and architecture[source - 1].interact else 0
            order += [*range(start + lead, start + tokens[source]), *range(start, start + lead)]
        copy_block(mine.network.blocks[place], theirs._blocks[place], torch.tensor(order))
    copy_head(mine.network.head, theirs._final, SPLITS * architecture[-1].interact)


def copy_block(mine: ChoiceBlock, theirs: Any, order: Tensor | slice = slice(None)) -> None:
    """Copy the weights of a block; `order` gives for each of its token columns which of ours it is."""
    nodes = dict(zip(theirs._node_names, theirs._nodes, strict=True))
    ours: dict[str, Any] = {**mine.dense_ops, **mine.sparse_ops}
    for name, op in ours.items():
        node = nodes[_NAMES[name]]
        if name in ("fc", "efc"):
            _copy(op.linear, node._linear, order if name == "efc" else slice(None))
            _copy(op.norm, node._layernorm)
        elif name == "dot":
            _copy(op.features, node._dense_proj)
            _copy(op.features_norm, node._dense_layernorm)
            _copy(op.project, node._sparse_inp_proj, order)
            _copy(op.project_norm, node._sparse_inp_proj_layernorm)
            _copy(op.linear, node._linear_proj)
            _copy(op.norm, node._linear_layernorm)
        elif name in ("gating", "sum"):
            _copy(op.linear, node._linear_proj)
            _copy(op.norm, node._layernorm)
            if name == "gating":
                _copy(op.gate, node._left_self_linear._linear)
        else:
            _copy_transformer(op, node, order)
    if mine.interact is not None:
        _copy(mine.interact.linear, theirs.project_emb_dim)
        _copy(mine.interact.norm, theirs.project_emb_dim_layernorm)
    if mine.fm is not None:
        _copy(mine.fm.linear, theirs.deep_fm._linear_proj)
        _copy(mine.fm.norm, getattr(theirs.deep_fm, "_linear_layernorm", None))


def copy_head(mine: Any, theirs: nn.Linear, lead: int) -> None:
    """Copy the head's weights; `lead` of our token columns, which come first, are its last."""
    tokens = torch.cat([mine.tokens[:, :, lead:], mine.tokens[:, :, :lead]], dim=2)  # T x D x N
    theirs.weight.copy_(torch.cat([mine.features, tokens.transpose(1, 2).flatten(1)], dim=1))
    theirs.bias.copy_(mine.bias)


def _copy_transformer(mine: Any, theirs: Any, order: Tensor | slice) -> None:
    _copy(mine.project, theirs._linear_proj, order)
    _copy(mine.norm, theirs._proj_ln)
    theirs._mha.in_proj_weight.copy_(mine.attend.weight)
    theirs._mha.in_proj_bias.copy_(mine.attend.bias)
    _copy(mine.out, theirs._mha.out_proj)
    _copy(mine.attend_norm, theirs._attn_ln)
    _copy(mine.first, theirs.attn_fc1)
    _copy(mine.second, theirs.attn_fc2)
    _copy(mine.second_norm, theirs._attn_fc_ln)


def _copy(mine: Any, theirs: Any, columns: Tensor | slice = slice(None)) -> None:
    """Copy a layer that both have; a gate of ours is smaller where the reference's meets zeros."""
    if mine is None:
        return
    weight = mine.weight[:, columns] if mine.weight.ndim == 2 else mine.weight
    if theirs.weight.shape != weight.shape:
        theirs.weight.zero_()
        theirs.weight[: weight.shape[0], : weight.shape[1]].copy_(weight)
    else:
        theirs.weight.copy_(weight)
    if mine.bias is not None:
        theirs.bias.zero_()
        theirs.bias[: len(mine.bias)].copy_(mine.bias)


def _import(path: Path) -> Any:
    if not (path / "nasrec" / "supernet" / "supernet.py").is_file():
        raise RecloomError(f"{path}: not a checkout of facebookresearch/NasRec", "git clone it, and give its folder.")
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    return importlib.import_module("nasrec.supernet.supernet")
