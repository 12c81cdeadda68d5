"""Linear layers, normalisations and activations: of features, or of each token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from recloom.search.block import Block, Shape, Weight, Weights
from recloom.search.program import Program

EPS = 1e-5
MOMENTUM = 0.1  # of running statistics


class Linear(Block):
    """W x + b, of features."""

    inputs = ("dense",)
    sized = True

    @property
    def shape(self) -> Shape:
        """The chosen width."""
        return Shape(self.width)

    def weights(self) -> dict[str, Weight]:
        """Return W and b."""
        return {"weight": Weight((self.width, self.shapes[0].width)), "bias": Weight((self.width,), "zeros")}

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map B x d to B x width."""
        return weights.linear(inputs[0], "weight", "bias")

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add the product."""
        return program.add(name, "matmul", self.shapes[0].width, self.width, 1, inputs, group, bias=True)


class TokenLinear(Block):
    """W x + b of every token, with the same weights."""

    inputs = ("sparse",)

    def weights(self) -> dict[str, Weight]:
        """Return W and b."""
        width = self.shapes[0].width
        return {"weight": Weight((width, width)), "bias": Weight((width,), "zeros")}

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map B x N x D to B x N x D."""
        return weights.linear(inputs[0], "weight", "bias")

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add the product."""
        shape = self.shapes[0]
        return program.add(name, "matmul", shape.width, shape.width, shape.vectors, inputs, group, bias=True)


class Normalisation(Block):
    """A normalisation over the last dimension, with a weight and a bias a column."""

    def weights(self) -> dict[str, Weight]:
        """Return the weights and biases."""
        width = self.shapes[0].width
        return {"weight": Weight((width,), "ones"), "bias": Weight((width,), "zeros")}


class LayerNorm(Normalisation):
    """Layer normalisation (Ba et al. 2016): of a sample's features, or of each token."""

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map ... x d to ... x d."""
        return F.layer_norm(inputs[0], (self.shapes[0].width,), weights["weight"], weights["bias"], EPS)


class RMSNorm(Normalisation):
    """Root mean square normalisation (Zhang and Sennrich 2019): of a sample's features, or of each token."""

    def weights(self) -> dict[str, Weight]:
        """Return the weights."""
        return {"weight": Weight((self.shapes[0].width,), "ones")}

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map ... x d to ... x d."""
        x = inputs[0]
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weights["weight"]


class BatchNorm(Normalisation):
    """Batch normalisation (Ioffe and Szegedy 2015) of each column, over samples and tokens."""

    def weights(self) -> dict[str, Weight]:
        """Return weights, biases and running statistics."""
        width = self.shapes[0].width
        running = {"mean": Weight((width,), "zeros", False), "variance": Weight((width,), "ones", False)}
        return {**super().weights(), **running}

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map ... x d to ... x d."""
        x = inputs[0]
        mean, variance = weights["mean"], weights["variance"]
        if weights.training:
            over = tuple(range(x.ndim - 1))
            now = x.mean(over), x.var(over, unbiased=False)
            with torch.no_grad():
                mean.lerp_(now[0].detach(), MOMENTUM)
                variance.lerp_(now[1].detach(), MOMENTUM)
            mean, variance = now
        return (x - mean) * torch.rsqrt(variance + EPS) * weights["weight"] + weights["bias"]


class ReLU(Block):
    """max(x, 0)."""

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map any shape to the same."""
        return torch.relu(inputs[0])


class SiLU(Block):
    """x sigmoid(x)."""

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map any shape to the same."""
        return F.silu(inputs[0])


class Sigmoid(Block):
    """1 / (1 + exp(-x))."""

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map any shape to the same."""
        return torch.sigmoid(inputs[0])


class Tanh(Block):
    """tanh(x)."""

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map any shape to the same."""
        return torch.tanh(inputs[0])
