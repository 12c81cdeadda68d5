"""The recurrence over a window: all levels in one call, forward and backward, or level by level in torch operations."""

from __future__ import annotations

import ctypes
import itertools
from ctypes import c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recloom_edge.cells import GRUUpdate, NormalisedRNN, RNNUpdate, UpdateCell
from recloom_edge.kernels import Plan, address, library


def roll(cell: UpdateCell, start: Tensor, inputs: Tensor, plan: Plan, compiled: bool = True) -> Tensor:
    """Return the window's states, (2E + R) x d: of every event's ends (rows 2e and 2e + 1), then those of the start.

    Args:
        cell: The update.
        start: R x d states at the window's start.
        inputs: E x 2 x gates d, see `UpdateCell.brought`.
        plan: What is computed from what.
        compiled: Use the compiled kernel where there is one: RNNs and GRU in float32 on CPU, d a multiple of 16.
    """
    if compiled and type(cell) in (RNNUpdate, NormalisedRNN, GRUUpdate) and compiled_for(start) is not None:
        bias = cell.bias if isinstance(cell, GRUUpdate) else None
        normalised = isinstance(cell, NormalisedRNN)
        return Recurrence.apply(start, inputs, cell.own, cell.other, bias, plan, normalised)  # type: ignore[no-untyped-call]
    return by_level(cell, start, inputs, plan)


def compiled_for(states: Tensor) -> ctypes.CDLL | None:
    """Return recurrence.c for states that it takes: float32 on CPU, of a width that is a multiple of 16."""
    fits = states.device.type == "cpu" and states.dtype == torch.float32 and states.shape[1] % 16 == 0
    return library("recurrence") if fits else None


def by_level(cell: UpdateCell, start: Tensor, inputs: Tensor, plan: Plan) -> Tensor:
    """Do as `roll` does in torch operations, some dozen a level."""
    place, order = plan.place.to(start.device).long(), plan.order.to(start.device).long()
    free = (plan.read >= 2 * len(place)).to(start.device) & (plan.seen != plan.read).to(start.device)
    decoupled = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    decoupled[place[free]] = True  # a node that was there before and is read as at the start
    writes = ~decoupled[place]  # E x 2
    every, bounds = not bool(free.any()), plan.bounds.tolist()
    states, made = start, []
    for level in range(plan.levels):
        events = order[bounds[level] : bounds[level + 1]]
        here = place[events]
        ends = [states.index_select(0, here[:, side]) for side in (0, 1)]
        new = torch.cat([cell.step(side, ends[side], ends[1 - side], inputs[events, side]) for side in (0, 1)])
        made.append(new)
        rows = here.t().flatten()
        if not every:
            kept = writes[events].t().flatten().nonzero().squeeze(1)
            rows, new = rows[kept], new[kept]
        states = states.index_copy(0, rows, new)
    # what was made lies by level, first sources and then destinations; rows are by event
    sizes = [end - begin for begin, end in itertools.pairwise(bounds)]
    at = [2 * begin + torch.arange(2 * size).view(2, size).t() for begin, size in zip(bounds, sizes, strict=False)]
    rows = torch.empty_like(place)
    rows[order] = torch.cat(at).to(start.device)
    return torch.cat([torch.cat(made).index_select(0, rows.flatten()), start])


class Recurrence(torch.autograd.Function):
    """All levels in one call of recurrence.c each way; weights' gradients are one product for the window."""

    @staticmethod
    def forward(
        ctx: Any,
        start: Tensor,
        inputs: Tensor,
        own: Tensor,
        other: Tensor,
        bias: Tensor | None,
        plan: Plan,
        normalised: bool,
    ) -> Tensor:
        """Return (2E + R) x d states."""
        rows, width = inputs.shape[0] * 2, start.shape[1]
        states = torch.empty(rows + len(start), width)
        states[rows:] = start
        saved = torch.empty(rows if bias is not None else 0, 4 * width)
        norms = {"norms": torch.empty(rows)} if normalised else {}
        inputs = inputs.contiguous()
        turned = [weight.transpose(1, 2).contiguous() for weight in (own, other)]
        _call("edge_forward", plan, states, turned, bias, inputs=inputs, saved=saved, **norms)
        ctx.plan, ctx.gated, ctx.norms = plan, bias is not None, norms
        ctx.save_for_backward(states, saved, own, other, *([bias] if bias is not None else []))
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of start, inputs, own, other and bias."""
        states, saved, own, other, *rest = ctx.saved_tensors
        plan: Plan = ctx.plan
        rows, width, gates = plan.read.numel(), states.shape[1], own.shape[1] // states.shape[1]
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        pre = torch.empty(rows, gates * width)
        hidden = torch.empty(rows if ctx.gated else 0, width)
        scratch = torch.empty(rows, 2 * width)
        bias = rest[0] if rest else None
        weights = [own.contiguous(), other.contiguous()]
        _call("edge_backward", plan, states, weights, bias, saved=saved, gradient=gradient, pre=pre, hidden=hidden,
              scratch=scratch, **ctx.norms)  # fmt: skip
        d_own, d_other = torch.empty_like(own), torch.empty_like(other)
        for side in (0, 1):
            inner = pre[side::2]
            outer = torch.cat([inner[:, : 2 * width], hidden[side::2]], dim=1) if ctx.gated else inner
            d_own[side] = outer.t() @ states.index_select(0, plan.read[:, side])
            d_other[side] = inner.t() @ states.index_select(0, plan.read[:, 1 - side])
        d_bias = hidden.view(-1, 2, width).sum(0) if ctx.gated else None
        return gradient[rows:], pre.view(-1, 2, gates * width), d_own, d_other, d_bias, None, None


class _Task(ctypes.Structure):
    """Arguments of recurrence.c: the same fields in the same order."""

    _fields_ = [
        *((name, c_int64) for name in ("width", "gates", "events", "levels")),
        *((name, c_void_p) for name in ("order", "bounds", "read", "states", "inputs")),
        *((name, c_void_p * 2) for name in ("self", "other", "bias")),
        *((name, c_void_p) for name in ("saved", "norms", "gradient", "pre", "hidden", "scratch")),
    ]


def _call(name: str, plan: Plan, states: Tensor, weights: list[Tensor], bias: Tensor | None, **others: Tensor) -> None:
    def sides(tensor: Tensor | None) -> Any:
        return (c_void_p * 2)(*(None if tensor is None else tensor[side].data_ptr() for side in (0, 1)))

    width = states.shape[1]
    task = _Task(width=width, gates=max(weights[0].shape[1:]) // width, events=len(plan.order), levels=plan.levels)
    task.order, task.bounds, task.read = map(address, (plan.order, plan.bounds, plan.read))
    task.states = address(states)
    task.self = sides(weights[0])
    task.other = sides(weights[1])
    kept = None if bias is None else bias.contiguous()
    task.bias = sides(kept)
    for field, tensor in others.items():
        setattr(task, field, address(tensor))
    compiled = library("recurrence")
    assert compiled is not None
    getattr(compiled, name)(ctypes.byref(task), c_int(torch.get_num_threads()))
