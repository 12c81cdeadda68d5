"""Rank correlations with bootstrap intervals: how far one measure orders candidates as another does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from recloom.errors import RecloomError
from recloom.search.compare import Difference

Array = NDArray[np.float64]


def correlations(first: ArrayLike, second: ArrayLike, seed: int = 0, draws: int = 2000) -> dict[str, Difference]:
    """Return Kendall's tau-b, Spearman's rho and Pearson's r of N pairs, with bootstrap intervals over pairs.

    Pairs with a value that is not finite (a candidate that diverged) are left out, and so are resamples in which one
    side has a single value.

    Returns:
        By name: "Kendall", "Spearman", "Pearson".

    Raises:
        RecloomError: There are fewer than 3 pairs, or one side is constant.
    """
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    good = np.isfinite(x) & np.isfinite(y)
    x, y = x[good], y[good]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise RecloomError(
            f"{len(x)} candidates that were measured have no rank correlation",
            "It takes 3 or more, with different scores.",
        )
    counts = np.random.default_rng(seed).multinomial(len(x), np.full(len(x), 1 / len(x)), size=draws)
    weights = counts.astype(np.float64)
    ranks_x, ranks_y = _ranks(x, weights), _ranks(y, weights)
    return {
        "Kendall": _difference(stats.kendalltau(x, y).statistic, _kendall(x, y, weights)),
        "Spearman": _difference(stats.spearmanr(x, y).statistic, _pearson(ranks_x, ranks_y, weights)),
        "Pearson": _difference(stats.pearsonr(x, y).statistic, _pearson(x[None], y[None], weights)),
    }


def kendall_gap(
    first: Sequence[ArrayLike],
    second: Sequence[ArrayLike],
    target: Sequence[ArrayLike],
    seed: int = 0,
    draws: int = 2000,
) -> Difference:
    """Return by how much Kendall's tau-b of `first` with `target` exceeds that of `second`, in the mean of groups.

    The interval is a paired bootstrap: candidates are drawn anew within each group, the same for both. Candidates
    with a value that is not finite are left out.

    Args:
        first: For each group (a search's seed, say) N scores of its candidates.
        second: Other scores of the same candidates.
        target: What both are to order as.
        seed: Seed of the bootstrap.
        draws: Resamples; those in which one side has a single value are left out.
    """
    rng = np.random.default_rng(seed)
    values, samples = [], []
    for a, b, y in zip(first, second, target, strict=True):
        rows = np.array([a, b, y], np.float64)
        a, b, y = rows[:, np.isfinite(rows).all(0)]
        counts = rng.multinomial(len(y), np.full(len(y), 1 / len(y)), size=draws).astype(np.float64)
        values.append(stats.kendalltau(a, y).statistic - stats.kendalltau(b, y).statistic)
        samples.append(_kendall(a, y, counts) - _kendall(b, y, counts))
    return _difference(float(np.mean(values)), np.mean(samples, axis=0))


def _difference(value: float, samples: Array) -> Difference:
    low, high = np.nanquantile(samples, [0.025, 0.975])
    return Difference(float(value), float(low), float(high))


def _kendall(x: Array, y: Array, weights: Array) -> Array:
    """Return tau-b of each resample, from the signs of all N x N pairs; copies of a pair are ties of it."""
    sign_x, sign_y = np.sign(x[:, None] - x), np.sign(y[:, None] - y)

    def total(pairs: Array) -> Array:
        return np.einsum("ri,ri->r", weights @ pairs, weights)

    with np.errstate(invalid="ignore", divide="ignore"):
        return total(sign_x * sign_y) / np.sqrt(total(np.abs(sign_x)) * total(np.abs(sign_y)))


def _ranks(x: Array, weights: Array) -> Array:
    """Return R x N mean ranks in each resample, a value counted as often as it was drawn."""
    below, same = (x[None] < x[:, None]).astype(np.float64), (x[None] == x[:, None]).astype(np.float64)
    return weights @ below.T + (weights @ same.T + 1) / 2


def _pearson(x: Array, y: Array, weights: Array) -> Array:
    """Return the correlation of each resample; NaN where one side has a single value."""
    n = weights.sum(1, keepdims=True)
    x, y = x - (weights * x).sum(1, keepdims=True) / n, y - (weights * y).sum(1, keepdims=True) / n
    cross, own_x, own_y = ((weights * a * b).sum(1) for a, b in ((x, y), (x, x), (y, y)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((weights > 0).sum(1) > 1, cross / np.sqrt(own_x * own_y), np.nan)
