"""The recurrences of DIEN's interest evolution: GRUs whose update gate the attention moves (arXiv 1809.03672).

u_t = sigmoid(W_u i_t + U_u h_{t-1} + b_u)              AUGRU: u_t <- a_t u_t
r_t = sigmoid(W_r i_t + U_r h_{t-1} + b_r)              AGRU:  u_t <- a_t
n_t = tanh(W_h i_t + r_t * (U_h h_{t-1}) + b_h)
h_t = (1 - u_t) * h_{t-1} + u_t * n_t
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom_tsl.encoders.recurrence import run


class AttentionalGRU(nn.Module):
    """A GRU with attention in its update gate. A step with attention 0 leaves the state as it is.

    Args:
        width: Width of the inputs and of the state, H.
        cell: augru or agru.
    """

    def __init__(self, width: int, cell: Literal["augru", "agru"] = "augru") -> None:
        super().__init__()
        gates = 3 if cell == "augru" else 2  # AGRU has no update gate of its own: r, n
        bound = 1 / math.sqrt(width)  # as in nn.GRU
        self.weight_input = nn.Parameter(torch.empty(gates * width, width).uniform_(-bound, bound))  # W: (u), r, n
        self.weight_state = nn.Parameter(torch.empty(gates * width, width).uniform_(-bound, bound))  # U: (u), r, n
        self.bias = nn.Parameter(torch.empty(gates * width).uniform_(-bound, bound))

    def forward(self, inputs: Tensor, attention: Tensor) -> Tensor:
        """Return the last state, B x H.

        Args:
            inputs: B x L x H.
            attention: B x L, in 0..1; 0 where there is no step.
        """
        projected = F.linear(inputs.transpose(0, 1), self.weight_input, self.bias)  # L x B x 3H, in one product
        return run(projected, self.weight_state, shares=attention.t())[-1]
