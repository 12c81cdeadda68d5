"""The squared distance between what updates make of decoupled nodes and their free embeddings."""

from __future__ import annotations

from ctypes import c_double, c_int, c_int64
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from recloom_edge.kernels import Plan, address
from recloom_edge.recurrence import compiled_for

Detach = Literal["none", "states", "parameters"]


@dataclass(frozen=True)
class Matching:
    """weight Σ |states[r] - states[read[r]]|² over the rows r that events make of decoupled ends.

    Args:
        plan: The window's plan; what is read of decoupled ends are their free embeddings.
        free: By row of 2E, bool: it is of a decoupled end.
        weight: Of the loss.
        detach: "states": what was made gets no gradient; "parameters": what is read gets none.
    """

    plan: Plan
    free: Tensor
    weight: float
    detach: Detach = "none"

    def loss(self, states: Tensor) -> Tensor:
        """Return the loss in torch operations, from the rows of the window (see `recurrence.roll`)."""
        rows = self.free.nonzero().squeeze(1)
        made = states.index_select(0, rows)
        wanted = states.index_select(0, self.plan.read.flatten().to(rows.device)[rows])
        made = made.detach() if self.detach == "states" else made
        wanted = wanted.detach() if self.detach == "parameters" else wanted
        return self.weight * (made - wanted).square().sum()

    def value(self, states: Tensor) -> float:
        """Return the loss, compiled."""
        return self.weight * self._call(states, 0.0, None)

    def add_gradient(self, states: Tensor, scale: float, into: Tensor) -> None:
        """Add the loss's gradient, times `scale`, to that of the states, compiled."""
        self._call(states, 2 * self.weight * scale, into)

    def _call(self, states: Tensor, scale: float, into: Tensor | None) -> float:
        compiled = compiled_for(states)
        assert compiled is not None
        compiled.edge_matching.restype = c_double
        sizes = (c_int64(len(self.free) // 2), c_int64(states.shape[1]))
        sides = (c_int(self.detach != "states"), c_int(self.detach != "parameters"))
        tensors = map(address, (self.free, self.plan.read, states))
        return float(compiled.edge_matching(*sizes, *tensors, c_double(scale), *sides, address(into)))
