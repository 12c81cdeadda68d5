"""What is put before and behind blocks, so that shapes fit: nobody chooses them, the shapes decide."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from recloom.search.block import Block, Shape, Weight, Weights
from recloom.search.program import Program
from recloom_rankitect.blocks.features import Linear


class Flatten(Block):
    """Tokens as features, one after the other."""

    inputs = ("sparse",)

    @property
    def shape(self) -> Shape:
        """All values."""
        return Shape(self.shapes[0].size)

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map B x N x D to B x N D."""
        return inputs[0].flatten(1)

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add nothing: it is a view."""
        return inputs[0]


class Cut(Block):
    """Features as tokens of `width` values, one after the other."""

    inputs = ("dense",)
    sized = True

    @property
    def shape(self) -> Shape:
        """As many tokens as there are values for; the features' number is a multiple of the width."""
        return Shape(self.width, self.shapes[0].width // self.width)

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map B x N D to B x N x D."""
        return inputs[0].unflatten(1, (self.shape.tokens, self.width))

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add nothing: it is a view."""
        return inputs[0]


class Project(Linear):
    """A linear layer to the width that is needed."""


class ProjectTokens(Block):
    """Weighted sums of tokens, as many as are needed: `width` of them."""

    inputs = ("sparse",)
    sized = True

    @property
    def shape(self) -> Shape:
        """`width` tokens."""
        return Shape(self.shapes[0].width, self.width)

    def weights(self) -> dict[str, Weight]:
        """Return the weights over tokens."""
        return {"weight": Weight((self.width, self.shapes[0].tokens))}

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Map B x N x D to B x width x D."""
        return weights.linear(inputs[0].transpose(1, 2), "weight").transpose(1, 2)

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add the product: one vector a column."""
        shape = self.shapes[0]
        return program.add(name, "matmul", shape.tokens, self.width, shape.width, inputs, group)


def to_kind(shape: Shape, kind: str, dim: int) -> list[Block]:
    """Return the adapters that make features, or tokens of width `dim`, of a result of `shape`."""
    if shape.kind == kind:
        return []
    if kind == "dense":
        return [Flatten([shape], 0)]
    found: list[Block] = []
    if shape.width % dim:
        found.append(Project([shape], -(-shape.width // dim) * dim))
    return [*found, Cut([found[-1].shape if found else shape], dim)]


def to_shape(shape: Shape, wanted: Shape, dim: int) -> list[Block]:
    """Return the adapters that make a result of shape `wanted` of one of `shape`."""
    found = to_kind(shape, wanted.kind, dim)
    shape = found[-1].shape if found else shape
    if shape == wanted:
        return found
    if wanted.tokens:
        return [*found, ProjectTokens([shape], wanted.tokens)]
    return [*found, Project([shape], wanted.width)]
