"""Mean pooling: the mean of the steps, the baseline that every encoder has to beat."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom.gaps import GapFeatures
from recloom.sequence import SequenceEncoder

ONE = math.log(math.e - 1)  # softplus(ONE) = 1


class MeanPooling(SequenceEncoder):
    """The mean of the steps: every step alike, or weighted by how long ago it was. An empty history gives zeros.

    Args:
        width: Width of a step's vector, W.
        max_length: The longest history there can be.
        time: "none": the plain mean; "gap": each step's weight is softplus of a linear function of its gap features,
            and the sum is divided by the weights' sum. All weights are 1 at the start.
    """

    uses_query = False

    def __init__(self, width: int, max_length: int, time: Literal["none", "gap"] = "none") -> None:
        super().__init__(width, max_length)
        self.output_dim = width
        self.gap_features = GapFeatures() if time == "gap" else None
        if self.gap_features is not None:
            self.weigh = nn.Linear(self.gap_features.output_dim, 1, bias=False)
            nn.init.zeros_(self.weigh.weight)

    def forward(self, steps: Tensor, query: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        """Return B x W; see SequenceEncoder."""
        weights = mask.to(steps.dtype)  # B x L
        if self.gap_features is not None:
            scores = self.weigh(self.gap_features(gaps)).squeeze(-1).float()
            weights = weights * F.softplus(scores + ONE).to(steps.dtype)
        steps = steps.masked_fill(~mask[..., None], 0)
        total = weights.sum(dim=1, keepdim=True)  # B x 1
        pooled = torch.bmm(weights[:, None], steps).squeeze(1)  # B x W
        return pooled / total.clamp(min=torch.finfo(torch.float32).tiny)
