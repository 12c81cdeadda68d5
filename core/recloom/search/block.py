"""Blocks: what architectures composed from scratch are made of. A plugin adds one in a few lines.

A block is no module: it says which shapes it makes of which, which weights that takes, and what it computes with
weights that it is handed. So one definition serves a model of its own, whose weights have just these shapes, a
supernet, which hands it the leading part of larger ones, many models at once under `torch.func.vmap`, and the costs.

    class Square(Block):
        inputs = ("any",)

        def forward(self, weights, x):
            return x * x

is a block, and `catalog.blocks.add("square", "mine:Square")` makes it one that spaces take by its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from recloom.linear import linear
from recloom.search.program import Program

Port = Literal["dense", "sparse", "any", "alike", "same"]
"""What an input takes: features (B x d), tokens (B x N x D), either; what is as the first input is: its kind, shape."""

Init = Literal["glorot", "zeros", "ones"]


@dataclass(frozen=True)
class Shape:
    """The shape of a result for one sample.

    Args:
        width: Number of features d, or width D of a token.
        tokens: Number of tokens N; 0 for features.
    """

    width: int
    tokens: int = 0

    @property
    def kind(self) -> Literal["dense", "sparse"]:
        """Features, or tokens."""
        return "sparse" if self.tokens else "dense"

    @property
    def size(self) -> int:
        """Number of values."""
        return self.width * max(1, self.tokens)

    @property
    def vectors(self) -> int:
        """Number of vectors of `width` values."""
        return max(1, self.tokens)


@dataclass(frozen=True)
class Weight:
    """A tensor that a block needs.

    Args:
        shape: Its shape; for `glorot` out x in. No dimension gets smaller as inputs or the width get larger.
        init: Initial values: Glorot's uniform distribution, zeros, ones.
        trained: Whether it is a parameter; otherwise a buffer, which `forward` may update in place while training.
    """

    shape: tuple[int, ...]
    init: Init = "glorot"
    trained: bool = True

    def fill(self, tensor: Tensor) -> None:
        """Give `tensor` its initial values."""
        if self.init == "glorot":
            nn.init.xavier_uniform_(tensor)
        else:
            nn.init.constant_(tensor, float(self.init == "ones"))


class Weights(dict[str, Tensor]):
    """A block's tensors by name."""

    training: bool = False
    """Whether this is a training step."""
    product: Callable[[Tensor, Tensor, Tensor | None, str], Tensor] | None = None
    """Computes products with weights in torch's place: the activations, the weight, the bias, the weight's name."""

    def linear(self, x: Tensor, weight: str, bias: str = "") -> Tensor:
        """Return x W^T + b for weights by their names: what blocks with products call, so that they can be replaced."""
        b = self[bias] if bias else None
        return linear(x, self[weight], b) if self.product is None else self.product(x, self[weight], b, weight)


class Block(ABC):
    """A block at the size that its inputs and its width give it.

    Spaces bring inputs to what `inputs` asks for: tokens are flattened to features, features are cut into tokens, and
    where shapes have to be the same the second is projected. Outputs above a space's limits are projected down. So a
    constructor takes any shapes of the right kinds.

    Args:
        inputs: The shapes of its inputs.
        width: The width that was chosen for it; used if `sized`.
    """

    inputs: ClassVar[tuple[Port, ...]] = ("any",)
    """Its inputs; the first is none of "alike" and "same"."""
    sized: ClassVar[bool] = False
    """Whether the width matters."""

    def __init__(self, inputs: Sequence[Shape], width: int) -> None:
        self.shapes = tuple(inputs)
        self.width = width

    @property
    def shape(self) -> Shape:
        """The shape of the output: by default that of the first input."""
        return self.shapes[0]

    def weights(self) -> dict[str, Weight]:
        """Return what it needs; by default nothing."""
        return {}

    @abstractmethod
    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        """Return B x d or B x N x D of B x d or B x N x D each."""

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add what it does for a sample; return the place of its result (see `recloom.search.operators.Operator`).

        By default: elementwise work on the output's values, with all its weights.
        """
        parameters = sum(_count(weight) for weight in self.weights().values() if weight.trained)
        shape = self.shape
        return program.add(name, "elementwise", 1, shape.width, shape.vectors, inputs, group, parameters=parameters)


def _count(weight: Weight) -> int:
    found = 1
    for size in weight.shape:
        found *= size
    return found
