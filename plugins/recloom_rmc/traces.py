"""Traces of ids with a chosen locality, and what a trace's locality is: unique share, stack distances, hit curve.

The stack distance of an access is the number of different ids accessed since the last access of its id (Mattson et al.
1970): an LRU cache of C rows holds exactly the accesses whose distance is less than C. Here a cache holds whole rows
and has no sets; a processor's caches hold lines and evict somewhat differently.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recloom import native
from recloom.errors import RecloomError

Ids = NDArray[np.int64]
COLD = -1


def uniform(count: int, rows: int, seed: int) -> Ids:
    """Return `count` ids, each row as likely as any other."""
    return np.random.default_rng(seed).integers(rows, size=count)


def zipf(count: int, rows: int, exponent: float, seed: int) -> Ids:
    """Return `count` independent ids; the k-th most popular is drawn in proportion to k^-exponent.

    Popular ids are spread over the table, as they are when ids come from a hash.
    """
    if exponent < 0:
        raise RecloomError(f"a Zipf exponent is {exponent}", "It is 0 (uniform) or more; real logs are near 1.")
    random = np.random.default_rng(seed)
    cumulative = np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -exponent)
    ranks = np.searchsorted(cumulative, random.random(count) * cumulative[-1], side="right")
    return _scatter(rows)[np.minimum(ranks, rows - 1)]


def unique_share(count: int, rows: int, share: float, seed: int) -> Ids:
    """Return `count` ids of which a `share` appear for the first time; the others repeat one of them at random."""
    if not 0 < share <= 1:
        raise RecloomError(f"a share of unique ids is {share}", "It is more than 0 and at most 1.")
    fresh = max(1, round(count * share))
    if fresh > rows:
        raise RecloomError(
            f"{count} ids with a share of {share:g} unique ones need {fresh} rows, and the table has {rows}",
            "Take fewer ids or more rows.",
        )
    random = np.random.default_rng(seed)
    is_fresh = np.zeros(count, bool)
    is_fresh[0] = True
    is_fresh[1 + random.permutation(count - 1)[: fresh - 1]] = True
    seen = np.cumsum(is_fresh)  # of each place, how many different ids there are by then
    which = np.where(is_fresh, seen - 1, (random.random(count) * seen).astype(np.int64))
    return random.permutation(rows)[:fresh][which]


def of_distances(distances: Ids, rows: int, seed: int) -> Ids:
    """Return ids whose stack distances are `distances`, COLD (-1) standing for an id that was not there before.

    A distance that cannot be (more than the ids seen so far, a new id when all rows have been used) becomes the
    nearest possible one: the least recent id.
    """
    distances = np.ascontiguousarray(distances, np.int64)
    fresh = np.random.default_rng(seed).permutation(rows).astype(np.int64)
    out = np.empty(len(distances), np.int64)
    if (library := _library()) is not None:
        if library.recloom_trace(_at(distances), len(distances), _at(fresh), rows, _at(out)):
            raise MemoryError(f"no memory for a trace of {len(distances)} ids")
        return out
    stack: list[int] = []  # without a compiler: the least recent id first; time grows with the distances
    used = 0
    for now, distance in enumerate(distances.tolist()):
        if (distance < 0 or not stack) and used < rows:
            chosen, used = int(fresh[used]), used + 1
        else:
            chosen = stack.pop(-1 - distance if 0 <= distance < len(stack) else 0)
        stack.append(chosen)
        out[now] = chosen
    return out


def draw_distances(count: int, median: float, spread: float, cold: float, seed: int) -> Ids:
    """Return `count` stack distances: a share `cold` of COLD, the others log-normal.

    Args:
        count: How many.
        median: Median distance of those that are not cold.
        spread: Standard deviation of their natural logarithm.
        cold: Share of ids that were not there before.
        seed: Seed.
    """
    if median < 1 or spread < 0 or not 0 <= cold <= 1:
        raise RecloomError(
            f"stack distances with median {median}, spread {spread} and a cold share of {cold}",
            "The median is at least 1, the spread at least 0, the share between 0 and 1.",
        )
    random = np.random.default_rng(seed)
    found = np.exp(np.log(median) + spread * random.standard_normal(count)).astype(np.int64)
    return np.where(random.random(count) < cold, COLD, found)


def stack_distances(ids: Ids) -> Ids:
    """Return the stack distance of each access, COLD where the id was not there before."""
    _, dense = np.unique(ids, return_inverse=True)  # 0..U-1: memory for the ids that appear, not for the table
    dense = np.ascontiguousarray(dense.reshape(-1), np.int64)
    out = np.empty(len(dense), np.int64)
    if (library := _library()) is not None:
        if library.recloom_stack_distances(_at(dense), len(dense), int(dense.max(initial=-1)) + 1, _at(out)):
            raise MemoryError(f"no memory for the stack distances of {len(ids)} ids")
        return out
    stack: list[int] = []  # without a compiler
    for now, row in enumerate(dense.tolist()):
        try:
            place = stack.index(row)
        except ValueError:
            out[now] = COLD
        else:
            out[now] = len(stack) - 1 - place
            stack.pop(place)
        stack.append(row)
    return out


def hit_curve(distances: Ids, sizes: Sequence[int]) -> list[float]:
    """Return the share of accesses that an LRU cache of each of `sizes` rows holds."""
    warm = np.sort(distances[distances >= 0])
    return [float(np.searchsorted(warm, size, side="left")) / max(len(distances), 1) for size in sizes]


def unique_of(ids: Ids) -> float:
    """Return the share of different ids among all."""
    return len(np.unique(ids)) / max(len(ids), 1)


@functools.lru_cache(maxsize=4)
def _scatter(rows: int) -> Ids:
    return np.random.default_rng(rows).permutation(rows)


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = native.load("locality.c", Path(__file__).parent)
    if library is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        library.recloom_stack_distances.argtypes = [pointer, number, number, pointer]
        library.recloom_trace.argtypes = [pointer, number, pointer, number, pointer]
    return library


def _at(array: Ids) -> int:
    return int(array.ctypes.data)
