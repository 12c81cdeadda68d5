"""The states that a window's nodes begin with: remembered ones, initial ones of new nodes, free embeddings."""

from __future__ import annotations

from ctypes import c_int64
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recloom_edge.kernels import address, library
from recloom_edge.memory import Memory


def newest(memory: Memory, nodes: Tensor, initial: Tensor, free: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Return R x d states of nodes; a gradient goes to `initial` alone.

    Args:
        memory: What is remembered.
        nodes: R nodes, int32.
        initial: 2 x d states of nodes that had no event yet: of sources, of destinations.
        free: By node, int64: the row of the values that is read in its place, -1: none; and n x d values.
    """
    fits = memory.states.device.type == "cpu" and memory.states.dtype == torch.float32
    if fits and library("window") is not None:
        return _Newest.apply(initial, memory, nodes, free)  # type: ignore[no-any-return, no-untyped-call]
    rows = nodes.to(memory.states.device).long()
    new = memory.time[rows] < 0
    kind = (rows >= memory.offset).long() if memory.offset else torch.zeros_like(rows)
    found = torch.where(new[:, None], initial[kind], memory.states[rows])
    if free is None:
        return found
    index = free[0][rows]
    return torch.where((index >= 0)[:, None], free[1][index.clamp(min=0)], found)


class _Newest(torch.autograd.Function):
    """What window.c does."""

    @staticmethod
    def forward(ctx: Any, initial: Tensor, memory: Memory, nodes: Tensor, free: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return R x d."""
        initial = initial.contiguous()
        index, values = (None, None) if free is None else (free[0], free[1].contiguous())
        out, kind = initial.new_empty(len(nodes), initial.shape[1]), torch.empty(len(nodes), dtype=torch.int8)
        tensors = (nodes.contiguous(), memory.time, memory.states, initial, index, values, kind, out)
        sizes = map(c_int64, (*out.shape, memory.offset))
        compiled = library("window")
        assert compiled is not None
        compiled.edge_start(*sizes, *map(address, tensors))
        ctx.kind = kind
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the initial states."""
        found = gradient.new_zeros(2, gradient.shape[1])
        compiled = library("window")
        assert compiled is not None
        tensors = (ctx.kind, gradient.contiguous(), found)
        compiled.edge_start_backward(*map(c_int64, gradient.shape), *map(address, tensors))
        return found, None, None, None
