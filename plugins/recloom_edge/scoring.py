"""Scores of candidate destinations for each event of a window, with their states as they are just before the event."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int, c_int64, c_void_p
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recloom_edge.kernels import Plan, address, library

TILE = 32


@dataclass(frozen=True)
class Targets:
    """What is looked for among M candidates, which are the first nodes of a window's plan.

    Args:
        changed: E x C, int32: the candidates whose states an event makes, of its last C ends; -1: none.
        places: E x K, int32: where the source's recent destinations are among the candidates; -1: nowhere.
        target: E, int32: where the destination is.
        correction: M logarithms of how likely candidates are to be there, subtracted; None: all destinations are.
    """

    changed: Tensor
    places: Tensor
    target: Tensor
    correction: Tensor | None = None


def fits(*tensors: Tensor) -> bool:
    """Return whether the kernels of scores.c take these: float32 on CPU, of widths that are multiples of 16."""
    right = all(t.device.type == "cpu" and t.dtype == torch.float32 and t.shape[-1] % 16 == 0 for t in tensors)
    return right and library("scores") is not None


def version_logits(asked: Tensor, rows: Tensor, states: Tensor, plan: Plan, changed: Tensor) -> Tensor:
    """Return E x M scores of M candidates: of fixed rows and newest states. Compiled where no gradient is wanted.

    Args:
        asked: E x (s + d) queries, for fixed rows and for states.
        rows: M x s fixed rows.
        states: Rows of the window, see `recurrence.roll`.
        plan: The window's plan, whose first nodes are the candidates.
        changed: See `Targets`.
    """
    if not torch.is_grad_enabled() and fits(asked, rows, states):
        return score(asked.contiguous(), rows.contiguous(), states, plan, changed)[:, : len(rows)]
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


def cross_entropy(logits: Tensor, values: Tensor, targets: Targets) -> Tensor:
    """Return the mean cross-entropy of the destinations, with E x K scores `values` of recent ones added."""
    logits = _with_recent(logits, values, targets.places)
    return F.cross_entropy(logits if targets.correction is None else logits - targets.correction, targets.target.long())


def log_probabilities(logits: Tensor, values: Tensor, places: Tensor) -> Tensor:
    """Return the logarithms of the candidates' probabilities; `logits` may be written over."""
    whole = logits._base if logits._base is not None else logits
    if logits.device.type != "cpu" or whole.shape[1] % TILE or library("scores") is None:
        return _with_recent(logits, values, places).log_softmax(dim=1)
    softmax(whole, logits.shape[1], values, places)
    return logits


def _with_recent(logits: Tensor, values: Tensor, places: Tensor) -> Tensor:
    return logits.scatter_add(1, places.clamp(min=0).long(), values * (places >= 0))


# Calls of scores.c


class _Scores(ctypes.Structure):
    """Arguments of scores.c: the same fields in the same order."""

    _fields_ = [
        *((name, c_int64) for name in ("events", "candidates", "stride", "fixed", "width", "changes")),
        *((name, c_void_p) for name in ("asked", "rows", "states", "changed", "seen", "last", "logits")),
        *((name, c_void_p) for name in ("d_asked", "d_rows", "d_states")),
        ("scale", c_double),
    ]


def score(asked: Tensor, rows: Tensor, states: Tensor, plan: Plan, changed: Tensor) -> Tensor:
    """Return E x M scores in the first columns of a wider table; see `version_logits`."""
    logits = asked.new_empty(len(asked), -(-len(rows) // TILE) * TILE)
    _call("edge_logits", asked, rows, states, plan, changed, logits)
    return logits


def score_backward(
    asked: Tensor, rows: Tensor, states: Tensor, plan: Plan, changed: Tensor, gradient: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of asked, rows and states, from that of what `score` returned, times `scale`."""
    found = torch.zeros_like(asked), torch.empty_like(rows), torch.zeros_like(states)
    into = dict(zip(("d_asked", "d_rows", "d_states"), found, strict=True))
    _call("edge_logits_backward", asked, rows, states, plan, changed, gradient, scale, **into)
    return found


def softmax(logits: Tensor, count: int, values: Tensor, places: Tensor, targets: Targets | None = None) -> float:
    """Make what `score` returned logarithms of probabilities; or, with targets, the gradient of the cross-entropies.

    Returns their sum over the events, 0 without targets. `count` is M; the correction is that of the targets.
    """
    compiled = library("scores")
    assert compiled is not None
    compiled.edge_softmax.restype = c_double
    sizes = map(c_int64, (len(logits), count, logits.shape[1], places.shape[1]))
    wanted = (None, None) if targets is None else (targets.correction, targets.target)
    tensors = (wanted[0], values.contiguous(), places, wanted[1], logits)
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
