"""A world of clicks as blocks of rows, for loaders. Imports no Lightning: workers import it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from recloom.batch import Batch
from recloom.data.clickworld import BLOCK_ROWS, SPLITS, ClickWorld, ClickWorldConfig
from recloom.data.loader import BlockSource


@functools.lru_cache(maxsize=2)
def world_of(config: ClickWorldConfig) -> ClickWorld:
    """Return this process's world of `config`, built at the first call."""
    return ClickWorld(config)


class ClickBlocks(BlockSource):
    """One split of a world as blocks.

    Args:
        config: The world.
        split: "train", "val" or "test".
        shuffle: Draw the order of blocks anew in each epoch. Rows within a block stay in the order of time.
    """

    def __init__(self, config: ClickWorldConfig, split: str, shuffle: bool = False) -> None:
        self._config = config
        self._split = SPLITS.index(split)
        self._shuffle = shuffle

    def block_rows(self, epoch: int) -> Sequence[int]:
        """Return the rows of each block."""
        rows = self._config.rows[self._split]
        return [min(BLOCK_ROWS, rows - index * BLOCK_ROWS) for index in self._order(epoch)]

    def load(self, epoch: int, index: int) -> Batch:
        """Generate a block."""
        return world_of(self._config).block(self._split, int(self._order(epoch)[index]))

    def _order(self, epoch: int) -> np.ndarray:
        blocks = -(-self._config.rows[self._split] // BLOCK_ROWS)
        if not self._shuffle:
            return np.arange(blocks)
        return np.random.default_rng(np.random.SeedSequence([self._config.seed, 9, epoch])).permutation(blocks)
