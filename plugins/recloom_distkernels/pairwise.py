"""Divergences of all pairs of sets: one streaming search for all k-NN divergences and all k, in bounded memory."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recloom.errors import DataError
from recloom_distkernels.divergence import (
    Directed,
    Divergence,
    LogDistances,
    NeighbourDivergence,
    Part,
    Progress,
    SetDivergence,
)
from recloom_distkernels.knn import KnnEngine, choose_engine
from recloom_distkernels.registry import parse
from recloom_distkernels.samplesets import SampleSets

RELATIVE_FLOOR = 1e-6  # of the median distance to a neighbour: nearer points count as one


@dataclass
class Pairwise:
    """Divergences of S sets x from T sets y.

    Args:
        there: S x T values, float64, by (divergence, k): of x_i from y_j.
        back: T x S values of y_j from x_i; those of `there` transposed if x and y are the same sets.
        floor: Log of the distance below which points count as one.
        clamped: Share of the neighbour distances that were raised to it.
    """

    there: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    back: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    floor: float = -math.inf
    clamped: float = 0.0


def pairwise_divergences(
    x: SampleSets,
    y: SampleSets | None = None,
    divergences: Sequence[Divergence | str] = ("kl",),
    ks: Sequence[int] = (3,),
    engine: KnnEngine | None = None,
    floor: float | None = None,
    memory: int = 32 << 20,
    progress: Progress | None = None,
) -> Pairwise:
    """Compute the divergences of the sets x from the sets y (and of y from x), or among the sets x.

    Args:
        x: S sets.
        y: T sets; None: the sets x.
        divergences: Divergences, or their names ("renyi:0.8"); keys of the result are names as given, or class names.
        ks: Neighbours.
        engine: k-NN engine; by default the fastest for such points.
        floor: Log of the distance below which points count as one; by default log(1e-6 of the median distance to the
            nearest of the `ks` in the sets x), so that it follows the data's scale.
        memory: Bytes of distances that are held at a time, about.
        progress: Called with the share of the work that is done.

    Raises:
        DataError: A set has too few points for the largest k, x and y differ in dimension, or all points coincide.
    """
    _check(x, y)
    named = {d if isinstance(d, str) else type(d).__name__: parse(d, Divergence).fit(x) for d in divergences}
    neighbour = {name: d for name, d in named.items() if isinstance(d, NeighbourDivergence)}
    whole = {name: d for name, d in named.items() if isinstance(d, SetDivergence)}
    found = Pairwise()
    share = len(neighbour) and 1 / (1 + len(whole))
    if neighbour:
        run = _Run(x, y, neighbour, tuple(sorted(set(ks))), engine, memory)
        found = run.compute(floor, lambda done: progress(done * share) if progress else None)
    for index, (name, divergence) in enumerate(whole.items()):
        there = divergence.matrix(x, y or x, _within(progress, index + bool(neighbour), len(whole) + bool(neighbour)))
        for k in ks:
            found.there[name, k], found.back[name, k] = there, there.t()
    return found


def _within(progress: Progress | None, index: int, count: int) -> Progress | None:
    return None if progress is None else lambda done: progress((index + done) / count)


def estimate_seconds(
    x: SampleSets,
    y: SampleSets | None = None,
    divergences: Sequence[Divergence | str] = ("kl",),
    ks: Sequence[int] = (3,),
    engine: KnnEngine | None = None,
    trial: float = 0.1,
) -> float:
    """Return about how long `pairwise_divergences` would take, from a run on some of the sets.

    Args:
        x: S sets.
        y: T sets; None: the sets x.
        divergences: Divergences, or their names.
        ks: Neighbours.
        engine: k-NN engine.
        trial: Seconds that the run is to take, about.
    """
    _check(x, y)
    engine = engine or choose_engine(x.values, int(max(x.sizes.max(), 0 if y is None else y.sizes.max())))
    work = x.points**2 if y is None else 2 * x.points * y.points
    count = min(len(x), 2 + int(1000 * len(x) / x.points))
    pairwise_divergences(x.slice(0, min(2, len(x))), None, divergences, ks, engine)  # compiles
    while True:
        few = x.select(torch.linspace(0, len(x) - 1, count).long().numpy())
        start = time.perf_counter()
        pairwise_divergences(few, None, divergences, ks, engine)
        seconds = time.perf_counter() - start
        if seconds >= trial or count == len(x):
            return seconds * work / few.points**2
        count = min(len(x), 2 * count)


def _check(x: SampleSets, y: SampleSets | None) -> None:
    if y is not None and x.dim != y.dim:
        raise DataError(
            f"points of {x.dim} and of {y.dim} dimensions cannot be compared", "Use the same columns for both."
        )
    if y is not None and x.values.dtype != y.values.dtype:
        raise DataError(
            f"points are {x.values.dtype} on one side and {y.values.dtype} on the other", "Convert one: sets.to(dtype)."
        )


class _Run:
    """One computation of k-NN divergences."""

    def __init__(
        self,
        x: SampleSets,
        y: SampleSets | None,
        divergences: dict[str, NeighbourDivergence],
        ks: tuple[int, ...],
        engine: KnnEngine | None,
        memory: int,
    ) -> None:
        self.x, self.y, self.same = x, y or x, y is None
        self.divergences, self.ks, self.memory = divergences, ks, memory
        for sets in {id(s): s for s in (self.x, self.y)}.values():
            sets.check_neighbours(ks[-1], own=True)
        self.engine = engine or choose_engine(x.values, int(max(self.x.sizes.max(), self.y.sizes.max())))
        ranks = [
            d.ranks(k, a.sizes, b.sizes)
            for d in divergences.values()
            for k in ks
            for a, b in ((self.x, self.y), (self.y, self.x))
        ]
        self.own_ranks, self.other_ranks = (max(rank) for rank in zip(*ranks, strict=True))
        self.clamped = self.counted = 0

    def compute(self, floor: float | None, progress: Progress) -> Pairwise:
        """Return all divergences."""
        rho_x = self.engine.own(self.x.values, self.x.offsets, self.own_ranks)
        rho_y = rho_x if self.same else self.engine.own(self.y.values, self.y.offsets, self.own_ranks)
        self.floor = _floor(rho_x[self.ks[0] - 1]) if floor is None else floor
        halves = 1 if self.same else 2
        own_x, there = self._towards(self.x, self.y, rho_x, lambda done: progress(done / halves))
        own_y, back = (
            (own_x, there)
            if self.same
            else self._towards(self.y, self.x, rho_y, lambda done: progress(0.5 + done / halves))
        )
        found = Pairwise(floor=self.floor, clamped=self.clamped / max(self.counted, 1))
        for key in there:
            divergence, k = self.divergences[key[0]], key[1]
            n, m, dim = self.x.sizes, self.y.sizes, self.x.dim
            one = Directed(there[key], own_x[key], own_y[key], n, m, dim, k, self.same)
            other = Directed(back[key], own_y[key], own_x[key], m, n, dim, k, self.same)
            found.there[key] = divergence.values(one, other)
            found.back[key] = found.there[key].t() if self.same else divergence.values(other, one)
        return found

    def _towards(
        self, x: SampleSets, y: SampleSets, rho: Tensor, progress: Progress
    ) -> tuple[dict[tuple[str, int], Tensor], dict[tuple[str, int], Tensor]]:
        """Return the statistics of the sets x alone, and of x towards y, by divergence and k."""
        keys = [(name, k) for name in self.divergences for k in self.ks]
        own = {key: torch.zeros(len(x), dtype=torch.float64) for key in keys}
        cross = {key: torch.zeros(len(y), len(x), dtype=torch.float64) for key in keys}
        total, done = x.points * y.points, 0
        for a, b in _blocks(x.offsets, self._rows(1)):
            sets = x.slice(a, b)
            lo, hi = int(x.offsets[a]), int(x.offsets[b])
            near = LogDistances(rho[None, :, lo:hi], self.floor)
            for part, key in self._parts(sets.sizes, sets.sizes, near, near):
                own[key][a:b] = self.divergences[key[0]].own(part)
            for c, d in _blocks(y.offsets, None, max(1, self._rows(1) // max(hi - lo, 1))):
                start = int(y.offsets[c])
                bounds = y.offsets[c : d + 1] - start
                first = lo - start if self.same else None
                targets = y.values[start : int(y.offsets[d])]
                squared = self.engine.search(sets.values, targets, bounds, self.other_ranks, first)
                nu = LogDistances(squared, self.floor)
                for part, key in self._parts(sets.sizes, y.sizes[c:d], near, nu):
                    cross[key][c:d, a:b] = self.divergences[key[0]].statistic(part)
                self.clamped += int((nu.rank(self.ks[0]) <= self.floor).sum())
                self.counted += squared.shape[0] * squared.shape[2]
                done += (hi - lo) * len(targets)
                progress(done / total)
        return own, {key: found.t() for key, found in cross.items()}

    def _parts(
        self, n: Tensor, m: Tensor, rho: LogDistances, nu: LogDistances
    ) -> Iterator[tuple[Part, tuple[str, int]]]:
        for name in self.divergences:
            for k in self.ks:
                yield Part(self.x.dim, k, n, m, rho, nu), (name, k)

    def _rows(self, targets: int) -> int:
        """Return how many points' distances to `targets` sets fit into the memory, with what is made of them."""
        return max(1, self.memory // (targets * 8 * (self.own_ranks + self.other_ranks + 3)))


def _blocks(offsets: Tensor, rows: int | None, sets: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield ranges of whole sets with about `rows` points, or with `sets` sets, at least one each."""
    bounds, start = offsets.tolist(), 0
    count = len(bounds) - 1
    while start < count:
        end = start + (sets or 1)
        if rows is not None:
            end = start + 1
            while end < count and bounds[end + 1] - bounds[start] <= rows:
                end += 1
        yield start, min(end, count)
        start = end


def _floor(rho: Tensor) -> float:
    """Return the log of the least distance told apart from 0, given the N squared distances to neighbours."""
    positive = rho[rho > 0]
    if not len(positive):
        raise DataError(
            "in every set all points coincide, or almost all", "Their distributions have no density: use MMD."
        )
    return math.log(RELATIVE_FLOOR) + 0.5 * math.log(float(positive.median()))
