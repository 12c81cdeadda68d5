"""Negatives of the whole log: items drawn uniformly or by popularity, never the positive one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recloom.errors import DataError


class ItemCounts:
    """How often each item occurs, and its further keys, gathered from blocks of events.

    Args:
        size: Number of ids of items.
        keys: The columns of the further keys.
    """

    def __init__(self, size: int, keys: Sequence[str]) -> None:
        self.counts = np.zeros(size, np.int64)
        self.keys = {key: np.zeros(size, np.int32) for key in keys}

    def add(self, items: NDArray[np.int32], keys: dict[str, NDArray[np.int32]]) -> None:
        """Count n events; an item has the keys of its last event."""
        self.counts += np.bincount(items, minlength=len(self.counts))
        for name, values in keys.items():
            self.keys[name][items] = values


class NegativeSampler:
    """Draws items other than the positive one.

    Args:
        items: Counts of the items.
        by_popularity: Draw an item as often as it occurs, not each as often as the others.

    Raises:
        DataError: There is just one item.
    """

    def __init__(self, items: ItemCounts, by_popularity: bool) -> None:
        weights = items.counts if by_popularity else (items.counts > 0).astype(np.int64)
        weights[0] = 0  # items that share id 0 are no candidates
        if np.count_nonzero(weights) < 2:
            raise DataError("--negatives: the log has fewer than two items to choose from", "Use --negatives none.")
        self._weights = weights
        self._ends = np.cumsum(weights)

    def draw(self, items: NDArray[np.int32], numbers: NDArray[np.float64]) -> NDArray[np.int32]:
        """Return n items by n numbers in [0, 1), each another item than that of `items`."""
        own = self._weights[items]
        place = (numbers * (self._ends[-1] - own)).astype(np.int64)
        place += np.where(place >= self._ends[items] - own, own, 0)  # leaves out the share of the item itself
        return np.searchsorted(self._ends, place, side="right").astype(np.int32)
