"""What an event's source asks with, and what its recent destinations score by their age."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_uint64, c_void_p
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recloom_edge.kernels import Plan, address, library

TIME_FEATURES = 7
HIDDEN = 32


def time_features(spans: Tensor, ticks: int) -> Tensor:
    """Return features of spans of time: ... x 7, for spans in ticks; -1 stands for "never" and gives zeros.

    The logarithm, and 1 / (1 + t / T) for T of a minute, an hour, a day, a week and a month; whether there is one.
    Spans are divided as 64-bit numbers: only the result is single precision.
    """
    compiled = library("query")
    if compiled is not None and spans.device.type == "cpu":
        out = torch.empty(*spans.shape, TIME_FEATURES)
        compiled.edge_time_features(c_int64(spans.numel()), c_int64(ticks), address(spans.contiguous()), address(out))
        return out
    known = spans >= 0
    seconds = spans.clamp(min=0).double() / ticks
    scales = torch.tensor([60.0, 3600.0, 86_400.0, 604_800.0, 2_592_000.0], dtype=torch.float64, device=spans.device)
    parts = [torch.log1p(seconds)[..., None] / 10, 1 / (1 + seconds[..., None] / scales)]
    values = torch.cat(parts, dim=-1).masked_fill(~known[..., None], 0)
    return torch.cat([values, known[..., None].double()], dim=-1).float()


def query_input(
    states: Tensor, before: Tensor, project: Tensor, gap: Tensor, plan: Plan, dropout: float = 0.0
) -> Tensor:
    """Return E x (d + s + 7): the source's state, projected to the event's time as in JODIE; `before`; `gap`.

    Args:
        states: Rows of the window, see `recurrence.roll`.
        before: E x s, of the source's last destination.
        project: d x 7.
        gap: E x 7 features of the time since the source's last event.
        plan: The window's plan.
        dropout: Share of the values that are dropped.
    """
    if not torch.is_grad_enabled() and states.device.type == "cpu" and library("query") is not None:
        return Query(before.contiguous(), project, gap.contiguous(), plan, dropout).forward(states)
    own = states.index_select(0, plan.seen[:, 0].to(states.device).long())
    return F.dropout(query_rows(own, before, project, gap), dropout)


def query_rows(own: Tensor, before: Tensor, project: Tensor, gap: Tensor) -> Tensor:
    """Return E x (d + s + 7), from E x d states of sources; see `query_input`."""
    return torch.cat([own * (1 + gap @ project.t()), before, gap], dim=1)


class _Query(ctypes.Structure):
    """Arguments of query.c: the same fields in the same order."""

    _fields_ = [
        *((name, c_int64) for name in ("events", "width", "fixed", "dropped")),
        ("seed", c_uint64),
        *((name, c_void_p) for name in ("seen", "states", "before", "gap", "project", "out")),
        *((name, c_void_p) for name in ("d_states", "d_before", "d_project")),
    ]


class Query:
    """What `query_input` does, compiled, and its gradients. What is dropped is drawn again from the same seed."""

    def __init__(self, before: Tensor, project: Tensor, gap: Tensor, plan: Plan, dropout: float) -> None:
        self.tensors = {"seen": plan.seen, "before": before, "project": project, "gap": gap}
        self.seed = int(torch.randint(2**62, ())) if dropout else 0
        self.dropped = round(dropout * 65_536)

    def forward(self, states: Tensor) -> Tensor:
        """Return E x (d + s + 7)."""
        width = states.shape[1] + self.tensors["before"].shape[1] + TIME_FEATURES
        out = states.new_empty(len(self.tensors["gap"]), width)
        self._call("edge_query", states=states, out=out)
        return out

    def backward(self, states: Tensor, gradient: Tensor, d_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of `before` and `project`; add those of the states to `d_states`."""
        found = torch.empty_like(self.tensors["before"]), torch.empty_like(self.tensors["project"])
        into = {"d_states": d_states, "d_before": found[0], "d_project": found[1]}
        self._call("edge_query_backward", states=states, out=gradient, **into)
        return found

    def _call(self, name: str, states: Tensor, **tensors: Tensor) -> None:
        sizes = (len(self.tensors["gap"]), states.shape[1], self.tensors["before"].shape[1])
        _call(name, _Query(*sizes, self.dropped, self.seed), states=states, **self.tensors, **tensors)


class AgeScores(nn.Module):
    """W_r relu(A [age_r, age_0] + a) + b_r: what the r-th of a source's recent destinations scores, by its age.

    Args:
        recent: K, the number of recent destinations.
    """

    def __init__(self, recent: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2 * TIME_FEATURES, HIDDEN), nn.Linear(HIDDEN, recent)

    def forward(self, ages: Tensor, places: Tensor) -> Tensor:
        """Return E x K scores, from E x K x 7 features; 0 where `places` (E x K, int32) is negative."""
        first, second = self.first, self.second
        if ages.device.type == "cpu" and ages.dtype == torch.float32 and library("query") is not None:
            weights = (first.weight, first.bias, second.weight, second.bias)
            return _Ages.apply(ages, places, *weights)  # type: ignore[no-any-return, no-untyped-call]
        hidden = torch.relu(first(torch.cat([ages, ages[:, :1].expand_as(ages)], dim=2)))
        return ((hidden * second.weight).sum(2) + second.bias) * (places >= 0)


class _AgeTask(ctypes.Structure):
    _fields_ = [
        ("events", c_int64),
        ("recent", c_int64),
        *((name, c_void_p) for name in ("places", "ages", "first", "bias", "second", "shift", "out")),
        *((name, c_void_p) for name in ("d_first", "d_bias", "d_second", "d_shift")),
    ]


class _Ages(torch.autograd.Function):
    """The layers of AgeScores for the pairs that count."""

    @staticmethod
    def forward(
        ctx: Any, ages: Tensor, places: Tensor, first: Tensor, bias: Tensor, second: Tensor, shift: Tensor
    ) -> Tensor:
        """Return E x K scores."""
        turned = first.t().contiguous()
        ctx.save_for_backward(ages, places, turned, bias, second, shift)
        out = ages.new_empty(places.shape)
        _call("edge_ages", _AgeTask(*places.shape), places=places, ages=ages, first=turned, bias=bias, second=second,
              shift=shift, out=out)  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the layers' weights."""
        ages, places, turned, bias, second, shift = ctx.saved_tensors
        found = [torch.zeros_like(weight) for weight in (turned, bias, second, shift)]
        names = ("d_first", "d_bias", "d_second", "d_shift")
        into = dict(zip(names, found, strict=True))
        _call("edge_ages_backward", _AgeTask(*places.shape), places=places, ages=ages, first=turned, bias=bias,
              second=second, shift=shift, out=gradient.contiguous(), **into)  # fmt: skip
        return None, None, found[0].t(), *found[1:]


def _call(name: str, task: ctypes.Structure, **tensors: Tensor) -> None:
    for field, tensor in tensors.items():
        setattr(task, field, address(tensor))
    compiled = library("query")
    assert compiled is not None
    getattr(compiled, name)(ctypes.byref(task))
