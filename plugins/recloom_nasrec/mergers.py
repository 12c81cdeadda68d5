"""Between features and tokens: tokens to features (DeepFM), features to tokens, and the head that takes both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recloom.search.operators import Operator, Piece, Pieces, SlicedLinear, SlicedNorm, Slices
from recloom.search.program import Program
from recloom.search.slices import part
from recloom_nasrec.products import lower_norm, norm_slices, normed

SPLITS = 8  # tokens that features are made into


class DeepFM(Operator):
    """Tokens to features: the factorization machine's (sum x)^2 - sum x^2, projected to the width.

    Args:
        width: Width of the output.
        dim: Width of a token, D.
        norm: Whether there is a layer normalisation.
        joint: Whether the projection is left out where the width is D.
    """

    def __init__(self, width: int, dim: int, norm: bool, joint: bool) -> None:
        super().__init__()
        self.dim = dim
        skip = joint and width == dim
        self.linear = None if skip else SlicedLinear(dim, width, bias=not norm)
        self.norm = SlicedNorm(width) if norm and not skip else None

    def forward(self, *inputs: Pieces, width: int) -> Tensor:
        """Return B x width of one input, B x D x N, in one piece."""
        tokens = inputs[0][0].values
        pairs = tokens.sum(2) ** 2 - (tokens * tokens).sum(2)  # B x D
        if self.linear is None:
            return pairs
        return normed(self.norm, self.linear.pieces([Piece(0, self.dim, pairs)], slice(0, width)))

    def slices(self, *inputs: Pieces, width: int) -> Slices:
        """Return the rows of the width."""
        if self.linear is None:
            return {}
        rows = slice(0, width)
        return self.linear.slices([Piece(0, self.dim)], rows, "linear") | norm_slices(self.norm, rows)

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add the squares and the projection."""
        place = program.add(f"{name}.squares", "elementwise", 1, self.dim, 2, inputs, group)
        if self.linear is None:
            return place
        place = self.linear.lower(program, [place], name, group)
        return lower_norm(self.norm, program, [place], name, group)


class DenseTokens(Operator):
    """Features to tokens: projected to 8 D, which are 8 tokens.

    Args:
        columns: Width of the input.
        dim: Width of a token, D.
        norm: Whether there is a layer normalisation.
        joint: Whether the projection is left out where the input has 8 D columns.
    """

    def __init__(self, columns: int, dim: int, norm: bool, joint: bool) -> None:
        super().__init__()
        self.dim = dim
        skip = joint and columns == SPLITS * dim
        self.linear = None if skip else SlicedLinear(columns, SPLITS * dim, bias=not norm)
        self.norm = SlicedNorm(SPLITS * dim) if norm and not skip else None

    def forward(self, *inputs: Pieces, width: int = SPLITS) -> Tensor:
        """Return B x D x 8 of one input, B x columns, in one piece."""
        x = inputs[0][0].values
        if self.linear is not None:
            x = normed(self.norm, self.linear.pieces(inputs[0], slice(0, self.linear.out_features)))
        return x.view(-1, SPLITS, self.dim).transpose(1, 2)

    def slices(self, *inputs: Pieces, width: int = SPLITS) -> Slices:
        """Return the columns of the input."""
        if self.linear is None:
            return {}
        rows = slice(0, self.linear.out_features)
        return self.linear.slices(inputs[0], rows, "linear") | norm_slices(self.norm, rows)

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add the projection."""
        if self.linear is None:
            return inputs[0]
        place = self.linear.lower(program, inputs, name, group)
        return lower_norm(self.norm, program, [place], name, group)


class Head(Operator):
    """The logits of features and tokens.

    Args:
        width: Width of the features.
        num_tokens: Number of tokens.
        dim: Width of a token, D.
        tasks: Number of logits, T.
    """

    def __init__(self, width: int, num_tokens: int, dim: int, tasks: int = 1) -> None:
        super().__init__()
        self.sizes = (width, num_tokens, dim, tasks)
        bound = (6 / (width + num_tokens * dim + tasks)) ** 0.5  # Glorot's, of one layer on both
        self.features = nn.Parameter(torch.empty(tasks, width).uniform_(-bound, bound))
        self.tokens = nn.Parameter(torch.empty(tasks, dim, num_tokens).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(tasks))

    def forward(self, *inputs: Pieces, width: int) -> Tensor:
        """Return B x T of features B x d and tokens B x D x N, in a piece each."""
        return self.product(self.gather(*inputs), self.weight(*inputs), self.bias)

    @staticmethod
    def gather(*inputs: Pieces) -> Tensor:
        """Return the layer's input, B x (d + D N)."""
        return torch.cat([inputs[0][0].values, inputs[1][0].values.flatten(1)], dim=1)

    def weight(self, *inputs: Pieces) -> Tensor:
        """Return the weight for these columns, T x (d + D N)."""
        everything = slice(0, self.tokens.shape[0])
        features = part(self.features, everything, inputs[0][0].columns)
        tokens = part(self.tokens, everything, slice(0, self.tokens.shape[1]), inputs[1][0].columns)
        return torch.cat([features, tokens.flatten(1)], dim=1)

    def slices(self, *inputs: Pieces, width: int) -> Slices:
        """Return the columns of both inputs."""
        tasks, dim = slice(0, self.tokens.shape[0]), slice(0, self.tokens.shape[1])
        return {
            "features": [(tasks, inputs[0][0].columns)],
            "tokens": [(tasks, dim, inputs[1][0].columns)],
            "bias": [(tasks,)],
        }

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add the product."""
        width, num_tokens, dim, tasks = self.sizes
        return program.add(name, "matmul", width + num_tokens * dim, tasks, 1, inputs, group, bias=True)
