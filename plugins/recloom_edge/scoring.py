"""Scores of candidate destinations for each event of a window, with their states as they are just before the event."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int, c_int64, c_void_p

import torch
import torch.nn.functional as F
from torch import Tensor

from recloom_edge.candidates import Groups
from recloom_edge.kernels import Plan, address, library
from recloom_edge.targets import Targets

TILE = 32


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
        found = Scoring(asked.contiguous(), rows.contiguous(), states, plan, Targets(changed, changed, changed)).score()
        return found[:, : len(rows)]
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
    correction = targets.corrections(torch.arange(len(logits), device=logits.device))
    return F.cross_entropy(logits if correction is None else logits - correction, targets.target.long())


def log_probabilities(logits: Tensor, values: Tensor, places: Tensor) -> Tensor:
    """Return the logarithms of the candidates' probabilities; `logits` may be written over."""
    whole = logits._base if logits._base is not None else logits
    if logits.device.type != "cpu" or whole.shape[1] % TILE or library("scores") is None:
        return _with_recent(logits, values, places).log_softmax(dim=1)
    task = _Scores(len(whole), logits.shape[1], whole.shape[1])
    task.logits = address(whole)
    softmax(task, values, places)
    return logits


def _with_recent(logits: Tensor, values: Tensor, places: Tensor) -> Tensor:
    return logits.scatter_add(1, places.clamp(min=0).long(), values * (places >= 0))


# Calls of scores.c


class _Scores(ctypes.Structure):
    """Arguments of scores.c: the same fields in the same order."""

    _fields_ = [
        *((name, c_int64) for name in ("events", "candidates", "stride", "fixed", "width", "changes")),
        *((name, c_void_p) for name in ("asked", "rows", "states", "changed", "seen", "last")),
        ("groups", c_int64),
        *((name, c_void_p) for name in ("bounds", "starts", "chosen", "place", "first")),
        *((name, c_void_p) for name in ("logits", "d_asked", "d_rows", "d_states")),
        ("scale", c_double),
    ]


class Scoring:
    """Scores of a window's candidates, their cross-entropy, and the gradients of both, compiled.

    Args:
        asked: E x (s + d) queries, for fixed rows and for states.
        rows: M x s fixed rows.
        states: Rows of the window, see `recurrence.roll`.
        plan: The window's plan, whose first nodes are the candidates.
        targets: What is looked for; of `score` only `changed` and `groups` count.
    """

    def __init__(self, asked: Tensor, rows: Tensor, states: Tensor, plan: Plan, targets: Targets) -> None:
        self.targets, changed, groups = targets, targets.changed, targets.groups
        sizes = (len(rows) if groups is None else int(groups.starts.diff().max()), rows.shape[1], states.shape[1])
        stride = -(-sizes[0] // TILE) * TILE
        self.logits = asked.new_empty(len(asked), stride)
        self._task = _Scores(len(asked), len(rows), stride, *sizes[1:], changed.shape[1])
        tensors = {"asked": asked, "rows": rows, "states": states, "changed": changed, "seen": plan.seen}
        tensors |= {"last": plan.last, "logits": self.logits}
        if groups is not None:
            tensors |= _group_rows(plan, groups, len(asked))
            self._task.groups = len(groups.place)
        self._fill(tensors)
        self._kept = [tensors]

    def score(self) -> Tensor:
        """Return E x M scores in the first columns of a wider table; with groups, of each event's group."""
        _compiled().edge_logits(ctypes.byref(self._task), c_int(torch.get_num_threads()))
        return self.logits

    def softmax(self, values: Tensor) -> tuple[float, Tensor]:
        """Make the scores the gradient of the summed cross-entropies; return these, and the gradient of `values`.

        Args:
            values: E x K scores of recent destinations, which are added.
        """
        gradient = torch.empty_like(values)
        return softmax(self._task, values, self.targets.places, self.targets, gradient), gradient

    def backward(self, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of asked, rows and states, from that of the scores, times `scale`."""
        given = self._kept[0]
        found = [torch.zeros_like(given[name]) for name in ("asked", "rows", "states")]
        self._task.scale = scale
        self._fill(dict(zip(("d_asked", "d_rows", "d_states"), found, strict=True)))
        _compiled().edge_logits_backward(ctypes.byref(self._task), c_int(torch.get_num_threads()))
        return found[0], found[1], found[2]

    def _fill(self, tensors: dict[str, Tensor]) -> None:
        for field, tensor in tensors.items():
            setattr(self._task, field, address(tensor))


def _compiled() -> ctypes.CDLL:
    compiled = library("scores")
    assert compiled is not None
    compiled.edge_softmax.restype = c_double
    return compiled


def _group_rows(plan: Plan, groups: Groups, events: int) -> dict[str, Tensor]:
    """Return the fields of the groups."""
    found = {"bounds": groups.bounds(events), "starts": groups.starts, "chosen": groups.chosen, "place": groups.place}
    first, last = torch.empty_like(groups.chosen), torch.empty_like(groups.chosen)
    newest = torch.empty_like(plan.last)
    sizes = map(c_int64, (events, len(newest), len(groups.place)))
    tensors = (found["bounds"], groups.starts, groups.chosen, plan.place, newest, first, last)
    _compiled().edge_group_rows(*sizes, *map(address, tensors))
    return found | {"first": first, "last": last}


def softmax(
    task: _Scores, values: Tensor, places: Tensor, targets: Targets | None = None, d_values: Tensor | None = None
) -> float:
    """Make scores logarithms of probabilities; or, with targets, the gradient of the cross-entropies; see scores.c."""
    wanted = (None, None) if targets is None else (targets.correction, targets.target)
    tensors = (wanted[0], values.contiguous(), places, wanted[1], d_values)
    return float(_compiled().edge_softmax(ctypes.byref(task), c_int64(places.shape[1]), *map(address, tensors)))
