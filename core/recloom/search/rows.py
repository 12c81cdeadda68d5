"""Rows of a split kept in memory: many candidates are trained and measured on the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor

from recloom.batch import Batch, KeyedJaggedTensor
from recloom.data.loader import BlockSource
from recloom.data.module import BlockDataModule
from recloom.errors import DataError
from recloom.jagged import map_tensors


def read_blocks(source: BlockSource, rows: int | None) -> Iterator[Batch]:
    """Yield `rows` rows of a source, block by block (None: all of them).

    Fewer than it has are taken from blocks spread evenly over it, in proportion to their sizes, so that a subset
    spans the same time.
    """
    sizes = np.array(source.block_rows(0))
    total = int(sizes.sum())
    wanted = total if rows is None else min(rows, total)
    if not wanted:
        raise DataError("the data have no rows to search on", "Check the data's splits: num_train, num_val, ...")
    count = -(-wanted * len(sizes) // total)
    while sizes[chosen := np.unique(np.linspace(0, len(sizes) - 1, count).round().astype(int))].sum() < wanted:
        count += 1
    left = int(sizes[chosen].sum())
    for index in chosen:
        size = int(sizes[index])
        taken = min(size, -(-wanted * size // left))
        block = source.load(0, int(index))
        yield block if taken == size else block.rows(0, taken)
        wanted, left = wanted - taken, left - size


def read_batches(data: BlockDataModule, split: str, batch_size: int, rows: int | None = None) -> list[Batch]:
    """Return rows of `split` as batches of `batch_size`; only the last may be smaller. They are kept in memory."""
    found: list[Batch] = []
    rest: list[Batch] = []
    for block in read_blocks(data.source(split), rows):
        rest.append(block)
        whole = rest[0] if len(rest) == 1 else Batch.concat(rest)
        end = len(whole) // batch_size * batch_size
        found += [_own(whole.rows(start, start + batch_size)) for start in range(0, end, batch_size)]
        rest = [whole.rows(end, len(whole))] if end < len(whole) else []
    return [*found, *map(_own, rest)]


class MemoryLoader:
    """Batches in memory as a training loader: the same ones in each epoch, in an order of the epoch's.

    Its position is kept in checkpoints, as `recloom.data.loader.BatchLoader`'s is.

    Args:
        batches: The batches.
        seed: Seed of the order.
        shuffle: Whether each epoch has an order of its own; else it is that of `batches`.
    """

    def __init__(self, batches: list[Batch], seed: int = 0, shuffle: bool = True) -> None:
        self.batches = batches
        self.seed = seed
        self.shuffle = shuffle
        self._epoch, self._batch = -1, 0
        self._resumed: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        # the epoch is taken at the first batch: Lightning makes iterators that it never uses
        self._epoch, first = self._resumed or (self._epoch + 1, 0)
        self._resumed = None
        order = np.arange(len(self.batches))
        if self.shuffle:
            order = np.random.default_rng([self.seed, self._epoch]).permutation(len(self.batches))
        for place in range(first, len(order)):
            self._batch = place + 1
            yield self.batches[order[place]]

    def state_dict(self) -> dict[str, int]:
        """Return the position: the epoch, and how many of its batches were handed out."""
        return {"epoch": max(self._epoch, 0), "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next iteration go on where `state` was taken."""
        ended = state["batch"] >= len(self)
        self._resumed = (state["epoch"] + 1, 0) if ended else (state["epoch"], state["batch"])


def tensor_bytes(value: Any) -> int:
    """Return the memory that the tensors of a batch, a list or a tuple hold."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, KeyedJaggedTensor):
        return tensor_bytes([value.values, value._lengths, value._offsets, value.weights])
    if isinstance(value, dict):
        return sum(map(tensor_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(tensor_bytes, value))
    if is_dataclass(value):
        return sum(tensor_bytes(getattr(value, field.name)) for field in fields(value))
    return 0


def _own(batch: Batch) -> Batch:
    """Return `batch` without the block it was cut from: a slice would keep all of that in memory."""

    def own(tensor: Tensor) -> Tensor:
        return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()

    return map_tensors(batch, own)
