"""The squared distance between what updates make of decoupled nodes and their free embeddings."""

from __future__ import annotations

from ctypes import c_double, c_int, c_int64
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recloom_edge.kernels import Plan, address
from recloom_edge.recurrence import compiled_for

Detach = Literal["none", "states", "parameters"]


def distance(states: Tensor, plan: Plan, free: Tensor, detach: Detach) -> Tensor:
    """Return Σ |states[r] - states[read[r]]|² over the rows r of events' ends with `free`.

    Args:
        states: Rows of the window, see `recurrence.roll`.
        plan: The window's plan.
        free: By row of 2E, bool.
        detach: "states": what was made gets no gradient; "parameters": what is read gets none.
    """
    if compiled_for(states) is not None:
        return _Distance.apply(states, plan, free, detach)  # type: ignore[no-any-return, no-untyped-call]
    rows = free.nonzero().squeeze(1)
    made = states.index_select(0, rows)
    wanted = states.index_select(0, plan.read.flatten().to(rows.device)[rows])
    made = made.detach() if detach == "states" else made
    wanted = wanted.detach() if detach == "parameters" else wanted
    return (made - wanted).square().sum()


class _Distance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, plan: Plan, free: Tensor, detach: Detach) -> Tensor:
        """Return the sum; see `distance`."""
        ctx.plan, ctx.detach = plan, detach
        ctx.save_for_backward(states, free)
        return states.new_tensor(_call(states, plan, free))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the states."""
        states, free = ctx.saved_tensors
        into = torch.zeros_like(states)
        _call(states, ctx.plan, free, 2 * float(gradient), ctx.detach, into)
        return into, None, None, None


def _call(
    states: Tensor, plan: Plan, free: Tensor, scale: float = 0.0, detach: Detach = "none", into: Tensor | None = None
) -> float:
    compiled = compiled_for(states)
    assert compiled is not None
    compiled.edge_matching.restype = c_double
    sizes = (c_int64(len(free) // 2), c_int64(states.shape[1]))
    sides = (c_int(detach != "states"), c_int(detach != "parameters"))
    tensors = map(address, (free, plan.read, states))
    return float(compiled.edge_matching(*sizes, *tensors, c_double(scale), *sides, address(into)))
