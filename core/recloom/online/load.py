"""Requests that come when they come: an open loop of exponential gaps on an absolute schedule, and how many rows each.

A closed loop, or a generator that waits for a full queue, sends less while the server is slow and so leaves out the
latencies that matter (coordinated omission). Here all arrival times are known before the first request is sent.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recloom.errors import RecloomError

LARGEST = 1024  # rows of a request


@dataclass(frozen=True)
class Sizes:
    """How many rows a request has: "1", "fixed:165", "normal:165:50" or "lognormal:165:1.0", within 1 .. 1024.

    Args:
        kind: "fixed", "normal" or "lognormal".
        mean: Rows; of the log-normal the mean too, not the median.
        spread: Standard deviation of the rows, or of their natural logarithm.
    """

    kind: str
    mean: float
    spread: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Sizes:
        """Return what a command line's `text` means; RecloomError if it is none of the forms."""
        kind, *numbers = text.split(":")
        if not numbers:
            kind, numbers = "fixed", [kind]
        try:
            found = cls(kind, *map(float, numbers))
        except (ValueError, TypeError):
            found = cls("", 0)
        if found.kind not in ("fixed", "normal", "lognormal") or not 1 <= found.mean <= LARGEST or found.spread < 0:
            raise RecloomError(
                f"{text!r} is no distribution of request sizes",
                f"Write a number of rows (1 to {LARGEST}), fixed:N, normal:MEAN:DEVIATION or lognormal:MEAN:SIGMA.",
            )
        return found

    def draw(self, count: int, random: np.random.Generator) -> NDArray[np.int64]:
        """Return the rows of `count` requests."""
        if self.kind == "fixed":
            return np.full(count, round(self.mean), np.int64)
        normal = random.standard_normal(count)
        if self.kind == "normal":
            drawn = self.mean + self.spread * normal
        else:
            drawn = np.exp(np.log(self.mean) - self.spread**2 / 2 + self.spread * normal)
        return np.clip(np.rint(drawn), 1, LARGEST).astype(np.int64)


@dataclass(frozen=True)
class Schedule:
    """When requests arrive, in seconds from the start, and how many rows each has."""

    arrivals: NDArray[np.float64]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.arrivals)

    @functools.cached_property
    def rows(self) -> NDArray[np.int64]:
        """The rows of each request and all before it."""
        return np.cumsum(self.sizes)


def poisson(rate: float, count: int, sizes: Sizes, seed: int) -> Schedule:
    """Return `count` requests at `rate` a second: independent exponential gaps."""
    if not rate > 0 or count < 1:
        raise RecloomError(f"{count} requests at {rate} a second", "Both are positive.")
    random = np.random.default_rng(seed)
    return Schedule(np.cumsum(random.exponential(1 / rate, count)), sizes.draw(count, random))
