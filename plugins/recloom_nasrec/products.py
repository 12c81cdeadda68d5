"""What operators of features and of tokens have in common: normalisations, and a product with one behind it."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from recloom.search.operators import Operator, Pieces, SlicedLinear, SlicedNorm, Slices
from recloom.search.program import Program


def normed(norm: nn.Module | None, x: Tensor) -> Tensor:
    """Return norm(x), or x where there is no norm."""
    return x if norm is None else norm(x)


def norm_slices(norm: SlicedNorm | None, rows: slice, name: str = "norm") -> Slices:
    """Return the parts of a norm that an operator uses, if it has one."""
    return {} if norm is None else norm.slices(rows, name)


def lower_norm(
    norm: SlicedNorm | None, program: Program, inputs: Sequence[int], name: str, group: str, vectors: int = 1
) -> int:
    """Add a normalisation, if there is one; return the place of the result."""
    return inputs[0] if norm is None else norm.lower(program, inputs, f"{name}.norm", group, vectors)


class Product(Operator):
    """ReLU(norm(W x + b)) of one input.

    Args:
        columns: Width of the input.
        width: Width of the output.
        norm: Whether there is a layer normalisation.
    """

    def __init__(self, columns: int, width: int, norm: bool) -> None:
        super().__init__()
        self.linear = SlicedLinear(columns, width, bias=not norm)
        self.norm = SlicedNorm(width) if norm else None

    def forward(self, *inputs: Pieces, width: int) -> Tensor:
        """Return ... x width of one input, ... x columns."""
        return F.relu(normed(self.norm, self.linear.pieces(inputs[0], slice(0, width))))

    def slices(self, *inputs: Pieces, width: int) -> Slices:
        """Return the rows of the width and the columns of the pieces."""
        rows = slice(0, width)
        return self.linear.slices(inputs[0], rows, "linear") | norm_slices(self.norm, rows)
