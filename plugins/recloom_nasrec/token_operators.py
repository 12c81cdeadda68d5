"""NASRec's operators that give tokens, B x D x N, and the mergers between features and tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom.search.operators import Operator, Piece, Pieces, SlicedLinear, SlicedNorm, Slices
from recloom.search.program import Program
from recloom.search.slices import part
from recloom_nasrec.dense_operators import lower_norm, norm_slices, normed

HEADS = 8
NORM_SCALE = 0.17  # initial weight of the transformer's normalisations, as published
SPLITS = 8  # tokens that features are made into


class EFC(Operator):
    """Embedding fully connected: ReLU(norm(W x + b)) along the tokens, the same for each of the D columns.

    Args:
        num_tokens: Number of tokens, N.
        width: Number of output tokens.
        dim: Width of a token, D.
        norm: Whether there is a layer normalisation.
    """

    def __init__(self, num_tokens: int, width: int, dim: int, norm: bool) -> None:
        super().__init__()
        self.dim = dim
        self.linear = SlicedLinear(num_tokens, width, bias=not norm)
        self.norm = SlicedNorm(width) if norm else None

    def forward(self, *inputs: Pieces, width: int) -> Tensor:
        """Return B x D x width of one input, B x D x N."""
        return F.relu(normed(self.norm, self.linear.pieces(inputs[0], slice(0, width))))

    def slices(self, *inputs: Pieces, width: int) -> Slices:
        """Return the rows of the width and the columns of the pieces."""
        rows = slice(0, width)
        return self.linear.slices(inputs[0], rows, "linear") | norm_slices(self.norm, rows)

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add the product, of D vectors, and what follows it."""
        place = self.linear.lower(program, inputs, name, group, self.dim)
        place = lower_norm(self.norm, program, [place], name, group, self.dim)
        return program.add(f"{name}.relu", "elementwise", 1, self.linear.out_features, self.dim, [place], group)


class Transformer(Operator):
    """Tokens projected to `width` tokens, one layer of self-attention among them, two fully connected layers of D.

    Its two normalisations over D stay when `norm` is off, as published.

    Args:
        num_tokens: Number of tokens, N.
        width: Number of output tokens.
        dim: Width of a token, D.
        norm: Whether the projection has a layer normalisation.
    """

    def __init__(self, num_tokens: int, width: int, dim: int, norm: bool) -> None:
        super().__init__()
        self.dim = dim
        self.heads = HEADS if dim % HEADS == 0 else 1
        self.project = SlicedLinear(num_tokens, width, bias=not norm)
        self.norm = SlicedNorm(width) if norm else None
        self.attend = SlicedLinear(dim, 3 * dim)  # queries, keys, values
        self.out = SlicedLinear(dim, dim)
        self.attend_norm = SlicedNorm(dim, NORM_SCALE)
        self.first = SlicedLinear(dim, dim)
        self.second = SlicedLinear(dim, dim)
        self.second_norm = SlicedNorm(dim, NORM_SCALE)

    def forward(self, *inputs: Pieces, width: int, keep: int | None = None) -> Tensor:
        """Return B x D x width of one input, B x D x N.

        Args:
            inputs: The tokens.
            width: Number of output tokens.
            keep: How many of them are not set to zero after the projection; zeros take their share of the softmax.
        """
        x = normed(self.norm, self.project.pieces(inputs[0], slice(0, width)))
        if keep is not None:
            x = x * first(keep, x)
        x = x.transpose(1, 2)  # B x N x D
        batch, tokens, dim = x.shape
        parts = self.attend(x).view(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])  # B x heads x N x D/heads
        x = self.attend_norm(x + self.out(attended.transpose(1, 2).reshape(batch, tokens, dim)))
        x = self.second_norm(x + self.second(F.relu(self.first(x))))
        return x.transpose(1, 2).contiguous()

    def slices(self, *inputs: Pieces, width: int) -> Slices:
        """Return rows and columns of the projection, and all of what works on a token's columns."""
        found = self.project.slices(inputs[0], slice(0, width), "project") | norm_slices(self.norm, slice(0, width))
        for name, layer in self.named_children():
            if name not in ("project", "norm"):
                for label, parameter in layer.named_parameters():
                    found[f"{name}.{label}"] = [tuple(slice(0, size) for size in parameter.shape)]
        return found

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add the projection, attention (both its products are dynamic) and the fully connected layers."""
        count = self.project.out_features
        place = self.project.lower(program, inputs, name, group, self.dim)
        x = lower_norm(self.norm, program, [place], name, group, self.dim)
        place = self.attend.lower(program, [x], f"{name}.attend", group, count)
        place = program.add(f"{name}.scores", "dynamic", self.dim, count, count, [place], group)
        place = program.add(f"{name}.softmax", "elementwise", 1, count, count * self.heads, [place], group)
        place = program.add(f"{name}.values", "dynamic", count, self.dim, count, [place], group)
        place = self.out.lower(program, [place], f"{name}.out", group, count)
        x = self.attend_norm.lower(program, [place, x], f"{name}.attend_norm", group, count)
        place = self.first.lower(program, [x], f"{name}.first", group, count)
        place = self.second.lower(program, [place], f"{name}.second", group, count)
        return self.second_norm.lower(program, [place, x], f"{name}.second_norm", group, count)


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
        return F.linear(self.gather(*inputs), self.weight(*inputs), self.bias)

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


def first(keep: int, x: Tensor) -> Tensor:
    """Return ones for the first `keep` of x's last dimension, zeros for the others."""
    return (torch.arange(x.shape[-1], device=x.device) < keep).to(x.dtype)
