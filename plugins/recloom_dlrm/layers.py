"""The multilayer perceptrons of DLRM, with the reference's initialisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recloom.linear import Linear


class MLP(nn.Sequential):
    """Linear layers with a ReLU after each one, or after each but the last.

    Initialised as in the reference implementation: W ~ N(0, sqrt(2 / (in + out))), b ~ N(0, sqrt(1 / out)).

    Args:
        in_features: Width of the input.
        widths: Widths of the layers.
        last_relu: Whether the last layer has a ReLU too: the dense arch has one, the over arch gives logits.
    """

    def __init__(self, in_features: int, widths: Sequence[int], last_relu: bool) -> None:
        layers: list[nn.Module] = []
        for index, width in enumerate(widths):
            layers.append(_linear(in_features, width))
            if last_relu or index + 1 < len(widths):
                layers.append(nn.ReLU(inplace=True))
            in_features = width
        super().__init__(*layers)
        self.out_features = in_features

    def linears(self) -> list[nn.Linear]:
        """Return the linear layers in order."""
        return [layer for layer in self if isinstance(layer, nn.Linear)]

    def forward(self, input: Tensor) -> Tensor:
        """Map B x in_features to B x out_features."""
        return super().forward(input)  # type: ignore[no-untyped-call]


def _linear(in_features: int, out_features: int) -> nn.Linear:
    layer = Linear(in_features, out_features)
    with torch.no_grad():
        layer.weight.normal_(0.0, math.sqrt(2.0 / (in_features + out_features)))
        layer.bias.normal_(0.0, math.sqrt(1.0 / out_features))
    return layer
