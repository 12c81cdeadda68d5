"""Blocks that relate tokens to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from recloom.search.block import Block, Shape, Weight, Weights
from recloom.search.program import Program

TOKEN_WIDTH = 16  # the width that stands for one token where a width is chosen for tokens


def tokens_for(width: int) -> int:
    """Return the number of tokens that a chosen width stands for."""
    return max(1, width // TOKEN_WIDTH)


class EFC(Block):
    """Embedding fully connected: each new token is a weighted sum of all tokens, and a bias."""

    inputs = ("sparse",)
    sized = True

    @property
    def count(self) -> int:
        """Number of new tokens."""
        return tokens_for(self.width)

    @property
    def shape(self) -> Shape:
        """As many tokens as the chosen width stands for."""
        return replace(self.shapes[0], tokens=self.count)

    def weights(self) -> dict[str, Weight]:
        """Return the weights over tokens, and the biases."""
        return {"weight": Weight((self.count, self.shapes[0].tokens)), "bias": Weight((self.count,), "zeros")}

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map B x N x D to B x n x D."""
        return weights.linear(inputs[0].transpose(1, 2), "weight", "bias").transpose(1, 2)

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add the product: one vector a column."""
        shape = self.shapes[0]
        return program.add(name, "matmul", shape.tokens, self.count, shape.width, inputs, group, bias=True)


class Dot(Block):
    """Dot products of all pairs of tokens: <x_1, x_0>, <x_2, x_0>, <x_2, x_1>, ... (DLRM)."""

    inputs = ("sparse",)

    @property
    def shape(self) -> Shape:
        """The pairs; of one token its product with itself."""
        count = self.shapes[0].tokens
        return Shape(max(1, count * (count - 1) // 2))

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map B x N x D to B x pairs."""
        x = inputs[0]
        products = x @ x.transpose(1, 2)  # B x N x N
        count = self.shapes[0].tokens
        row, column = torch.tril_indices(count, count, -1 if count > 1 else 0, device=x.device)
        return products.flatten(1).index_select(1, row * count + column)

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add the product of all tokens with all, as it is computed."""
        shape = self.shapes[0]
        return program.add(name, "dynamic", shape.width, shape.tokens, shape.tokens, inputs, group)


class CompressedDot(Block):
    """Compressed dot products X (X^T Y) with a learned N x k matrix Y (Wukong's FM): linear in N."""

    inputs = ("sparse",)
    sized = True

    @property
    def rank(self) -> int:
        """The number of compressed tokens, k."""
        return tokens_for(self.width)

    @property
    def shape(self) -> Shape:
        """N k products."""
        return Shape(self.shapes[0].tokens * self.rank)

    def weights(self) -> dict[str, Weight]:
        """Return Y, transposed."""
        return {"weight": Weight((self.rank, self.shapes[0].tokens))}

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map B x N x D to B x (N k)."""
        x = inputs[0]
        return (x @ weights.linear(x.transpose(1, 2), "weight")).flatten(1)

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add both products."""
        shape = self.shapes[0]
        less = program.add(f"{name}.fc", "matmul", shape.tokens, self.rank, shape.width, inputs, group)
        return program.add(name, "dynamic", shape.width, self.rank, shape.tokens, [*inputs, less], group)


class FM(Block):
    """Factorization machine as a vector: 0.5 ((sum_i x_i)^2 - sum_i x_i^2), elementwise (Rendle 2010, lemma 3.1)."""

    inputs = ("sparse",)

    @property
    def shape(self) -> Shape:
        """One token's width."""
        return Shape(self.shapes[0].width)

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map B x N x D to B x D."""
        x = inputs[0]
        return 0.5 * (x.sum(1).square() - x.square().sum(1))

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add elementwise work on all tokens."""
        return program.add(name, "elementwise", 1, self.shapes[0].width, self.shapes[0].tokens, inputs, group)


class Attention(Block):
    """Self-attention with one head: softmax(Q K^T / sqrt(D)) V, and an output projection (Vaswani et al. 2017)."""

    inputs = ("sparse",)

    def weights(self) -> dict[str, Weight]:
        """Return the four projections; three of them stacked would be no leading part of larger ones."""
        width = self.shapes[0].width
        return {name: Weight((width, width)) for name in ("query", "key", "value", "out")}

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map B x N x D to B x N x D."""
        x = inputs[0].unsqueeze(1)
        query, key, value = (weights.linear(x, name) for name in ("query", "key", "value"))
        return weights.linear(F.scaled_dot_product_attention(query, key, value).squeeze(1), "out")

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add the projections and both products of tokens with tokens."""
        count, width = self.shapes[0].tokens, self.shapes[0].width
        parts = [
            program.add(f"{name}.{part}", "matmul", width, width, count, inputs, group)
            for part in ("query", "key", "value")
        ]
        scores = program.add(f"{name}.scores", "dynamic", width, count, count, parts[:2], group)
        mixed = program.add(f"{name}.mixed", "dynamic", count, width, count, [scores, parts[2]], group)
        return program.add(f"{name}.out", "matmul", width, width, count, [mixed], group)


class Mix(Block):
    """Token mixing with a residual: X + W_2 relu(W_1 X), over tokens (MLP-Mixer, Tolstikhin et al. 2021)."""

    inputs = ("sparse",)

    def weights(self) -> dict[str, Weight]:
        """Return W_1 and W_2."""
        count = self.shapes[0].tokens
        return {"first": Weight((count, count)), "second": Weight((count, count))}

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map B x N x D to B x N x D."""
        x = inputs[0]
        hidden = torch.relu(weights.linear(x.transpose(1, 2), "first"))
        return x + weights.linear(hidden, "second").transpose(1, 2)

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add both products."""
        count, width = self.shapes[0].tokens, self.shapes[0].width
        first = program.add(f"{name}.first", "matmul", count, count, width, inputs, group)
        second = program.add(f"{name}.second", "matmul", count, count, width, [first], group)
        return program.add(name, "elementwise", 1, width, count, [*inputs, second], group)


class Transpose(Block):
    """The tokens' values read column by column, so that each new token has values of many."""

    inputs = ("sparse",)

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map B x N x D to B x N x D."""
        shape = self.shapes[0]
        return inputs[0].transpose(1, 2).reshape(-1, shape.tokens, shape.width)


class _Pool(Block):
    """One vector of all tokens."""

    inputs = ("sparse",)

    @property
    def shape(self) -> Shape:
        """One token's width."""
        return Shape(self.shapes[0].width)


class MeanPool(_Pool):
    """The mean of all tokens."""

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map B x N x D to B x D."""
        return inputs[0].mean(1)


class MaxPool(_Pool):
    """The largest value of each column."""

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map B x N x D to B x D."""
        return inputs[0].amax(1)
