"""Scores of candidate destinations for each event of a window, with their states as they are just before the event."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int, c_int64, c_void_p
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from recloom_edge.kernels import Plan, address, library

TILE = 32


class _Scores(ctypes.Structure):
    """Arguments of scores.c: the same fields in the same order."""

    _fields_ = [
        *((name, c_int64) for name in ("events", "candidates", "stride", "fixed", "width", "changes")),
        *((name, c_void_p) for name in ("asked", "rows", "states", "changed", "seen", "last", "logits")),
        *((name, c_void_p) for name in ("d_asked", "d_rows", "d_states")),
        ("scale", c_double),
    ]


def fits(*tensors: Tensor) -> bool:
    """Return whether the kernels of scores.c take these: float32 on CPU, of widths that are multiples of 16."""
    right = all(t.device.type == "cpu" and t.dtype == torch.float32 and t.shape[-1] % 16 == 0 for t in tensors)
    return right and library("scores") is not None


def version_logits(asked: Tensor, rows: Tensor, states: Tensor, plan: Plan, changed: Tensor) -> Tensor:
    """Return E x M scores of M candidates, which are the plan's first nodes: by fixed row and newest state.

    Args:
        asked: E x (s + d) queries, for fixed rows and for states.
        rows: M x s fixed rows.
        states: Rows of the window, see `recurrence.roll`.
        plan: The window's plan.
        changed: E x C, int32: the candidate whose state an event makes; -1: none.
    """
    if not torch.is_grad_enabled() and fits(asked, rows, states):
        out = _buffer(asked, rows)
        _call("edge_logits", asked.contiguous(), rows.contiguous(), states, plan, changed, out)
        return out[:, : len(rows)]
    events, count, changes = len(asked), len(rows), changed.shape[1]
    made = states[: 2 * events].view(events, 2, -1)[:, 2 - changes :].flatten(0, 1)
    versions = torch.cat([states[2 * events : 2 * events + count], made])
    fixed, moving = asked.split([rows.shape[1], states.shape[1]], dim=1)
    return fixed @ rows.t() + (moving @ versions.t()).gather(1, newest_versions(changed, count))


def newest_versions(changed: Tensor, candidates: int) -> Tensor:
    """Return E x M: the newest version of each candidate before each event.

    Of M candidates' versions, the first M are those of the window's start; then come those that events make, C each.
    """
    events, changes = changed.shape
    table = torch.arange(candidates, device=changed.device).repeat(events + 1, 1)
    event, side = (changed >= 0).nonzero(as_tuple=True)
    table[event + 1, changed[event, side].long()] = candidates + event * changes + side
    return table[:-1].cummax(0).values


def candidate_loss(
    asked: Tensor,
    rows: Tensor,
    states: Tensor,
    values: Tensor,
    plan: Plan,
    changed: Tensor,
    places: Tensor,
    target: Tensor,
    correction: Tensor | None,
) -> Tensor:
    """Return the mean cross-entropy of the destinations among the candidates.

    Args:
        asked: See `version_logits`.
        rows: Likewise.
        states: Likewise.
        values: E x K scores of the source's recent destinations, added to theirs.
        plan: Likewise.
        changed: Likewise.
        places: E x K, int32: those destinations' places among the candidates; -1: nowhere.
        target: E, int32: the destination's place.
        correction: M logarithms of how likely candidates are to be there, subtracted; None: all are.
    """
    if fits(asked, rows, states):
        tensors = (asked, rows, states, values, plan, changed, places, target, correction)
        return _CandidateLoss.apply(*tensors)  # type: ignore[no-any-return, no-untyped-call]
    logits = _with_recent(version_logits(asked, rows, states, plan, changed), values, places)
    return F.cross_entropy(logits if correction is None else logits - correction, target.long())


def log_probabilities(logits: Tensor, values: Tensor, places: Tensor) -> Tensor:
    """Return the logarithms of the candidates' probabilities; `logits` may be written over."""
    whole = logits._base if logits._base is not None else logits
    if logits.device.type != "cpu" or whole.shape[1] % TILE or library("scores") is None:
        return _with_recent(logits, values, places).log_softmax(dim=1)
    _softmax(whole, logits.shape[1], values, places, None, None)
    return logits


def _with_recent(logits: Tensor, values: Tensor, places: Tensor) -> Tensor:
    return logits.scatter_add(1, places.clamp(min=0).long(), values * (places >= 0))


def _buffer(asked: Tensor, rows: Tensor) -> Tensor:
    return asked.new_empty(len(asked), -(-len(rows) // TILE) * TILE)


class _CandidateLoss(torch.autograd.Function):
    """Scores and cross-entropy in one go; what is kept is the gradient of the scores."""

    @staticmethod
    def forward(
        ctx: Any,
        asked: Tensor,
        rows: Tensor,
        states: Tensor,
        values: Tensor,
        plan: Plan,
        changed: Tensor,
        places: Tensor,
        target: Tensor,
        correction: Tensor | None,
    ) -> Tensor:
        """Return the loss; see `candidate_loss`."""
        asked, rows = asked.contiguous(), rows.contiguous()
        logits = _buffer(asked, rows)
        _call("edge_logits", asked, rows, states, plan, changed, logits)
        total = _softmax(logits, len(rows), values, places, target, correction)
        ctx.plan = plan
        ctx.save_for_backward(asked, rows, states, changed, places, logits)
        return asked.new_tensor(total / max(len(asked), 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of asked, rows, states and values."""
        asked, rows, states, changed, places, logits = ctx.saved_tensors
        scale = float(gradient) / max(len(asked), 1)
        d_asked, d_states = torch.zeros_like(asked), torch.zeros_like(states)
        d_rows = torch.empty_like(rows)
        into = {"d_asked": d_asked, "d_rows": d_rows, "d_states": d_states}
        _call("edge_logits_backward", asked, rows, states, ctx.plan, changed, logits, scale, **into)
        d_values = logits.gather(1, places.clamp(min=0).long()) * ((places >= 0) * scale)
        return d_asked, d_rows, d_states, d_values, None, None, None, None, None


def _softmax(
    logits: Tensor, count: int, values: Tensor, places: Tensor, target: Tensor | None, correction: Tensor | None
) -> float:
    compiled = library("scores")
    assert compiled is not None
    compiled.edge_softmax.restype = c_double
    sizes = map(c_int64, (len(logits), count, logits.shape[1], places.shape[1]))
    tensors = (correction, values.contiguous(), places, target, logits)
    return float(compiled.edge_softmax(*sizes, *map(address, tensors)))


def _call(
    name: str,
    asked: Tensor,
    rows: Tensor,
    states: Tensor,
    plan: Plan,
    changed: Tensor,
    logits: Tensor,
    scale: float = 1.0,
    **more: Tensor,
) -> None:
    task = _Scores(len(asked), len(rows), logits.shape[1], rows.shape[1], states.shape[1], changed.shape[1])
    task.scale = scale
    tensors = {"asked": asked, "rows": rows, "states": states, "changed": changed, "seen": plan.seen, "last": plan.last}
    for field, tensor in {**tensors, "logits": logits, **more}.items():
        setattr(task, field, address(tensor))
    compiled = library("scores")
    assert compiled is not None
    getattr(compiled, name)(ctypes.byref(task), c_int(torch.get_num_threads()))
