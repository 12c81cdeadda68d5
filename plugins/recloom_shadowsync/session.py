"""A fit's synchronisation on one rank: its rounds, and what the main thread asks for."""

from __future__ import annotations

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import Any, Literal

from recloom_shadowsync.members import Gone
from recloom_shadowsync.replica import Exchange, Meet, Replica, Round
from recloom_shadowsync.stats import SyncStats
from recloom_shadowsync.status import Status, Table
from recloom_shadowsync.transport import Transport

OnPeerLoss = Literal["stop", "continue"]
POLL = 0.02
"""Seconds between looks at whether others have arrived, and at signals."""
ATTEMPTS = 5


class Session(ABC):
    """Rounds from the beginning of training to its end; what the main thread asks for.

    Args:
        rank: This process's rank.
        replica: Its weights; `start` has been called.
        transport: Carries its exchanges.
        on_peer_loss: "stop": raise when another rank is gone; "continue": go on without it.
        stats: Counts.
        fence: Whether ranks share replicas, and wait for the one that writes when they are to read.
    """

    def __init__(
        self,
        rank: int,
        replica: Replica,
        transport: Transport,
        on_peer_loss: OnPeerLoss,
        stats: SyncStats,
        fence: bool = False,
    ) -> None:
        self.rank = rank
        self.replica = replica
        self.transport = transport
        self.on_peer_loss: OnPeerLoss = on_peer_loss
        self.stats = stats
        self.fence = fence
        self.check_signals: Callable[[], None] = lambda: None
        self._wanted = (0, 0)  # the meeting that the main thread is at, and whether it has finished
        self._told = (0, 0)  # likewise, as others know it: since then, the weights have been exchanged
        self._stopping = False
        self._level = 0

    @abstractmethod
    def start(self) -> None:
        """Begin."""

    @abstractmethod
    def step(self) -> None:
        """Note that the main thread has done an optimizer step (counted in the replica); raise what went wrong."""

    @abstractmethod
    def meet(self) -> bool:
        """Wait until every rank is at its next evaluation or has finished; return whether all are there.

        All are then at a standstill, with the same model in `replica.model`, until each calls `leave`.
        """

    @abstractmethod
    def leave(self) -> None:
        """Go on after `meet`."""

    @abstractmethod
    def finish(self) -> None:
        """Wait until every rank has finished; `replica.model` is the same on all then."""

    def stop(self, why: str) -> None:
        """End before the end, because of `why`, without waiting for others."""
        self._stopping = True
        if not self.broken:
            self.transport.leave(why)
        self.transport.close()

    def round(self) -> Round:
        """Do one round, or, where others are gone and it is so configured, as many as it takes."""
        for attempt in range(ATTEMPTS):
            try:
                return self._attempt()
            except Gone as error:
                if self._stopping:
                    raise
                self._heal(error, last=attempt == ATTEMPTS - 1)
        raise AssertionError("the last attempt raises")

    def _attempt(self) -> Round:
        wanted, (met, done) = self._wanted, self._told
        by_server = self.replica.algorithm.exchange == "server"
        waits = by_server and wanted == self._told and wanted[0] > 0 and self._waiting
        status = Status(self.rank, met, done, int(not (done or waits)), self.replica.steps, self.replica.samples)
        start = time.monotonic()
        result: Round = self._run(self.replica.round(status))
        self._told = wanted
        self.stats.add(result, self.replica.steps, time.monotonic() - start)
        if by_server:
            if result.table.finished or (self._waiting and met == wanted[0] and result.table.complete(met)):
                self._run(self.replica.pull())
        elif self.fence and self._closes(result.table):
            self.transport.meet(status)
        return result

    def _closes(self, table: Table) -> bool:
        """Return whether a meeting, or the run, has become complete; all ranks see the same tables."""
        level = max(row.met for row in table.rows)
        new = level > self._level and table.complete(level)
        self._level = level if new else self._level
        return new or table.finished

    broken = False
    """Whether the ranks cannot reach one another any more: then there is nobody to tell."""

    _waiting = False
    """Whether the main thread waits in `meet`."""

    def _run(self, requests: Generator[Meet | Exchange, Any, Any]) -> Any:
        try:
            request = next(requests)
            while True:
                isa = isinstance(request, Meet)
                answer = self.transport.meet(request.status) if isa else self.transport.exchange(request)  # type: ignore[union-attr,arg-type]
                request = requests.send(answer)
        except StopIteration as stop:
            return stop.value

    def _heal(self, error: Gone, last: bool) -> None:
        self.broken = True
        self.check_signals()  # all ranks are told to end: who went first does not matter, and the store may be gone
        start = time.monotonic()
        who = self.transport.missing()
        if last or self.on_peer_loss == "stop":
            raise Gone(
                f"{who}; training stops here too",
                "Go on from the last checkpoint: --ckpt_path last. To go on without lost ranks: on_peer_loss continue.",
            ) from error
        warnings.warn(f"rank {self.rank}: {who}; going on without", stacklevel=2)
        self.stats.rebuilt += 1
        self.transport.heal()
        self.replica.leads = self.transport.leads
        self.broken = False
        self.stats.rebuild_seconds = time.monotonic() - start
