"""Ids with their codes in two arrays without holes: what indexes that look at every code, or fetch some, keep."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np

from recloom import archives
from recloom.retrieval.index import Floats, Ids


class CodeStore:
    """N ids and N x D codes; removing moves the last ones into the holes.

    Args:
        dim: Width of a code, D.
    """

    def __init__(self, dim: int) -> None:
        self._ids: Ids = np.empty(0, np.int64)
        self._codes: Floats = np.empty((0, dim), np.float32)
        self._count = 0
        self._sorted: tuple[Ids, Ids] | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def ids(self) -> Ids:
        """The ids, in no particular order: a view."""
        return self._ids[: self._count]

    @property
    def codes(self) -> Floats:
        """The codes, in the order of `ids`: a view."""
        return self._codes[: self._count]

    def replace(self, ids: Ids, codes: Floats) -> None:
        """Hold these and nothing else."""
        self._ids, self._codes, self._count, self._sorted = ids.copy(), codes.copy(), len(ids), None

    def places(self, ids: Ids) -> Ids:
        """Return where `ids` are, -1 for those that are not there."""
        if self._sorted is None:
            order = np.argsort(self.ids, kind="stable")
            self._sorted = self.ids[order], order
        known, order = self._sorted
        if not len(known):
            return np.full(ids.shape, -1, np.int64)
        near = np.searchsorted(known, ids).clip(max=len(known) - 1)
        return np.where(known[near] == ids, order[near], -1)

    def put(self, ids: Ids, codes: Floats) -> None:
        """Add, or replace."""
        places = self.places(ids)
        old = places >= 0
        self._codes[places[old]] = codes[old]
        fresh = np.flatnonzero(~old)
        if not len(fresh):
            return
        needed = self._count + len(fresh)
        if needed > len(self._ids):
            room = max(needed, len(self._ids) + len(self._ids) // 2, 64)
            grown_ids, grown = np.empty(room, np.int64), np.empty((room, self._codes.shape[1]), np.float32)
            grown_ids[: self._count], grown[: self._count] = self.ids, self.codes
            self._ids, self._codes = grown_ids, grown
        self._ids[self._count : needed], self._codes[self._count : needed] = ids[fresh], codes[fresh]
        self._count, self._sorted = needed, None

    def remove(self, ids: Ids) -> int:
        """Remove those of `ids` that are there; return how many."""
        places = self.places(np.unique(ids))
        holes = np.sort(places[places >= 0])
        left = self._count - len(holes)
        inside = holes[holes < left]
        moved = np.setdiff1d(np.arange(left, self._count), holes)  # as many as holes inside
        self._ids[inside], self._codes[inside] = self._ids[moved], self._codes[moved]
        self._count, self._sorted = left, None
        return len(holes)

    def save(self, path: Path) -> None:
        """Write an .npz file."""
        np.savez(path, ids=self.ids, codes=self.codes)

    def load(self, path: Path) -> Self:
        """Read what `save` wrote."""
        found = archives.read_arrays(path, "Build the index anew.")
        self.replace(found["ids"], found["codes"])
        return self
