"""The streaming run behind `pairwise_divergences`: searches block by block, and averages of what is found."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recloom.errors import DataError
from recloom_distkernels.divergence import Directed, LogDistances, NeighbourDivergence, Part, Progress
from recloom_distkernels.knn import KnnEngine, choose_engine
from recloom_distkernels.samplesets import SampleSets

RELATIVE_FLOOR = 1e-6  # of the median distance to a neighbour: nearer points count as one

Statistics = dict[tuple[str, int], Tensor]
"""By divergence and k."""
Block = tuple[SampleSets, LogDistances, int, int]
"""Sets, their distances to neighbours among themselves, and the numbers of the first and of the one after the last."""


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


class Run:
    """One computation of k-NN divergences.

    Args:
        x: S sets.
        y: T sets; None: the sets x.
        divergences: The divergences, by name.
        ks: Neighbours, ascending.
        engine: k-NN engine; None: the fastest.
        memory: Bytes of distances that are held at a time, about.
    """

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
        self.threads = torch.get_num_threads() if x.values.device.type == "cpu" else 1
        self._lock = threading.Lock()

    def compute(self, floor: float | None, progress: Progress) -> Pairwise:
        """Return all divergences."""
        rho_x = self.engine.own(self.x.values, self.x.offsets, self.own_ranks)
        rho_y = rho_x if self.same else self.engine.own(self.y.values, self.y.offsets, self.own_ranks)
        self.floor = _floor(rho_x[self.ks[0] - 1]) if floor is None else floor
        halves = 1 if self.same else 2
        if self.same and self.engine.halves(self.x.dim, self.other_ranks, self.x.sizes):
            own_x, there = self._among(self.x, rho_x, progress)
        else:
            own_x, there = self._towards(self.x, self.y, rho_x, lambda done: progress(done / halves))
        own_y, back = (
            (own_x, there)
            if self.same
            else self._towards(self.y, self.x, rho_y, lambda done: progress(0.5 + done / halves))
        )
        found = Pairwise(floor=self.floor, clamped=self.clamped / max(self.counted, 1))
        for key in there:
            divergence, k = self.divergences[key[0]], key[1]
            n, m, dim = self.x.sizes.double(), self.y.sizes.double(), self.x.dim
            one = Directed(there[key], own_x[key], own_y[key], n, m, dim, k, self.same)
            other = Directed(back[key], own_y[key], own_x[key], m, n, dim, k, self.same)
            found.there[key] = divergence.values(one, other)
            found.back[key] = found.there[key].t() if self.same else divergence.values(other, one)
        return found

    def _towards(self, x: SampleSets, y: SampleSets, rho: Tensor, progress: Progress) -> tuple[Statistics, Statistics]:
        """Return the statistics of the sets x alone, and of x towards y."""
        own, cross = self._empty(x, y)
        work: list[Callable[[], float]] = []
        for a, b in _blocks(x.offsets, self._rows()):
            sets = x.slice(a, b)
            lo, hi = int(x.offsets[a]), int(x.offsets[b])
            near = LogDistances(rho[None, :, lo:hi], self.floor)
            self._alone(own, sets, near, a, b)
            for c, d in _blocks(y.offsets, None, max(1, self._rows() // (hi - lo))):
                first = lo - int(y.offsets[c]) if self.same else None
                at = (c, d, a, b)
                work.append(functools.partial(self._search, cross, sets, y.slice(c, d), near, first, at))
        self._do(work, x.points * y.points, progress)
        return own, {key: found.t() for key, found in cross.items()}

    def _among(self, x: SampleSets, rho: Tensor, progress: Progress) -> tuple[Statistics, Statistics]:
        """Return the same of x towards x, block by block, with the distances of two blocks computed once for both."""
        own, cross = self._empty(x, x)
        side = max(1, int((self._rows() * len(x) / x.points) ** 0.5))  # sets a block: side^2 of them are held at a time
        places = list(_blocks(x.offsets, None, side))
        blocks = [
            (x.slice(a, b), LogDistances(rho[None, :, int(x.offsets[a]) : int(x.offsets[b])], self.floor), a, b)
            for a, b in places
        ]
        work: list[Callable[[], float]] = []
        for i, (sets, near, a, b) in enumerate(blocks):
            self._alone(own, sets, near, a, b)
            work.append(functools.partial(self._search, cross, sets, sets, near, 0, (a, b, a, b)))
            work += [functools.partial(self._both, cross, blocks[i], other) for other in blocks[i + 1 :]]
        self._do(work, x.points**2, progress)
        return own, {key: found.t() for key, found in cross.items()}

    def _search(
        self,
        cross: Statistics,
        sets: SampleSets,
        targets: SampleSets,
        near: LogDistances,
        first: int | None,
        at: tuple[int, int, int, int],
    ) -> float:
        """Fill in what some sets have towards target sets; return the pairs of points."""
        squared = self.engine.search(sets.values, targets.values, targets.offsets, self.other_ranks, first)
        self._across(cross, sets.sizes, targets.sizes, near, squared, at)
        return float(sets.points) * targets.points

    def _both(self, cross: Statistics, one: Block, other: Block) -> float:
        """Fill in what two blocks of sets have towards each other; return the pairs of points."""
        (sets, near, a, b), (others, far, c, d) = one, other
        there, back = self.engine.both(sets.values, sets.offsets, others.values, others.offsets, self.other_ranks)
        self._across(cross, sets.sizes, others.sizes, near, there, (c, d, a, b))
        self._across(cross, others.sizes, sets.sizes, far, back, (a, b, c, d))
        return 2.0 * sets.points * others.points

    def _do(self, work: list[Callable[[], float]], total: float, progress: Progress) -> None:
        """Do all work, a thread a piece: each piece alone is too small for several."""
        done = 0.0
        if self.threads == 1:
            for piece in work:
                done += piece()
                progress(done / total)
            return
        # at::set_num_threads is of the calling thread, for what it starts itself
        pool = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))
        try:
            for pairs in pool.map(lambda piece: piece(), work):
                done += pairs
                progress(done / total)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self.threads)

    def _empty(self, x: SampleSets, y: SampleSets) -> tuple[Statistics, Statistics]:
        keys = [(name, k) for name in self.divergences for k in self.ks]
        own = {key: torch.zeros(len(x), dtype=torch.float64) for key in keys}
        return own, {key: torch.zeros(len(y), len(x), dtype=torch.float64) for key in keys}

    def _alone(self, own: Statistics, sets: SampleSets, near: LogDistances, a: int, b: int) -> None:
        """Fill in what sets a .. b-1 have alone."""
        for part, key in self._parts(sets.sizes, sets.sizes, near, near):
            own[key][a:b] = self.divergences[key[0]].own(part)

    def _across(
        self,
        cross: Statistics,
        n: Tensor,
        m: Tensor,
        near: LogDistances,
        squared: Tensor,
        at: tuple[int, int, int, int],
    ) -> None:
        """Fill in what sets of sizes n have towards target sets of sizes m, at their places in T x S matrices."""
        nu = LogDistances(squared, self.floor)
        c, d, a, b = at
        for part, key in self._parts(n, m, near, nu):
            cross[key][c:d, a:b] = self.divergences[key[0]].statistic(part)
        clamped = int((nu.rank(self.ks[0]) <= self.floor).sum())
        with self._lock:
            self.clamped += clamped
            self.counted += squared.shape[0] * squared.shape[2]

    def _parts(
        self, n: Tensor, m: Tensor, rho: LogDistances, nu: LogDistances
    ) -> Iterator[tuple[Part, tuple[str, int]]]:
        for name in self.divergences:
            for k in self.ks:
                yield Part(self.x.dim, k, n, m, rho, nu), (name, k)

    def _rows(self) -> int:
        """Return how many points' distances to one target set fit into the memory, with what is made of them."""
        return max(1, self.memory // self.threads // (8 * (self.own_ranks + self.other_ranks + 3)))


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
