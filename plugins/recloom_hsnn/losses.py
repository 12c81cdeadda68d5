"""What the nodes of an HSNN add to its loss: their own cross-entropy, soft labels, the interaction towers' distance.

Letters in shapes: B rows; du, di widths of a user's and an item's code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from recloom.batch import Batch
from recloom_hsnn.nodes import Assigned
from recloom_hsnn.scorer import PairScorer

if TYPE_CHECKING:
    from recloom_hsnn.model import HSNN


def node_losses(
    model: HSNN, users: Tensor, items: Tensor, batch: Batch, progress: float
) -> tuple[dict[str, Tensor], list[Assigned]]:
    """Return the nodes' losses by name, and where the items are.

    Args:
        model: The model, whose nodes have begun.
        users: B x du codes with their gradients.
        items: B x di codes with theirs.
        batch: Labels and weights.
        progress: Share of the training that is done, 0 to 1.
    """
    settings = model.index.config
    held = _scaled(items, settings.grad_scale)
    asked = _scaled(users, settings.grad_scale) if model.shares_users else users
    assigned = model.assign(held, model.alpha(progress))
    vectors = [one.soft if settings.source == "lti" else one.hard.detach() for one in assigned]
    parts: dict[str, Tensor] = {}
    for level, logits in enumerate(model.node_logits(asked, vectors)):
        parts[f"node{level + 1}_loss"] = model.loss(logits.squeeze(1) if model.tasks == 1 else logits, batch)
    parts |= model.index.losses(held[:, : model.vector_dim], assigned).parts
    if settings.distill:
        parts["distill_loss"] = settings.distill * _distilled(model, users, items, asked, vectors)
    if settings.pair_loss and model.scorer.inter_arch is not None:
        parts["pair_loss"] = settings.pair_loss * _pair_loss(model, asked, users, items, vectors)
    return parts, assigned


def _scaled(values: Tensor, scale: float) -> Tensor:
    """Return the values, with their gradient times `scale`."""
    return values.detach() if scale == 0 else scale * values + (1 - scale) * values.detach()


def _distilled(model: HSNN, users: Tensor, items: Tensor, asked: Tensor, vectors: list[Tensor]) -> Tensor:
    """Return the nodes' cross-entropy to the item level's soft labels, on pairs that nobody was shown."""
    shift = 1 + model.trainer.global_step % max(len(users) - 1, 1)
    with torch.no_grad():
        soft = torch.sigmoid(model.scorer(users.roll(shift, 0), items).float())
    found = model.node_logits(asked.roll(shift, 0), vectors)
    return torch.stack([F.binary_cross_entropy_with_logits(logits.float(), soft) for logits in found]).sum()


def _pair_loss(model: HSNN, asked: Tensor, users: Tensor, items: Tensor, vectors: list[Tensor]) -> Tensor:
    """Return the squared distance between the interaction towers of nodes and of items."""
    wanted = model.scorer.pairs(users, items)
    assert wanted is not None
    total = wanted.new_zeros(())
    for scorer, nodes in zip(model.level_scorers, vectors, strict=True):
        assert isinstance(scorer, PairScorer)
        found = scorer.pairs(asked, nodes)
        if found is not None and found.shape == wanted.shape:
            total = total + F.mse_loss(found, wanted.detach())
    return total
