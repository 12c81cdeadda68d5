"""What an event makes of its ends' states: the update cells, chosen by name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recloom.errors import unknown

CellName = Literal["rnn", "gru", "identity"]


class UpdateCell(nn.Module, ABC):
    """The new state of one end of an event, from its own state, the other end's, and what comes from outside.

    Args:
        width: d, the width of a state.
        inputs: Widths of an event's messages, to its source and to its destination.

    Attributes:
        gates: The message is brought to gates x d values before the recurrence.
    """

    gates: int = 1

    def __init__(self, width: int, inputs: tuple[int, int]) -> None:
        super().__init__()
        self.width = width
        self.message = nn.ModuleList([nn.Linear(size, self.gates * width) for size in inputs])

    def brought(self, messages: tuple[Tensor, Tensor]) -> Tensor:
        """Return E x 2 x gates d: the messages of sources and destinations as the recurrence takes them."""
        weights = [layer.get_parameter(name) for layer in self.message for name in ("weight", "bias")]
        return _Brought.apply(*messages, *weights)  # type: ignore[no-any-return, no-untyped-call]

    @abstractmethod
    def step(self, side: int, own: Tensor, other: Tensor, inputs: Tensor) -> Tensor:
        """Return n x d new states of one side (0: sources), from n x d states and n x gates d inputs."""


class _Brought(torch.autograd.Function):
    """A linear map of each side's messages, written to where the recurrence reads them."""

    @staticmethod
    def forward(
        ctx: Any, first: Tensor, second: Tensor, weight: Tensor, bias: Tensor, other_weight: Tensor, other_bias: Tensor
    ) -> Tensor:
        """Return E x 2 x gates d."""
        ctx.save_for_backward(first, second, weight, other_weight)
        out = first.new_empty(len(first), 2, len(bias))
        torch.addmm(bias, first, weight.t(), out=out[:, 0])
        torch.addmm(other_bias, second, other_weight.t(), out=out[:, 1])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of messages, weights and biases."""
        first, second, weight, other_weight = ctx.saved_tensors
        here, there = gradient.unbind(1)
        own = here @ weight if ctx.needs_input_grad[0] else None
        other = there @ other_weight if ctx.needs_input_grad[1] else None
        return own, other, here.t() @ first, here.sum(0), there.t() @ second, there.sum(0)


class RNNUpdate(UpdateCell):
    """h' = tanh(x + A h + B g), as in JODIE (Kumar et al. 2019, equation 1)."""

    def __init__(self, width: int, inputs: tuple[int, int]) -> None:
        super().__init__(width, inputs)
        self.own, self.other = _weights(self.gates * width, width), _weights(self.gates * width, width)

    def step(self, side: int, own: Tensor, other: Tensor, inputs: Tensor) -> Tensor:
        """See the base class."""
        return torch.tanh(inputs + own @ self.own[side].t() + other @ self.other[side].t())


class NormalisedRNN(RNNUpdate):
    """JODIE's cell in the authors' code: the RNN's state, brought to length 1."""

    def step(self, side: int, own: Tensor, other: Tensor, inputs: Tensor) -> Tensor:
        """See the base class."""
        return F.normalize(super().step(side, own, other, inputs))


class GRUUpdate(UpdateCell):
    """A GRU whose hidden state is the end's own and whose input is the other end's and the message, as in TGN."""

    gates = 3

    def __init__(self, width: int, inputs: tuple[int, int]) -> None:
        super().__init__(width, inputs)
        self.own, self.other = _weights(self.gates * width, width), _weights(self.gates * width, width)
        self.bias = nn.Parameter(torch.zeros(2, width))

    def step(self, side: int, own: Tensor, other: Tensor, inputs: Tensor) -> Tensor:
        """See the base class."""
        hidden = own @ self.own[side].t()
        first, second, third = (inputs + other @ self.other[side].t()).chunk(3, dim=1)
        a, b, c = hidden.chunk(3, dim=1)
        reset, keep = torch.sigmoid(first + a), torch.sigmoid(second + b)
        new = torch.tanh(third + reset * (c + self.bias[side]))
        return (1 - keep) * new + keep * own


class IdentityUpdate(UpdateCell):
    """Nothing changes: what a model without recurrence can do."""

    def step(self, side: int, own: Tensor, other: Tensor, inputs: Tensor) -> Tensor:
        """See the base class."""
        return own


def _weights(rows: int, columns: int) -> nn.Parameter:
    bound = 1 / math.sqrt(columns)
    return nn.Parameter(torch.empty(2, rows, columns).uniform_(-bound, bound))


CELLS: dict[str, type[UpdateCell]] = {"rnn": RNNUpdate, "gru": GRUUpdate, "identity": IdentityUpdate}


def make_cell(name: str, width: int, inputs: tuple[int, int]) -> UpdateCell:
    """Return the cell called `name`."""
    if name not in CELLS:
        raise unknown("update cell", name, CELLS)
    return CELLS[name](width, inputs)
