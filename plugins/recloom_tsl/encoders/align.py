"""Histories with the padding behind: what recurrences and causal attention need."""

from __future__ import annotations

import torch
from torch import Tensor


def left_aligned(steps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B x L x W with the first step of a history at place 0 and zeros behind the last, B lengths).

    What runs over the places in their order then sees nothing but steps until the last one; no padding.

    Args:
        steps: B x L x W, padded in front.
        mask: B x L, True where there is a step.
    """
    length = mask.shape[1]
    lengths = mask.sum(dim=1)  # B
    places = torch.arange(length, device=mask.device)
    index = (places + (length - lengths)[:, None]).clamp(max=length - 1)  # B x L
    moved = steps.gather(1, index[..., None].expand_as(steps))
    return moved.masked_fill((places >= lengths[:, None])[..., None], 0), lengths


def last_steps(vectors: Tensor, lengths: Tensor) -> Tensor:
    """Return B x W: the vector of each history's last step, zeros for an empty history.

    Args:
        vectors: B x L x W, left-aligned.
        lengths: B counts of steps.
    """
    index = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, vectors.shape[-1])
    last = vectors.gather(1, index).squeeze(1)
    return last.masked_fill((lengths == 0)[:, None], 0)
