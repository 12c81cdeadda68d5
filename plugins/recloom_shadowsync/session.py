"""A fit's synchronisation on one rank: rounds on the main thread every k steps, or on a thread of their own."""

from __future__ import annotations

import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import Any, Literal

from recloom.errors import RecloomError
from recloom_shadowsync.members import Gone
from recloom_shadowsync.replica import Exchange, Meet, Replica, Round
from recloom_shadowsync.stats import SyncStats
from recloom_shadowsync.status import Status, Table
from recloom_shadowsync.throttle import Throttle
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
        """Return whether a meeting, or the run, has become complete: the same on all ranks, that see the same tables."""
        level = max(row.met for row in table.rows)
        new = level > self._level and table.complete(level)
        self._level = level if new else self._level
        return new or table.finished

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
        who = self.transport.missing()
        if last or self.on_peer_loss == "stop":
            raise Gone(
                f"{who}; training stops here too",
                "Go on from the last checkpoint: --ckpt_path last. To go on without lost ranks: on_peer_loss: continue.",
            ) from error
        warnings.warn(f"rank {self.rank}: {who}; going on without", stacklevel=2)
        self.stats.rebuilt += 1
        self.transport.heal()
        self.replica.leads = self.transport.leads


class Foreground(Session):
    """Rounds on the main thread, every so many optimizer steps.

    Args:
        every: Optimizer steps between rounds.
    """

    every = 1

    def start(self) -> None:
        """Nothing runs by itself."""

    def step(self) -> None:
        """Do a round if it is due."""
        if self.replica.steps % self.every == 0:
            self.round()

    def meet(self) -> bool:
        """Do rounds until all have arrived."""
        self._wanted, self._waiting = (self._wanted[0] + 1, 0), True
        try:
            while True:
                meeting = self._told[0]
                result = self.round()
                if meeting == self._wanted[0] and result.table.complete(meeting):
                    return result.table.together(meeting)
                self._look()
        finally:
            self._waiting = False

    def leave(self) -> None:
        """Nothing is held up."""

    def finish(self) -> None:
        """Do rounds until all have finished."""
        self._wanted = (self._wanted[0], 1)
        while not self.round().table.finished:
            self._look()
        self.transport.farewell()
        self.transport.close()

    def _look(self) -> None:
        self.check_signals()
        if self.replica.algorithm.exchange == "server":
            time.sleep(POLL)


class Background(Session):
    """Rounds on a thread of their own, while the main thread trains without waiting."""

    throttle: Callable[[], Throttle]
    """Makes the throttle, on the thread."""

    def start(self) -> None:
        """Start the thread."""
        self._error: BaseException | None = None
        self._kick, self._met, self._resume = threading.Event(), threading.Event(), threading.Event()
        self._together = False
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="shadow", daemon=True)
        self._thread.start()

    def step(self) -> None:
        """Raise what the thread died of, if it did."""
        if self._error is not None:
            self._raise()

    def meet(self) -> bool:
        """Let the thread find out when all have arrived."""
        self._met.clear()
        self._resume.clear()
        self._waiting = True
        self._wanted = (self._wanted[0] + 1, 0)
        self._kick.set()
        self._await(self._met)
        return self._together

    def leave(self) -> None:
        """Let the thread go on."""
        self._waiting = False
        self._resume.set()

    def finish(self) -> None:
        """Let the thread serve the others until all have finished."""
        self._wanted = (self._wanted[0], 1)
        self._kick.set()
        self._await(self._finished)
        self._thread.join()

    def stop(self, why: str) -> None:
        """Break the thread's connections, and wait for it to end."""
        super().stop(why)
        self._kick.set()
        self._resume.set()
        self._thread.join(5.0)

    def _await(self, event: threading.Event) -> None:
        while not event.wait(POLL):
            self.check_signals()
            if self._error is not None:
                self._raise()

    def _raise(self) -> None:
        assert self._error is not None
        if isinstance(self._error, RecloomError):
            raise type(self._error)(self._error.message, self._error.hint) from self._error
        raise RuntimeError(f"the thread that synchronises failed: {self._error!r}") from self._error

    def _loop(self) -> None:
        try:
            throttle = self.throttle()
            while not self._stopping:
                throttle.begin()
                told = self._told
                table = self.round().table
                self.stats.cpu = throttle.spent()
                if table.finished:
                    self.transport.farewell()
                    self.transport.close()
                    self._finished.set()
                    return
                if self._waiting and told[0] == self._wanted[0] and table.complete(told[0]) and not self._met.is_set():
                    self._arrive(table.together(told[0]))
                self._pause(throttle.pause())
        except BaseException as error:  # whatever it is, the main thread raises it
            if not self._stopping:
                self._error = error
                self.transport.leave(f"{type(error).__name__}: {error}".split("\n")[0])
                self.transport.close()

    def _arrive(self, together: bool) -> None:
        self._together = together
        self._met.set()
        if together:
            self._resume.wait()

    def _pause(self, seconds: float) -> None:
        """Wait, unless the main thread or another rank's trouble wants a round at once."""
        end = time.monotonic() + seconds
        if self._waiting or self._wanted[1]:
            seconds = min(seconds, POLL)
            end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._stopping:
            if self._kick.wait(min(left, 0.05)):
                self._kick.clear()
                return
            if self.on_peer_loss == "continue" and self.transport.interrupted():
                return
