"""What generated data sets have in common: a world made from a config, its rows as blocks, its oracle.

Imports no Lightning: workers import it.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recloom.batch import Batch
from recloom.data.loader import BlockSource
from recloom.errors import RecloomError

BLOCK_ROWS = 32_768
SPLITS = ("train", "val", "test")
START = 1_700_000_000  # time of the first row


class World(ABC):
    """Makes rows of which the true click probabilities are known."""

    @abstractmethod
    def block(self, split: int, index: int) -> Batch:
        """Return block `index` of split number `split` (0 train, 1 val, 2 test): a function of the config alone."""


class WorldConfig(Protocol):
    """What a world is made from; worlds of equal configs are equal."""

    def __hash__(self) -> int:
        """Configs are keys of the cache of worlds: frozen dataclasses."""

    @property
    def rows(self) -> tuple[int, int, int]:
        """Rows of each split."""

    @property
    def seed(self) -> int:
        """Seed of the world and its rows."""

    def build(self) -> World:
        """Make the world."""


def refuse(owner: str, faults: Mapping[str, tuple[bool, str]]) -> None:
    """Raise a RecloomError for the first option that is outside its range.

    Args:
        owner: The data set.
        faults: By option: whether it is, and what the range is.
    """
    for name, (wrong, wanted) in faults.items():
        if wrong:
            raise RecloomError(f"{owner}: {name} is out of its range", f"It must be {wanted}.")


@functools.lru_cache(maxsize=2)
def world_of(config: WorldConfig) -> World:
    """Return this process's world of `config`, built at the first call."""
    return config.build()


class WorldBlocks(BlockSource):
    """One split of a world as blocks.

    Args:
        config: The world.
        split: "train", "val" or "test".
        shuffle: Draw the order of blocks anew in each epoch. Rows within a block stay in the order of time.
    """

    def __init__(self, config: WorldConfig, split: str, shuffle: bool = False) -> None:
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

    def oracle(self) -> dict[str, float]:
        """Return the "ne", "auc" and "logloss" of the true probabilities on all rows: the best possible.

        NE is the mean cross-entropy of the labels over the entropy of their mean, in double precision.
        """
        blocks = [self.load(0, index) for index in range(len(self.block_rows(0)))]
        labels = np.concatenate([block.labels.numpy() for block in blocks]).astype(np.float64)
        chances = np.concatenate([block.extras["probability"].numpy() for block in blocks]).astype(np.float64)
        return _measure(labels, chances)

    def _order(self, epoch: int) -> np.ndarray:
        blocks = -(-self._config.rows[self._split] // BLOCK_ROWS)
        if not self._shuffle:
            return np.arange(blocks)
        return np.random.default_rng(np.random.SeedSequence([self._config.seed, 9, epoch])).permutation(blocks)


def zipf(size: int, exponent: float) -> NDArray[np.float64]:
    """Return the popularity of ids 0..size-1: proportional to 1 / (id + 1)^exponent."""
    weights = np.arange(1, size + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


def fit_bias(logits: NDArray[np.float64], mean: float) -> float:
    """Return what has to be added to `logits` to make the mean probability `mean`."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        below = (1 / (1 + np.exp(-(logits + middle)))).mean() < mean
        low, high = (middle, high) if below else (low, middle)
    return (low + high) / 2


def _measure(labels: np.ndarray, chances: np.ndarray) -> dict[str, float]:
    """Return NE, AUC and log loss of predicted `chances`."""
    logloss = float(-np.mean(labels * np.log(chances) + (1 - labels) * np.log1p(-chances)))
    mean = labels.mean()
    entropy = -(mean * np.log(mean) + (1 - mean) * np.log1p(-mean))
    # AUC from ranks (Mann-Whitney); ties of float32 probabilities share their mean rank
    _, place, counts = np.unique(chances, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    clicks = labels.sum()
    auc = (ranks[labels == 1].sum() - clicks * (clicks + 1) / 2) / (clicks * (len(labels) - clicks))
    return {"ne": logloss / float(entropy), "auc": float(auc), "logloss": logloss}
