"""Operators of search spaces: built at a size, computed at that size or at a slice of it, and priced.

One class serves a supernet, where an operator is as large as any model needs it, and a model of its own, where it has
exactly its size: the slice is then all of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom.linear import linear
from recloom.search.program import Program
from recloom.search.slices import Index, part


class Piece(NamedTuple):
    """A part of an operator's input: it stands at columns start .. start + width - 1 of the whole input.

    Args:
        start: Its first column.
        width: Its number of columns.
        tensor: ... x width; None where only sizes matter.
    """

    start: int
    width: int
    tensor: Tensor | None = None

    @property
    def values(self) -> Tensor:
        """The tensor, which is there."""
        assert self.tensor is not None
        return self.tensor

    @property
    def columns(self) -> slice:
        """The columns where it stands."""
        return slice(self.start, self.start + self.width)


Pieces = Sequence[Piece]


def whole(tensor: Tensor) -> list[Piece]:
    """Return an input that is one piece."""
    return [Piece(0, tensor.shape[-1], tensor)]


def side_by_side(tensors: Iterable[Tensor]) -> list[Piece]:
    """Return an input that is made of tensors, one after the other."""
    found, start = [], 0
    for tensor in tensors:
        found.append(Piece(start, tensor.shape[-1], tensor))
        start += tensor.shape[-1]
    return found


def total(pieces: Pieces) -> int:
    """Return the number of columns of all pieces together."""
    return sum(piece.width for piece in pieces)


Slices = dict[str, list[Index]]
"""Parts of parameters, by the parameter's name; those of one parameter are put together along its last dimension."""


class Operator(nn.Module, ABC):
    """An operator of a search space.

    `forward` takes its inputs, each as pieces, and the width of its output; what is not in the pieces counts as zero
    and costs nothing. `slices` says which parts of the parameters that needs, so that a model of its own can be cut
    out of a supernet: an operator built at the size of the slice has parameters of just these shapes. Inputs have the
    columns last: features B x d, or tokens B x D x N.
    """

    @abstractmethod
    def forward(self, *inputs: Pieces, width: int) -> Tensor:
        """Return ... x width."""

    @abstractmethod
    def slices(self, *inputs: Pieces, width: int) -> Slices:
        """Return the parts of the parameters that `forward` with such inputs uses."""

    @abstractmethod
    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add what the operator, at the size that it was built with, does for a sample; return the place of its result.

        Args:
            program: What it is added to.
            inputs: Places of the results that it needs.
            name: Name of its works.
            group: Group of its works.
        """

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x weight^T + bias, for an operator with weights that are in no layer of it.

        What replaces products in layers of other modules (quantisation, noise) replaces this of an instance.
        """
        return F.linear(x, weight, bias)

    @torch.no_grad()
    def cut_from(self, other: Operator, *inputs: Pieces, width: int) -> None:
        """Take over the part of another's parameters that it uses for such inputs."""
        mine = dict(self.named_parameters())
        theirs = dict(other.named_parameters())
        slices = other.slices(*inputs, width=width)
        assert slices.keys() == mine.keys(), f"{type(self).__name__}: {sorted(slices)} and {sorted(mine)}"
        for name, parts in slices.items():
            mine[name].copy_(torch.cat([theirs[name][index] for index in parts], dim=-1))


class SlicedLinear(nn.Linear):
    """A linear layer on any pieces of its input, for any rows of its output.

    Args:
        in_features: Columns of the whole input.
        out_features: Rows.
        bias: Whether a bias is added.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        """Draw weights from Glorot's uniform distribution; biases are zero."""
        if self.weight.is_meta:
            return
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def pieces(self, inputs: Pieces, rows: slice) -> Tensor:
        """Return ... x rows: the sum over the pieces of W[rows, columns] x, and the bias."""
        bias = None if self.bias is None else part(self.bias, rows)
        if total(inputs) == self.in_features and rows == slice(0, self.out_features):
            values = [piece.values for piece in inputs]
            x = values[0] if len(values) == 1 else torch.cat(values, dim=-1)
            return linear(x.reshape(-1, x.shape[-1]), self.weight, bias).view(*x.shape[:-1], -1)
        out: Tensor | None = None
        for piece in inputs:
            weight = part(self.weight, rows, piece.columns).contiguous()  # small beside the product
            values_ = piece.values.reshape(-1, piece.width)
            out = linear(values_, weight, bias) if out is None else out + linear(values_, weight)
        assert out is not None
        return out.view(*inputs[0].values.shape[:-1], out.shape[-1])

    def slices(self, inputs: Pieces, rows: slice, name: str) -> Slices:
        """Return the parts that `pieces` uses."""
        found: Slices = {f"{name}.weight": [(rows, piece.columns) for piece in inputs]}
        if self.bias is not None:
            found[f"{name}.bias"] = [(rows,)]
        return found

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str, vectors: int = 1) -> int:
        """Add the product, of `vectors` vectors a sample."""
        return program.add(
            name, "matmul", self.in_features, self.out_features, vectors, inputs, group, self.bias is not None
        )


class SlicedNorm(nn.LayerNorm):
    """A layer normalisation over the columns that there are.

    Args:
        width: Columns of the whole input.
        scale: Initial value of the weights.
    """

    def __init__(self, width: int, scale: float = 1.0) -> None:
        super().__init__(width)
        if scale != 1.0:
            nn.init.constant_(self.weight, scale)

    def forward(self, input: Tensor) -> Tensor:
        """Map ... x d to ... x d, d up to `width`."""
        rows = slice(0, input.shape[-1])
        return F.layer_norm(input, (input.shape[-1],), part(self.weight, rows), part(self.bias, rows), self.eps)

    def slices(self, rows: slice, name: str) -> Slices:
        """Return the parts that `forward` uses."""
        return {f"{name}.weight": [(rows,)], f"{name}.bias": [(rows,)]}

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str, vectors: int = 1) -> int:
        """Add the normalisation of `vectors` vectors a sample."""
        width = self.normalized_shape[0]
        return program.add(name, "elementwise", 1, width, vectors, inputs, group, parameters=2 * width)
