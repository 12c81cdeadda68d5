"""Weights of the reference implementation, facebookresearch/tbsm, in our TBSM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from recloom.embedding import EmbeddingBagCollection
from recloom.errors import RecloomError
from recloom_tsl.heads import HeadMLP
from recloom_tsl.tbsm import TBSM


def import_reference(model: TBSM, state: Mapping[str, Tensor]) -> None:
    """Copy the reference's weights into `model`, which then gives the logits of its probabilities.

    Tables are matched by position: list the schema's sparse features in the reference's order (user, item, category).

    Args:
        model: A TBSM of the same sizes whose tower is a DLRM with tables that are stored whole.
        state: State dict of the reference's TBSM_Net.

    Raises:
        RecloomError: A weight is missing, is left over, or has another shape.
    """
    pairs = dict(_pairs(model))
    problems = [f"{name} is missing" for name in pairs if name not in state]
    problems += [f"{name} has no place in the model" for name in state if name not in pairs]
    problems += [
        f"{name} is {tuple(state[name].shape)} there, {tuple(ours.shape)} here"
        for name, ours in pairs.items()
        if name in state and state[name].shape != ours.shape
    ]
    if problems:
        shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise RecloomError(f"the reference's weights do not fit the model: {shown}", "Configure the same sizes.")
    with torch.no_grad():
        if model.tsl.attention is not None:  # weights of places that a head does not see are not the reference's
            for parameter in model.tsl.attention.parameters():
                parameter.zero_()
        for name, ours in pairs.items():
            ours.copy_(state[name])


def _pairs(model: TBSM) -> Iterator[tuple[str, Tensor]]:
    """Yield (their name, our weight or a view of it) for each of the reference's weights."""
    yield from _tower_pairs(model.tower)
    for head, span in enumerate(model.tsl.spans):
        if model.tsl.a is not None:
            yield f"ams.{head}.A", model.tsl.a.detach()[head : head + 1]
        if model.tsl.attention is not None:
            last = len(model.tsl.attention.weights) - 1
            for name, ours in _head_pairs(model.tsl.attention, head, f"ams.{head}.mlp"):
                if name.endswith(".0.weight"):
                    ours = ours[:, -span:]
                if name.startswith(f"ams.{head}.mlp.{2 * last}."):
                    ours = ours[-span:]
                yield name, ours
        yield from _head_pairs(model.output_arch, head, f"mlps.{head}")
    if model.final_arch is not None:
        yield from _head_pairs(model.final_arch, 0, "final_mlp")


def _head_pairs(mlp: HeadMLP, head: int, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for index, (weight, bias) in enumerate(zip(mlp.weights, mlp.biases, strict=True)):
        yield f"{prefix}.{2 * index}.weight", weight.detach()[head]  # a ReLU or sigmoid after each
        yield f"{prefix}.{2 * index}.bias", bias.detach()[head]


def _tower_pairs(tower: nn.Module) -> Iterator[tuple[str, Tensor]]:
    tables = getattr(tower, "sparse_arch", None)
    if not isinstance(tables, EmbeddingBagCollection) or not hasattr(tower, "over_arch"):
        raise RecloomError(f"the reference's tower is a DLRM, and this one a {type(tower).__name__}", "Use DLRM.")
    for index, table in enumerate(tables.tables):
        yield f"dlrm.emb_l.{index}.weight", tables.table_weight(table.name)
    for part, mlp in (("bot_l", getattr(tower, "dense_arch", None)), ("top_l", tower.over_arch)):
        layers = mlp.modules() if isinstance(mlp, nn.Module) else ()
        linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
        for index, linear in enumerate(linears):
            yield f"dlrm.{part}.{2 * index}.weight", linear.weight.detach()
            yield f"dlrm.{part}.{2 * index}.bias", linear.bias.detach()
