"""Blocks of two inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from recloom.search.block import Block, Init, Shape, Weight, Weights
from recloom.search.program import Program
from recloom_rankitect.blocks.features import LayerNorm


class Add(Block):
    """x + y."""

    inputs = ("any", "same")

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map two of a shape to one."""
        return inputs[0] + inputs[1]


class Multiply(Block):
    """x * y, elementwise."""

    inputs = ("any", "same")

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map two of a shape to one."""
        return inputs[0] * inputs[1]


class Residual(LayerNorm):
    """Layer normalisation of x + y."""

    inputs = ("any", "same")

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map two of a shape to one."""
        return super().forward(weights, inputs[0] + inputs[1])


class Concat(Block):
    """Features side by side, or the tokens of both."""

    inputs = ("any", "alike")

    @property
    def shape(self) -> Shape:
        """All columns, or all tokens."""
        first, second = self.shapes
        if first.tokens:
            return replace(first, tokens=first.tokens + second.tokens)
        return Shape(first.width + second.width)

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map B x a, B x b to B x (a + b), or B x N x D, B x M x D to B x (N + M) x D."""
        return torch.cat(inputs, dim=1)


class _Mixed(Block):
    """A block with a product W y + b over the columns of its second input."""

    def weights(self) -> dict[str, Weight]:
        """Return W and b."""
        width = self.shapes[0].width
        return {"weight": Weight((width, width)), "bias": Weight((width,), "zeros")}

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add the product, and elementwise work."""
        shape = self.shapes[0]
        product = program.add(
            f"{name}.fc", "matmul", shape.width, shape.width, shape.vectors, inputs[1:], group, bias=True
        )
        return program.add(name, "elementwise", 1, shape.width, shape.vectors, [*inputs, product], group)


class Gate(_Mixed):
    """x * sigmoid(W y + b)."""

    inputs = ("any", "same")

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map two of a shape to one."""
        return inputs[0] * torch.sigmoid(weights.linear(inputs[1], "weight", "bias"))


class Cross(_Mixed):
    """x * (W y + b) + y, a cross layer of DCN V2 (Wang et al. 2021, eq. 1) with x for its x_0."""

    inputs = ("dense", "same")

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map two of a shape to one."""
        return torch.addcmul(inputs[1], inputs[0], weights.linear(inputs[1], "weight", "bias"))


class _LowRank(Block):
    """A block with two products over all values of its second input, through `width` hidden ones."""

    sized = True

    def weights(self) -> dict[str, Weight]:
        """Return both matrices and biases."""
        width = self.width
        return {
            "down": Weight((width, self.shapes[1].size)),
            "down_bias": Weight((width,), "zeros"),
            "up": Weight((self.shapes[0].size, width)),
            "up_bias": Weight((self.shapes[0].size,), self.up_bias),
        }

    up_bias: Init = "zeros"

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add both products, and elementwise work."""
        first, second = self.shapes
        down = program.add(f"{name}.down", "matmul", second.size, self.width, 1, inputs[-1:], group, bias=True)
        up = program.add(f"{name}.up", "matmul", self.width, first.size, 1, [down], group, bias=True)
        return program.add(name, "elementwise", 1, first.width, first.vectors, [*inputs, up], group)

    def product(self, weights: Weights, y: Tensor, activate: bool) -> Tensor:
        """Return U (V y) in the shape of the first input."""
        hidden = weights.linear(y.flatten(1), "down", "down_bias")
        hidden = torch.relu(hidden) if activate else hidden
        found = weights.linear(hidden, "up", "up_bias")
        shape = self.shapes[0]
        return found.unflatten(1, (shape.tokens, shape.width)) if shape.tokens else found


class LowRankCross(_LowRank):
    """x * (U V y + b) + y over all values, of rank `width`: DCN V2's low-rank cross layer (eq. 2), x for its x_0."""

    inputs = ("any", "same")

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map two of a shape to one."""
        return torch.addcmul(inputs[1], inputs[0], self.product(weights, inputs[1], False))


class Mask(_LowRank):
    """x * (U relu(V y + b) + c) over all values: MaskNet's instance-guided mask (Wang et al. 2021)."""

    inputs = ("any", "any")
    up_bias = "ones"  # at first x passes nearly as it is

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Return x's shape."""
        return inputs[0] * self.product(weights, inputs[1], True)
