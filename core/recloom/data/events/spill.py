"""Encoded events on disk, parted by user, so that each part fits in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

FIELDS: tuple[tuple[str, DTypeLike], ...] = (("group", np.int64), ("time", np.int64), ("position", np.int64))
"""Of a stored event: the key of its user, its time in seconds, its place in the log. Its ids follow, as "id:COLUMN"."""


def event_type(columns: Sequence[str]) -> np.dtype:
    """Return the type of stored events with these columns of ids."""
    return np.dtype([*FIELDS, *((f"id:{name}", np.int32) for name in columns)])


def partition(events: NDArray[np.void], count: int) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """Return n events in the order of their parts, and the count + 1 bounds of the parts; a user is in one part."""
    part = ((events["group"].view(np.uint64) >> np.uint64(32)) % np.uint64(count)).astype(np.int16)
    bounds = np.concatenate([[0], np.cumsum(np.bincount(part, minlength=count))])
    return events[np.argsort(part, kind="stable")], bounds


class Spill:
    """Files of events in a folder of the output directory, which ShardWriter clears if a run fails.

    Args:
        directory: The folder.
        kind: Type of the events.
        parts: Number of files.
    """

    def __init__(self, directory: Path, kind: np.dtype, parts: int) -> None:
        self.parts = parts
        self._kind = kind
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._paths = [directory / f"events-{part:05d}" for part in range(parts)]

    def add(self, events: NDArray[np.void], bounds: NDArray[np.int64]) -> None:
        """Append events that `partition` has put in order."""
        for part in np.flatnonzero(np.diff(bounds)):
            with self._paths[part].open("ab", buffering=0) as file:
                data = memoryview(events[bounds[part] : bounds[part + 1]].view(np.uint8).data)
                while data:  # a disk that fills up takes a part of it first
                    data = data[file.write(data) :]

    def take(self) -> Iterator[NDArray[np.void]]:
        """Yield the events of each part in the order of the log, and remove it; an empty part is an empty array."""
        for path in self._paths:
            yield np.fromfile(path, self._kind) if path.exists() else np.empty(0, self._kind)
            path.unlink(missing_ok=True)
        self._directory.rmdir()
