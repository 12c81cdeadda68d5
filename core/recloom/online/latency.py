"""Percentiles of latencies with intervals that know that requests near in time share their queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

BLOCKS = 20
QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def percentiles(
    latencies: NDArray[np.float64], quantiles: Sequence[float] = QUANTILES, draws: int = 200, seed: int = 0
) -> list[Estimate]:
    """Return the quantiles of latencies in the order of arrival, each with a block bootstrap's 95% interval.

    Requests that wait in one queue are slow together, so that single requests drawn anew would give intervals that are
    far too narrow. Drawn anew are 20 spans of the run (Künsch 1989).
    """
    found = np.quantile(latencies, quantiles)
    blocks = np.array_split(latencies, min(BLOCKS, len(latencies)))
    random = np.random.default_rng(seed)
    drawn = [
        np.quantile(np.concatenate([blocks[i] for i in random.integers(len(blocks), size=len(blocks))]), quantiles)
        for _ in range(draws)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    return [Estimate(float(v), float(a), float(b)) for v, a, b in zip(found, low, high, strict=True)]


def mean_of(values: Sequence[float]) -> Estimate:
    """Return the mean of repeats with Student's 95% interval; of a single repeat the interval is not finite."""
    array = np.asarray(values, np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return Estimate(mean, -np.inf, np.inf)
    half = float(stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array)))
    return Estimate(mean, mean - half, mean + half)
