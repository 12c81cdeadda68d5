"""NASRec's operators that give features, B x d: fully connected, dot product, sigmoid gating, sum.

They come in the two forms of the reference implementation. In a supernet every source of an input has columns of its
own, so that sum is W_l l + W_r r (form "apart"). In a model of its own the two inputs of sum and gating are padded
with zeros to one width, and a projection to a width that is there already is left out (form "joint").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom.search.operators import Operator, Piece, Pieces, SlicedLinear, SlicedNorm, Slices
from recloom.search.program import Program
from recloom_nasrec.products import Product, lower_norm, norm_slices, normed


class FC(Product):
    """Fully connected: ReLU(norm(W x + b)). With a norm there is no b.

    Args:
        columns: Width of the input.
        width: Width of the output.
        norm: Whether there is a layer normalisation.
    """

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add the product and what follows it."""
        place = lower_norm(self.norm, program, [self.linear.lower(program, inputs, name, group)], name, group)
        return program.add(f"{name}.relu", "elementwise", 1, self.linear.out_features, 1, [place], group)


class DotProduct(Operator):
    """Dot products of all pairs of the tokens and the features, projected to the width.

    Operator-balancing: the N tokens are first projected to `tokens` tokens, about sqrt(2 d) for a width of d, so that
    there are about d pairs, and parameters and operations grow like N and d instead of N^2 d.

    Args:
        columns: Width of the features.
        num_tokens: Number of tokens, N.
        width: Width of the output.
        dim: Width of a token, D.
        norm: Whether there are layer normalisations.
        tokens: Number of tokens that are paired.
        joint: Whether projections that change no width are left out.
    """

    pairs: Tensor

    def __init__(
        self, columns: int, num_tokens: int, width: int, dim: int, norm: bool, tokens: int, joint: bool
    ) -> None:
        super().__init__()
        self.dim, self.tokens = dim, tokens
        pairs = tokens * (tokens + 1) // 2
        skip = (joint and columns == dim, joint and num_tokens == tokens, joint and pairs == width)
        self.features = None if skip[0] else SlicedLinear(columns, dim, bias=not norm)
        self.features_norm = SlicedNorm(dim) if norm and not skip[0] else None
        self.project = None if skip[1] else SlicedLinear(num_tokens, tokens, bias=not norm)
        self.project_norm = SlicedNorm(tokens) if norm and not skip[1] else None
        self.linear = None if skip[2] else SlicedLinear(pairs, width, bias=not norm)
        self.norm = SlicedNorm(width) if norm else None
        lower, upper = np.tril_indices(tokens + 1, -1)
        self.register_buffer("pairs", torch.from_numpy(lower * (tokens + 1) + upper), persistent=False)

    def forward(self, *inputs: Pieces, width: int) -> Tensor:
        """Return B x width of features B x columns and tokens B x D x N."""
        features, tokens = inputs
        x = _through(self.features, self.features_norm, features)  # B x D
        y = _through(self.project, self.project_norm, tokens)  # B x D x k
        vectors = torch.cat([x.unsqueeze(2), y], dim=2)  # B x D x (k+1)
        products = torch.bmm(vectors.transpose(1, 2), vectors).flatten(1)  # B x (k+1)^2
        found = products.index_select(1, self.pairs)  # B x (k+1)k/2
        if self.linear is not None:
            found = self.linear.pieces([Piece(0, found.shape[1], found)], slice(0, width))
        return normed(self.norm, found)

    def slices(self, *inputs: Pieces, width: int) -> Slices:
        """Return the columns of the pieces in the projections, the rows of the width in the last one."""
        found: Slices = {}
        both = ((self.features, self.features_norm, "features"), (self.project, self.project_norm, "project"))
        for (linear, norm, name), pieces in zip(both, inputs, strict=True):
            if linear is not None:
                rows = slice(0, linear.out_features)
                found |= linear.slices(pieces, rows, name) | norm_slices(norm, rows, f"{name}_norm")
        if self.linear is not None:
            found |= self.linear.slices([Piece(0, self.linear.in_features)], slice(0, width), "linear")
        return found | norm_slices(self.norm, slice(0, width))

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add the projections, and the product of all vectors with one another (k+1 x k+1, as it is computed)."""
        features, tokens = [inputs[0]], list(inputs[1:])
        if self.features is not None:
            features = [self.features.lower(program, features, f"{name}.features", group)]
            features = [lower_norm(self.features_norm, program, features, f"{name}.features", group)]
        if self.project is not None:
            tokens = [self.project.lower(program, tokens, f"{name}.project", group, self.dim)]
            tokens = [lower_norm(self.project_norm, program, tokens, f"{name}.project", group, self.dim)]
        count = self.tokens + 1
        place = program.add(f"{name}.dot", "dynamic", self.dim, count, count, [*features, *tokens], group)
        if self.linear is not None:
            place = self.linear.lower(program, [place], name, group)
        return lower_norm(self.norm, program, [place], name, group)


class Gating(Operator):
    """Sigmoid gating: norm(W (right * sigmoid(S left + s)) + b).

    Only what reaches the output is built: the rows of S beyond the right input's width gate zeros, and its columns
    beyond the left one's meet zeros. The reference implementation pads both and computes them (`padded`).

    Args:
        left: Width of the left input.
        right: Width of the right input.
        width: Width of the output.
        norm: Whether there is a layer normalisation.
        joint: Whether the inputs have common columns, and W is left out where the padded width is that of the output.
        padded: Built for `lower` alone, at the padded size.
    """

    def __init__(self, left: int, right: int, width: int, norm: bool, joint: bool, padded: bool = False) -> None:
        super().__init__()
        common = max(left, right)
        if padded:
            left = right = common
        self.width = width
        self.gate = SlicedLinear(left, right)
        self.linear = None if joint and common == width else SlicedLinear(right, width)
        self.norm = SlicedNorm(width) if norm else None

    def forward(self, *inputs: Pieces, width: int) -> Tensor:
        """Return B x width of the left and the right input."""
        left, right = inputs
        gated = [Piece(r.start, r.width, r.values * torch.sigmoid(self.gate.pieces(left, r.columns))) for r in right]
        if self.linear is not None:
            return normed(self.norm, self.linear.pieces(gated, slice(0, width)))
        return normed(self.norm, F.pad(gated[0].values, (0, width - gated[0].width)))

    def slices(self, *inputs: Pieces, width: int) -> Slices:
        """Return the right input's rows and the left one's columns of S, the right one's columns of W."""
        left, right = inputs
        if len(right) > 1:
            raise ValueError("the slice of a gate with several right inputs is no rectangle")
        found = self.gate.slices(left, right[0].columns, "gate")
        if self.linear is not None:
            found |= self.linear.slices(right, slice(0, width), "linear")
        return found | norm_slices(self.norm, slice(0, width))

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add the gate, its use, and the projection."""
        gate = self.gate.lower(program, inputs[:1], f"{name}.gate", group)
        right = self.gate.out_features
        place = program.add(f"{name}.sigmoid", "elementwise", 1, right, 2, [gate, inputs[1]], group)
        if self.linear is not None:
            place = self.linear.lower(program, [place], name, group)
        return lower_norm(self.norm, program, [place], name, group)


class Sum(Operator):
    """Sum: norm(W (left + right) + b); joint, the narrower is padded with zeros, else left and right have own columns.

    Args:
        columns: Width of what W maps.
        width: Width of the output.
        norm: Whether there is a layer normalisation.
        joint: Whether the inputs have common columns, and W is left out where it changes no width.
    """

    def __init__(self, columns: int, width: int, norm: bool, joint: bool) -> None:
        super().__init__()
        self.columns, self.joint = columns, joint
        self.linear = None if joint and columns == width else SlicedLinear(columns, width, bias=not norm)
        self.norm = SlicedNorm(width) if norm else None

    def forward(self, *inputs: Pieces, width: int) -> Tensor:
        """Return B x width of the left and the right input."""
        found = self._added(*inputs)
        if self.linear is None:
            return normed(self.norm, found[0].values)
        return normed(self.norm, self.linear.pieces(found, slice(0, width)))

    def slices(self, *inputs: Pieces, width: int) -> Slices:
        """Return the columns of both inputs; those of a source that is both once."""
        found: Slices = {}
        if self.linear is not None:
            columns = sorted({(p.start, p.width) for pieces in inputs for p in pieces})
            found = self.linear.slices([Piece(start, count) for start, count in columns], slice(0, width), "linear")
        return found | norm_slices(self.norm, slice(0, width))

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add the sum and the projection."""
        place = program.add(f"{name}.add", "elementwise", 1, self.columns, 1, inputs, group)
        if self.linear is not None:
            place = self.linear.lower(program, [place], name, group)
        return lower_norm(self.norm, program, [place], name, group)

    def _added(self, left: Pieces, right: Pieces) -> list[Piece]:
        if self.joint:
            (a,), (b,) = left, right
            common = max(a.width, b.width)
            both = [F.pad(p.values, (0, common - p.width)) if p.width < common else p.values for p in (a, b)]
            return [Piece(0, common, both[0] + both[1])]
        found: dict[int, Piece] = {}
        for piece in (*left, *right):
            same = found.get(piece.start)
            values = piece.values if same is None else piece.values + same.values
            found[piece.start] = Piece(piece.start, piece.width, values)
        return [found[start] for start in sorted(found)]


def _through(linear: SlicedLinear | None, norm: nn.Module | None, pieces: Pieces) -> Tensor:
    """Return all rows of a projection; the input itself where there is none."""
    if linear is None:
        values = [piece.values for piece in pieces]
        return values[0] if len(values) == 1 else torch.cat(values, dim=-1)
    return normed(norm, linear.pieces(pieces, slice(0, linear.out_features)))
