"""One rank's side of synchronisation: a round, as a generator that says what it needs exchanged.

Nothing here knows about threads or networks. A driver answers each request, over a process group, a server, or, in
lock step, for several replicas in one process, which makes the asynchronous code testable to the bit.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from recloom.sync import SyncAlgorithm
from recloom_shadowsync.flat import RowSegment, mean_of_touching, touched
from recloom_shadowsync.status import Status, Table

Write = Literal["lerp", "delta"]
Rows = Literal["touched", "mean", "sum"]


@dataclass(frozen=True)
class Meet:
    """Tell the others `status`; the answer is the Table of all."""

    status: Status


@dataclass(frozen=True)
class Exchange:
    """Exchange weights; the answer is their mean, or what a server said.

    Args:
        values: What this replica gives; None: nothing, it only wants the answer.
        length: How many values the answer has.
        reference: What both sides last agreed on, for compression: the first of the values; the rest is near zero.
        givers: How many replicas give something in this round.
    """

    values: Tensor | None
    length: int
    reference: Tensor
    givers: int


@dataclass(frozen=True)
class Round:
    """What came of a round.

    Args:
        table: All ranks' states.
        wrote: Whether weights were exchanged and written.
        staleness: Optimizer steps done between the copy of the weights and the write.
        spread: Distance of this replica's copy from the target, relative to the target's norm; NaN if not exchanged.
    """

    table: Table
    wrote: bool = False
    staleness: int = 0
    spread: float = float("nan")


class Replica:
    """The weights of a replica, and how they take part in rounds.

    Args:
        flat: The weights, P, trained by somebody else at the same time.
        algorithm: What replicas move towards.
        alpha: How far the replica moves in a round.
        write: "lerp", the paper's: w <- (1 - alpha) w + alpha target. "delta": w <- w + alpha (target - copy), which
            keeps all that was learnt while the exchange was under way.
        segments: Where embedding rows are.
        rows: "touched": a row's mean is over the replicas that changed it; "mean": over all; "sum": a row takes every
            replica's change since what was agreed on, in full (whatever alpha and write say of the other weights).
        model: Memory for the model that replicas agree on; its own by default.
        leads: Whether this rank exchanges weights; others share its memory and only follow what goes on.
    """

    def __init__(
        self,
        flat: Tensor,
        algorithm: SyncAlgorithm,
        alpha: float = 0.5,
        write: Write = "lerp",
        segments: Sequence[RowSegment] = (),
        rows: Rows = "touched",
        model: Tensor | None = None,
        leads: bool = True,
    ) -> None:
        self.flat = flat
        self.algorithm = algorithm
        self.alpha = alpha
        self.write = write
        self.by_touch = bool(segments) and rows == "touched" and algorithm.exchange == "mean"
        # embedding weights are the vector's last
        self.summed_from = segments[0].start if segments and rows == "sum" else len(flat)
        self.segments = segments
        self.leads = leads
        self.steps = 0
        self.samples = 0
        self.skipped = 0
        self._parked: Tensor | None = None
        self._lock = threading.Lock()
        self._snapshot = torch.empty_like(flat, device="cpu")
        self.model = torch.empty_like(self._snapshot) if model is None else model
        self.reference = torch.empty(0)

    def start(self) -> None:
        """Begin with the weights as they are now, which all replicas share."""
        if self.leads:
            self.model.copy_(self.flat)
        self.reference = self.flat.detach().cpu().clone()
        self.algorithm.start(self.reference)

    def round(self, status: Status) -> Generator[Meet | Exchange, Any, Round]:
        """Take part in one round; see the module."""
        table: Table = yield Meet(status)
        givers = sum(row.gives for row in table.rows)
        if table.finished and self.algorithm.exchange == "mean":
            givers = len(table.rows)  # the last round: everybody's final weights
        elif not givers or (not status.gives and self.algorithm.exchange == "server"):
            return Round(table)
        gives = bool(status.gives) or (table.finished and self.algorithm.exchange == "mean")
        if not self.leads:
            return Round(table, wrote=True)
        steps = self.steps
        values = self._take()
        payload = torch.cat([values, touched(values, self.reference, self.segments)]) if self.by_touch else values
        received: Tensor = yield Exchange(payload if gives else None, len(payload), self.reference, max(1, givers))
        if self.by_touch:
            received, shares = received[: len(values)], received[len(values) :]
            received = mean_of_touching(received, self.reference, shares, max(1, givers), self.segments)
        summed = slice(self.summed_from, None)
        received[summed] += (received[summed] - self.reference[summed]) * (max(1, givers) - 1)
        target = self.algorithm.target(received)
        self.reference = target.clone()
        spread = float(torch.dist(values, target) / target.norm().clamp(min=1e-12))
        with self._lock:
            self.model.copy_(target)
            self._write(values, target, follow=bool(status.done))
        return Round(table, True, self.steps - steps, spread)

    def pull(self) -> Generator[Meet | Exchange, Any, None]:
        """Read the server's centre as the model that replicas agree on, without giving anything."""
        received: Tensor = yield Exchange(None, len(self.reference), self.reference, 1)
        with self._lock:
            self.model.copy_(received)

    def park(self) -> None:
        """Put the replica aside and the agreed model into the weights' place, to evaluate it; rounds go on."""
        with self._lock:
            self._parked = self.flat.clone()
            self.flat.copy_(self.model)

    def unpark(self) -> None:
        """Put the replica back."""
        with self._lock:
            if self._parked is not None:
                self.flat.copy_(self._parked)
                self._parked = None

    def settle(self) -> None:
        """Make the agreed model this replica's weights: the end of training."""
        with self._lock:
            self._parked = None
            self.flat.copy_(self.model)

    def copies(self) -> tuple[Tensor, Tensor]:
        """Return copies of (the model that replicas agree on, this replica), neither from the middle of a write."""
        with self._lock:
            return self.model.clone(), self._weights().detach().cpu().clone()

    def restore(self, replica: Tensor, reference: Tensor) -> None:
        """Go on with a replica from a checkpoint, and with what it had agreed on with others."""
        self.flat.copy_(replica)
        self.reference = reference.clone()
        self.model.copy_(reference)

    def _weights(self) -> Tensor:
        return self.flat if self._parked is None else self._parked

    def _take(self) -> Tensor:
        """Copy the replica; one with a NaN or an infinity says what was last agreed on instead."""
        with self._lock:
            self._snapshot.copy_(self._weights())
        if bool(torch.isfinite(self._snapshot.sum())) or bool(torch.isfinite(self._snapshot).all()):
            return self._snapshot
        if not self.skipped:
            warnings.warn("the weights have a NaN or an infinity here: this rank's are left out", stacklevel=2)
        self.skipped += 1
        return self._snapshot.copy_(self.reference)

    def _write(self, values: Tensor, target: Tensor, follow: bool) -> None:
        weights, dense = self._weights(), slice(None, self.summed_from)
        if follow:
            weights.copy_(target)
            return
        if self.write == "lerp":
            weights[dense].lerp_(target[dense].to(weights.device), self.alpha)
        else:
            weights[dense].add_((target[dense] - values[dense]).to(weights.device), alpha=self.alpha)
        if self.summed_from < len(weights):
            summed = slice(self.summed_from, None)
            weights[summed] += (target[summed] - values[summed]).to(weights.device)
