"""Pareto fronts: dominance, crowding, hypervolume. Everything is minimised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def non_dominated(values: ArrayLike) -> NDArray[np.bool_]:
    """Return which of N x M points no other one beats (is nowhere worse and somewhere better than)."""
    points = np.asarray(values, np.float64)
    keep = np.zeros(len(points), bool)
    front = np.empty((0, points.shape[1]))
    # by the first value, ties by the next ones: nothing later beats anything earlier
    for place in np.lexsort(points.T[::-1]):
        point = points[place]
        if not ((front <= point).all(1) & (front < point).any(1)).any():
            keep[place] = True
            front = np.vstack([front, point])
    return keep


def ranks(values: ArrayLike, violation: ArrayLike | None = None, enough: int | None = None) -> NDArray[np.int64]:
    """Return the front that each of N x M points is in: 0 for what nothing beats, 1 for what only those beat, ...

    Args:
        values: The points.
        violation: How much each exceeds its limits. Those with a positive one come after all others, least first
            (Deb et al. 2002, section VI).
        enough: Stop when so many are ranked; all others share the last rank.
    """
    points = np.asarray(values, np.float64)
    excess = np.zeros(len(points)) if violation is None else np.asarray(violation, np.float64)
    found = np.full(len(points), -1)
    rest = np.flatnonzero(excess <= 0)
    rank = 0
    while len(rest) and (enough is None or (found >= 0).sum() < enough):
        front = non_dominated(points[rest])
        found[rest[front]] = rank
        rest = rest[~front]
        rank += 1
    if len(rest):
        found[rest] = rank
        rank += 1
    bad = np.flatnonzero(excess > 0)
    found[bad] = rank + np.unique(excess[bad], return_inverse=True)[1]
    return found


def crowding(values: ArrayLike) -> Array:
    """Return the crowding distance of each of N x M points of one front; infinite at its ends (Deb et al. 2002).

    Points that are not finite have none.
    """
    points = np.asarray(values, np.float64)
    places = np.flatnonzero(np.isfinite(points).all(1))
    total = np.zeros(len(points))
    for column in points[places].T:
        order = np.argsort(column, kind="stable")
        if not len(order) or column[order[-1]] == column[order[0]]:
            continue
        span = column[order[-1]] - column[order[0]]
        total[places[order[[0, -1]]]] = np.inf
        total[places[order[1:-1]]] += (column[order[2:]] - column[order[:-2]]) / span
    return total


def select(values: ArrayLike, count: int, violation: ArrayLike | None = None) -> NDArray[np.int64]:
    """Return the places of the best `count` of N x M points: by front, and within a front the least crowded first."""
    points = np.asarray(values, np.float64)
    front = ranks(points, violation, count)
    distance = np.zeros(len(points))
    for rank in range(int(front.max(initial=-1)) + 1):
        members = np.flatnonzero(front == rank)
        distance[members] = crowding(points[members])
    return np.lexsort((-distance, front))[:count]


def reference_point(values: ArrayLike, margin: float = 0.1) -> Array:
    """Return a point behind all finite ones of N x M: the worst of each column plus `margin` times its range."""
    points = np.asarray(values, np.float64)
    points = points[np.isfinite(points).all(1)]
    low, high = points.min(0), points.max(0)
    span = np.where(high > low, high - low, np.maximum(np.abs(high), 1.0))
    return high + margin * span


def hypervolume(values: ArrayLike, reference: Sequence[float] | Array) -> float:
    """Return the volume between N x M points and the reference point, exactly.

    Two columns are swept; more are sliced along the last one, and what each point adds to a slice is its box less the
    volume that the others cover of it (While et al. 2012, "A fast way of calculating exact hypervolumes").
    """
    return _volume(_inside(values, reference), np.asarray(reference, np.float64))


def hypervolume_curve(values: ArrayLike, reference: Sequence[float] | Array) -> Array:
    """Return the hypervolume of the first 1, 2, ..., N of N x M points: the anytime curve of a search."""
    corner = np.asarray(reference, np.float64)
    points = np.asarray(values, np.float64)
    front = np.empty((0, len(corner)))
    curve = np.zeros(len(points))
    total = 0.0
    for place, point in enumerate(points):
        if (point < corner).all() and not (front <= point).all(1).any():
            total += _gain(point, front, corner)
            front = np.vstack([front[~(point <= front).all(1)], point])
        curve[place] = total
    return curve


def _inside(values: ArrayLike, reference: Sequence[float] | Array) -> Array:
    """Return the points of the front that are before the reference point in every column."""
    points = np.asarray(values, np.float64).reshape(-1, len(reference))
    points = np.unique(points[(points < np.asarray(reference)).all(1)], axis=0)
    return points[non_dominated(points)]


def _volume(front: Array, corner: Array) -> float:
    """Return the volume of points that do not beat one another."""
    if not len(front):
        return 0.0
    if front.shape[1] == 1:
        return float(corner[0] - front.min())
    if front.shape[1] == 2:
        ordered = front[np.argsort(front[:, 0])]
        above = np.concatenate([corner[1:], ordered[:-1, 1]])
        return float(((corner[0] - ordered[:, 0]) * (above - ordered[:, 1])).sum())
    ordered = front[np.argsort(front[:, -1], kind="stable")]
    heights = np.diff(np.append(ordered[:, -1], corner[-1]))
    areas = hypervolume_curve(ordered[:, :-1], corner[:-1])
    return float(heights @ areas)


def _gain(point: Array, front: Array, corner: Array) -> float:
    """Return what a point adds to the volume of a front."""
    box = float((corner - point).prod())
    if not len(front):
        return box
    limited = np.unique(np.maximum(front, point), axis=0)
    return box - _volume(limited[_mask(limited)], corner)


def _mask(points: Array) -> NDArray[np.bool_]:
    """Return which of N different points no other one beats, all pairs at once."""
    below: NDArray[np.bool_] = np.all(points[:, None] <= points[None], axis=2)
    return np.asarray(below.sum(0) == 1)  # itself
