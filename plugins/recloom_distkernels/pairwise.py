"""Divergences of all pairs of sets: one streaming search for all k-NN divergences and all k, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from recloom.errors import DataError
from recloom_distkernels.divergence import (
    Divergence,
    NeighbourDivergence,
    Progress,
    SetDivergence,
)
from recloom_distkernels.knn import KnnEngine, choose_engine
from recloom_distkernels.registry import parse
from recloom_distkernels.samplesets import SampleSets
from recloom_distkernels.streaming import Pairwise, Run


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
        run = Run(x, y, neighbour, tuple(sorted(set(ks))), engine, memory)
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
    for one in [parse(divergence, Divergence) for divergence in divergences]:
        if isinstance(one, NeighbourDivergence):
            for k in ks:
                one.ranks(k, x.sizes, (y or x).sizes)  # says what cannot be, of all sets
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
