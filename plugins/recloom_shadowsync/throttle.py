"""How often the background thread may work: its share of a CPU is bounded, so that training hardly feels it."""

from __future__ import annotations

import os
import time
from pathlib import Path

FLOOR = 0.002
"""Seconds between rounds at the least."""


class Throttle:
    """Says how long to pause after a round.

    The cost of a round is the CPU time of the thread that calls, and of the threads in `helpers`, which carry its
    messages; the pause makes this at most `budget` of the time that passes. On a slow link rounds last long and cost
    little, and there is no pause.

    Args:
        budget: Share of one CPU.
        least: Seconds from the start of one round to that of the next, at the least.
        helpers: Ids of the threads that work for this one.
    """

    def __init__(self, budget: float, least: float = 0.0, helpers: tuple[int, ...] = ()) -> None:
        self.budget = budget
        self.least = least
        self._clocks = [Path(f"/proc/self/task/{helper}/schedstat") for helper in helpers]
        self.begin()

    def begin(self) -> None:
        """Note that a round begins."""
        self._spent, self._start = self.spent(), time.monotonic()

    def spent(self) -> float:
        """Return the CPU seconds that the calling thread and its helpers have had."""
        return time.thread_time() + sum(_nanoseconds(clock) for clock in self._clocks) * 1e-9

    def pause(self) -> float:
        """Return the seconds to pause for, after a round."""
        cost, lasted = self.spent() - self._spent, time.monotonic() - self._start
        return max(FLOOR, min(1.0, cost / self.budget - lasted), self.least - lasted)


def threads() -> set[int]:
    """Return the ids of this process's threads, where the system tells."""
    try:
        return {int(name) for name in os.listdir("/proc/self/task")}
    except FileNotFoundError:
        return set()


def _nanoseconds(clock: Path) -> int:
    try:
        return int(clock.read_text().split()[0])
    except (OSError, ValueError, IndexError):  # the thread has ended, or this kernel keeps no such account
        return 0
