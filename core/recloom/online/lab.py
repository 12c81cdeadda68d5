"""Latency under load: requests on a schedule, served in dynamic batches; the highest rate that holds a target.

The server takes requests from the schedule itself: what has arrived by now is waiting, whether the server was busy or
not. So there is no generator that could fall behind, and latency counts from the scheduled arrival.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from recloom.online.engines import Engine
from recloom.online.inputs import Pool
from recloom.online.latency import Estimate, mean_of, percentiles
from recloom.online.load import Schedule


class Clock(Protocol):
    """Seconds since the start of a run."""

    def now(self) -> float:
        """Return the time."""

    def wait_until(self, moment: float) -> None:
        """Return not before `moment`."""


class WallClock:
    """Real time, from `start` of time.monotonic()."""

    def __init__(self, start: float | None = None) -> None:
        self._start = time.monotonic() if start is None else start

    def now(self) -> float:
        """Return the time."""
        return time.monotonic() - self._start

    def wait_until(self, moment: float) -> None:
        """Sleep, and for the last 200 microseconds spin: a sleep may come back late."""
        while (left := moment - self.now()) > 0:
            if left > 2e-4:
                time.sleep(left - 2e-4)


class CpuClock:
    """The process's CPU time; waiting is skipped. For one thread, on a machine whose CPUs others use too."""

    def __init__(self) -> None:
        self._skipped = -time.process_time()

    def now(self) -> float:
        """Return the time."""
        return time.process_time() + self._skipped

    def wait_until(self, moment: float) -> None:
        """Let the time be `moment`, if it is earlier."""
        self._skipped += max(0.0, moment - self.now())


@dataclass(frozen=True)
class Policy:
    """Dynamic batching: requests are served together.

    Args:
        max_batch: Most rows of a batch; a larger request is served in parts. 0: every request by itself.
        max_wait: Seconds that the first request of a batch waits for others after its arrival, if the server is free.
    """

    max_batch: int = 256
    max_wait: float = 0.0


@dataclass
class Queue:
    """The requests of a schedule that nobody has taken yet; `head` and `lock` may be shared by processes."""

    schedule: Schedule
    policy: Policy
    head: Any = None
    lock: contextlib.AbstractContextManager[Any] = field(default_factory=contextlib.nullcontext)

    def __post_init__(self) -> None:
        self.head = self.head if self.head is not None else _Number()

    def take(self, clock: Clock) -> range | None:
        """Wait for a request; return the numbers of those to serve now, or None when all are taken."""
        with self.lock:
            first = self.head.value
            if first >= len(self.schedule):
                return None
            end = self._collect(first, clock)
            self.head.value = end
            return range(first, end)

    def _collect(self, first: int, clock: Clock) -> int:
        arrivals, rows = self.schedule.arrivals, self.schedule.rows
        clock.wait_until(float(arrivals[first]))
        before = int(rows[first - 1]) if first else 0
        full = int(np.searchsorted(rows, before + self.policy.max_batch, side="right"))  # those up to it fit
        if full <= first + 1:
            return first + 1
        until = float(arrivals[first]) + self.policy.max_wait
        if self.policy.max_wait and clock.now() < until:
            clock.wait_until(min(until, float(arrivals[full - 1])))
        return min(full, max(first + 1, int(np.searchsorted(arrivals, clock.now(), side="right"))))


class _Number:
    value = 0


@dataclass
class Served:
    """What came of a run.

    Args:
        latencies: Seconds from the scheduled arrival to the answer, by number of the request; NaN if not served.
        rows: Rows of the requests that were served.
        batches: Batches that they were served in.
        seconds: From the start to the last answer.
        finished: Whether all were served; not, when the run was given up because too many were late.
    """

    latencies: NDArray[np.float64]
    rows: int
    batches: int
    seconds: float
    finished: bool

    def percentiles(self) -> list[Estimate]:
        """Return p50, p95 and p99 of the requests that were served, in seconds, with intervals."""
        return percentiles(self.latencies[~np.isnan(self.latencies)])

    def holds(self, target: float, quantile: float = 0.99) -> bool:
        """Return whether all were served and the quantile of their latencies is at most `target`."""
        return self.finished and float(np.quantile(self.latencies, quantile)) <= target


def serve(engine: Engine, pool: Pool, queue: Queue, clock: Clock, target: float = np.inf, late: float = 0.01) -> Served:
    """Serve what is in the queue; stop when more than a share `late` of all requests took longer than `target`."""
    arrivals, sizes, largest = queue.schedule.arrivals, queue.schedule.sizes, queue.policy.max_batch
    latencies = np.full(len(arrivals), np.nan)
    rows, batches, missed, finished = 0, 0, 0, True
    while (taken := queue.take(clock)) is not None:
        for part in _parts(int(sizes[taken.start : taken.stop].sum()), largest):
            engine(pool.take(part))
            batches += 1
            rows += part
        found = clock.now() - arrivals[taken.start : taken.stop]
        latencies[taken.start : taken.stop] = found
        missed += int((found > target).sum())
        if missed > late * len(arrivals):
            finished = False
            break
    return Served(latencies, rows, batches, clock.now(), finished)


def _parts(rows: int, largest: int) -> Iterator[int]:
    if largest < 1:
        yield rows
        return
    while rows:
        yield min(rows, largest)
        rows -= min(rows, largest)


@dataclass(frozen=True)
class Bound:
    """The highest rates that held a target, a repeat each, and their mean with its interval."""

    rates: list[float]
    tried: list[tuple[float, bool]]

    @property
    def estimate(self) -> Estimate:
        """The mean of the repeats."""
        return mean_of(self.rates)


def highest_rate(
    run: Callable[[float, int], bool],
    start: float,
    repeats: int = 3,
    steps: int = 5,
    largest: float = 1e7,
    halvings: int = 20,
) -> Bound:
    """Search the highest rate at which `run(rate, seed)` is true: doubling, then halving the ratio `steps` times.

    Args:
        run: Says whether a rate holds the target; called with another seed in each repeat.
        start: The first rate tried.
        repeats: Searches.
        steps: Each halves the ratio of the bracket's ends on a logarithmic scale: 5 steps from a factor of 2 give 2.2%.
        largest: Where doubling ends.
        halvings: Where halving ends; a repeat that finds no rate to hold counts as 0. In wall time a run at a low rate
            is long.
    """
    rates: list[float] = []
    tried: list[tuple[float, bool]] = []

    def holds(rate: float, seed: int) -> bool:
        tried.append((rate, run(rate, seed)))
        return tried[-1][1]

    for seed in range(repeats):
        low = high = start
        if holds(start, seed):
            while holds(high := 2 * low, seed) and high < largest:
                low = high
        else:
            while not holds(low := high / 2, seed) and low > start / 2**halvings:
                high = low
        for _ in range(steps if (low, True) in tried else 0):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if holds(middle, seed) else (low, middle)
        rates.append(low if (low, True) in tried else 0.0)
        start = low if rates[-1] else start
    return Bound(rates, tried)
