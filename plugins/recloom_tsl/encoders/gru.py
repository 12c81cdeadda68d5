"""GRU4Rec (Hidasi et al. 2016, arXiv 1511.06939): a history is the last state of a GRU over its steps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from recloom.gaps import GapFeatures
from recloom.sequence import SequenceEncoder
from recloom_tsl.encoders.align import last_steps, left_aligned
from recloom_tsl.encoders.recurrence import run_gru


class GRU(SequenceEncoder):
    """The last hidden state of a GRU; zeros for an empty history.

    The paper's network over item embeddings; its session-parallel batches and ranking losses belong to next-item
    training, which a click model does not do.

    Args:
        width: Width of a step's vector, W.
        max_length: The longest history there can be.
        hidden: Width of the hidden state; 0: W.
        num_layers: Number of GRU layers; one was best in the paper.
        time: "none": steps count by their order only, as in the paper; "gap": gap features beside each step.
    """

    uses_query = False

    def __init__(
        self,
        width: int,
        max_length: int,
        hidden: int = 0,
        num_layers: int = 1,
        time: Literal["none", "gap"] = "none",
    ) -> None:
        super().__init__(width, max_length)
        self.output_dim = hidden or width
        self.gap_features = GapFeatures() if time == "gap" else None
        extra = self.gap_features.output_dim if self.gap_features is not None else 0
        self.gru = nn.GRU(width + extra, self.output_dim, num_layers, batch_first=True)

    def forward(self, steps: Tensor, query: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        """Return B x output_dim; see SequenceEncoder."""
        if self.gap_features is not None:
            steps = torch.cat([steps, self.gap_features(gaps).to(steps.dtype)], dim=-1)
        steps, lengths = left_aligned(steps, mask)
        with torch.autocast(steps.device.type, enabled=False):  # the state stays in the weights' precision
            states = run_gru(self.gru, steps.to(next(self.gru.parameters()).dtype))  # B x L x H
        return last_steps(states, lengths)
