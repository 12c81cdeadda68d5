"""Deep Interest Evolution Network (Zhou et al. 2019, arXiv 1809.03672): interests are extracted, then followed.

A GRU extracts an interest from each step (interest extractor), with a loss of its own: its state has to tell the next
behaviour from another. Attention says how much each interest has to do with the candidate; a GRU with attentional
update gate follows those (interest evolution).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom.gaps import GapFeatures
from recloom.sequence import AuxiliaryLoss, SequenceEncoder
from recloom_tsl.encoders.align import last_steps, left_aligned
from recloom_tsl.encoders.augru import AttentionalGRU
from recloom_tsl.encoders.recurrence import run_gru


class DIEN(SequenceEncoder, AuxiliaryLoss):
    """The last state of the interest evolution; zeros for an empty history.

    The authors' code differs from their paper, which is followed here: its attention is DIN's unit (the paper: h W q),
    its auxiliary score a network of [h, e] (the paper: the inner product), and its AUGRU multiplies the share that is
    kept, not the one that is replaced, so that a step with no attention is taken over as by a plain GRU.
    States are as wide as steps, as the inner product needs.

    Args:
        width: Width of a step's vector, W.
        max_length: The longest history there can be.
        cell: The evolution: augru, agru, or aigru (a GRU over the interests times their attention).
        auxiliary_weight: Weight of the auxiliary loss, the paper's alpha; 1 in the code. 0: no auxiliary loss.
        time: "none": steps count by their order only, as in the paper; "gap": gap features beside each step.
    """

    def __init__(
        self,
        width: int,
        max_length: int,
        cell: Literal["augru", "agru", "aigru"] = "augru",
        auxiliary_weight: float = 1.0,
        time: Literal["none", "gap"] = "none",
    ) -> None:
        super().__init__(width, max_length)
        self.output_dim = width
        self.auxiliary_weight = auxiliary_weight
        self.gap_features = GapFeatures() if time == "gap" else None
        extra = self.gap_features.output_dim if self.gap_features is not None else 0
        self.extractor = nn.GRU(width + extra, width, batch_first=True)
        self.attention = nn.Linear(width, width, bias=False)
        self.evolution = nn.GRU(width, width, batch_first=True) if cell == "aigru" else AttentionalGRU(width, cell)

    def forward(self, steps: Tensor, query: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        """Return B x W; see SequenceEncoder. Sets `auxiliary_loss` while training."""
        inputs = steps
        if self.gap_features is not None:
            inputs = torch.cat([steps, self.gap_features(gaps).to(steps.dtype)], dim=-1)
        inputs, lengths = left_aligned(inputs, mask)
        places = torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]  # B x L
        with torch.autocast(steps.device.type, enabled=False):  # states stay in the weights' precision
            inputs, query = (tensor.to(self.attention.weight.dtype) for tensor in (inputs, query))
            interests = run_gru(self.extractor, inputs)  # h_t, B x L x W
            if self.training and self.auxiliary_weight:
                loss = next_step_loss(interests, inputs[..., : self.width], places)
                self.auxiliary_loss = self.auxiliary_weight * loss
            scores = torch.bmm(interests, self.attention(query)[..., None]).squeeze(-1)  # h_t W e_a
            shares = scores.masked_fill(~places, torch.finfo(scores.dtype).min).softmax(dim=1) * places
            if isinstance(self.evolution, AttentionalGRU):
                return self.evolution(interests, shares)
            states = run_gru(self.evolution, interests * shares[..., None])  # AIGRU
        return last_steps(states, lengths)


def next_step_loss(states: Tensor, steps: Tensor, places: Tensor) -> Tensor:
    """Return the auxiliary loss: cross-entropy of sigmoid(h_t . e_{t+1}) against a negative step.

    The negative is drawn evenly from the steps of the batch's other samples, by torch's generator. The mean is over the
    pairs (t, t+1) that exist (the paper: the sum over t; the code: the mean over all places, padded ones too).
    Gradients flow into states and steps, as in the code.

    Args:
        states: B x L x W, left-aligned.
        steps: B x L x W, left-aligned.
        places: B x L, True where there is a step.
    """
    lengths = places.sum(dim=1)  # B
    others = lengths.sum() - lengths  # steps of other samples, B
    usable = places[:, 1:] & (others > 0)[:, None]  # B x (L-1)
    row, place = usable.nonzero(as_tuple=True)  # P pairs
    if len(row) == 0:
        return (states.sum() + steps.sum()) * 0
    flat = steps[places]  # N x W, sample after sample
    drawn = (torch.rand(len(row), device=steps.device, dtype=torch.float64) * others[row]).long()
    starts = lengths.cumsum(0) - lengths
    drawn = torch.where(drawn >= starts[row], drawn + lengths[row], drawn)  # skip the sample's own
    state = states[row, place]  # h_t
    positive = (state * steps[row, place + 1]).sum(-1)
    negative = (state * flat[drawn]).sum(-1)
    return (F.softplus(-positive) + F.softplus(negative)).mean()
