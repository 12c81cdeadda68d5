"""A user as the distribution of their items: the mean embedding of a history, for the slot `sequence_encoder`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from recloom.errors import RecloomError
from recloom.sequence import SequenceEncoder


class FourierMeanEmbedding(SequenceEncoder):
    """The mean over a history's steps of random Fourier features cos(x W), sin(x W), which stand for an RBF kernel.

    Two histories have near vectors if their steps are distributed alike, not only if their means agree. The order of
    the steps does not matter; an empty history gives zeros. Inner products of the vectors approximate those of RBF
    mean embeddings (Rahimi and Recht 2007; Muandet et al. 2012).

    Args:
        width: Width of a step's vector, W.
        max_length: The longest history there can be.
        features: Width of the output; even.
        bandwidth: The RBF kernel's sigma at the start, in standard deviations of a step's coordinates times sqrt(W); it
            is learned, one factor a coordinate. Embeddings start small, so it starts relative to `spread`.
        spread: Standard deviation of a step's coordinates at the start, about.
    """

    uses_query = False

    def __init__(
        self, width: int, max_length: int, features: int = 64, bandwidth: float = 1.0, spread: float = 0.1
    ) -> None:
        super().__init__(width, max_length)
        if features < 2 or features % 2 or bandwidth <= 0 or spread <= 0:
            raise RecloomError(
                f"{features} features with bandwidth {bandwidth} and spread {spread}",
                "Take an even number of features, and positive numbers.",
            )
        self.output_dim = features
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.randn(width, features // 2))
        sigma = bandwidth * spread * math.sqrt(width)
        self.log_scale = nn.Parameter(torch.full((width,), -math.log(sigma)))

    def forward(self, steps: Tensor, query: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        """Return B x features; see SequenceEncoder."""
        weights = mask.to(steps.dtype)  # B x L
        steps = steps.masked_fill(~mask[..., None], 0)
        angles = (steps * self.log_scale.exp().to(steps.dtype)) @ self.frequencies.to(steps.dtype)  # B x L x features/2
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        total = torch.bmm(weights[:, None], waves).squeeze(1)  # B x features
        return total / weights.sum(dim=1, keepdim=True).clamp(min=1) * math.sqrt(2 / self.output_dim)
