"""What a rank counts about synchronisation, for the log and for reports."""

from __future__ import annotations

import statistics
import time
from collections import deque
from dataclasses import dataclass, field

from recloom_shadowsync.replica import Round


@dataclass
class SyncStats:
    """Counters of one rank in one fit.

    Args:
        parallelism: Examples in flight at once by this rank's batch: the number of ranks, Hogwild ones included.
    """

    parallelism: int = 1
    rounds: int = 0
    gaps: deque[int] = field(default_factory=lambda: deque(maxlen=10_000))
    staleness: deque[int] = field(default_factory=lambda: deque(maxlen=10_000))
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=10_000))
    spread: float = float("nan")
    lost: int = 0
    rebuilt: int = 0
    rebuild_seconds: float = 0.0
    batch: int = 0
    cpu: float = 0.0
    _last: int = 0
    _all_samples: int = 0
    _window: tuple[float, int, int] = (0.0, 0, 0)
    _start: float = field(default_factory=time.monotonic)

    def begin(self, steps: int) -> None:
        """Count from optimizer step `steps` on."""
        self._last = steps

    def add(self, result: Round, steps: int, seconds: float) -> None:
        """Count a round that ended after `steps` optimizer steps and took `seconds`."""
        self.lost, self._all_samples = result.table.lost, result.table.samples
        if not result.wrote:
            return
        self.rounds += 1
        self.gaps.append(steps - self._last)
        self._last = steps
        self.staleness.append(result.staleness)
        self.seconds.append(seconds)
        self.spread = result.spread

    def window(self, sent: int) -> dict[str, float]:
        """Return the rates since the last call: examples a second of all ranks, MB a second that this one sent."""
        now = time.monotonic()
        then, samples, bytes_ = self._window
        self._window = (now, self._all_samples, sent)
        if not then or now <= then:
            return {}
        return {
            "examples_per_second_all": (self._all_samples - samples) / (now - then),
            "sync_megabytes_per_second": (sent - bytes_) / (now - then) / 1e6,
        }

    def summary(self, sent: int = 0) -> dict[str, float]:
        """Return the figures of the fit so far; steps between syncs are the sync gap."""
        found: dict[str, float] = {"sync_rounds": self.rounds, "sync_megabytes": sent / 1e6, "ranks_lost": self.lost}
        if self.rounds:
            ordered = sorted(self.gaps)
            found |= {
                "sync_gap": statistics.fmean(self.gaps),
                "sync_gap_p95": ordered[int(0.95 * (len(ordered) - 1))],
                "sync_staleness": statistics.fmean(self.staleness),
                "sync_round_ms": 1e3 * statistics.fmean(self.seconds),
                "sync_spread": self.spread,
                "sync_cpu_share": self.cpu / max(1e-9, time.monotonic() - self._start),
            }
        if self.rebuilt:
            found |= {"ranks_rebuilt": self.rebuilt, "rebuild_seconds": self.rebuild_seconds}
        if self.batch:
            found["example_parallelism"] = self.batch * self.parallelism
        return found
