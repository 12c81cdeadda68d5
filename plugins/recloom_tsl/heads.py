"""Several multilayer perceptrons of the same widths, one a head, in batched matrix products."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HeadMLP(nn.Module):
    """One MLP a head: linear layers with a ReLU after each but the last.

    Initialised as in the reference: W ~ N(0, sqrt(2 / (in + out))), b ~ N(0, sqrt(1 / out)).

    Args:
        heads: Number of heads, K.
        widths: Width of the input, of the hidden layers, and of the output.
    """

    def __init__(self, heads: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.heads = heads
        self.widths = tuple(widths)
        pairs = list(itertools.pairwise(self.widths))
        self.weights = nn.ParameterList([torch.empty(heads, outer, inner) for inner, outer in pairs])
        self.biases = nn.ParameterList([torch.empty(heads, outer) for _, outer in pairs])
        for (inner, outer), weight, bias in zip(pairs, self.weights, self.biases, strict=True):
            nn.init.normal_(weight, 0.0, math.sqrt(2.0 / (inner + outer)))
            nn.init.normal_(bias, 0.0, math.sqrt(1.0 / outer))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map B x K x in to B x K x out, or with one head B x in to B x 1 x out."""
        if self.heads == 1:
            x = inputs.flatten(1)  # B x in
            for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                x = F.linear(torch.relu(x) if index else x, weight[0], bias[0])
            return x.unsqueeze(1)
        x = inputs.transpose(0, 1)  # K x B x in
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias.unsqueeze(1), torch.relu(x) if index else x, weight.transpose(1, 2))
        return x.transpose(0, 1)

    def extra_repr(self) -> str:
        """Say how large it is."""
        return f"{self.heads} x {'-'.join(map(str, self.widths))}"
