"""Ranking data from an event stream: each event beside pairs that did not happen, from after a cut in time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recloom.batch import Batch, KeyedJaggedTensor
from recloom.data.loader import BlockSource
from recloom.data.module import BlockDataModule
from recloom.data.plan import RankSplit
from recloom.data.streams.folder import load_stream
from recloom.data.streams.stream import SPLITS, EventStream
from recloom.errors import DataError, RecloomError
from recloom.features import DenseFeature, FeatureSchema, SparseFeature

BLOCK_EVENTS = 8192
DAY = 86_400


class StreamClicks(BlockDataModule):
    """Rows (user, item, label) of a bipartite event stream's validation and test events, in order of time.

    A model of the stream is trained on its training events, and its vectors know those (`recloom.nodes`); the rows here
    come later: training rows are the stream's validation events; validation and test rows are halves of its test
    events. Each event is a row with label 1, and has `negatives` rows with label 0: the item of another event of its
    block, so that popularity alone tells nothing. Ids are the stream's numbers of nodes. The hour of the day is the
    dense features.

    Args:
        path: Folder of a stream that `recloom prepare jodie` or `graph` wrote.
        negatives: Rows with label 0 for each event.
        batch_size: Rows of a training batch, per rank.
        eval_batch_size: Rows of an evaluation batch, per rank.
        num_workers: Processes that make rows, per rank and split; 0 makes them in the training process.
        shuffle: Draw the order of training rows anew in each epoch: of blocks of events, and of the events of each.
        seed: Seed of the pairs that did not happen.
        rank_split: "blocks": each rank takes its own span of the rows. "rows": each rank takes its part of every
            global batch.
    """

    def __init__(
        self,
        path: Path | str,
        negatives: int = 3,
        batch_size: int = 512,
        eval_batch_size: int = 8192,
        num_workers: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        rank_split: RankSplit = "blocks",
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, shuffle, rank_split)
        if negatives < 1:
            raise RecloomError(f"negatives is {negatives}", "It must be at least 1.")
        self.path, self.negatives, self.seed = Path(path), negatives, seed
        self._stream = load_stream(self.path, verify=True).check()
        if not self._stream.bipartite:
            raise DataError(f"{self.path}: the stream has one kind of node", "Users and items are to be two.")

    @property
    def schema(self) -> dict[str, Any]:
        """The FeatureSchema as a dict of primitives."""
        return FeatureSchema(
            dense=(DenseFeature("hour_sin"), DenseFeature("hour_cos")),
            sparse=(
                SparseFeature("user", self._stream.num_sources, 1),
                SparseFeature("item", self._stream.num_destinations, 1),
            ),
            timestamp="time",
            item_features=("item",),
            item_id="item",
            info={"stream": str(self.path), "negatives": self.negatives},
        ).to_dict()

    @property
    def first_time(self) -> int:
        """Unix seconds of the first training row."""
        start, _ = self._span("train")
        return int(self._stream.time[start]) // self._stream.ticks

    def _span(self, split: str) -> tuple[int, int]:
        last, (start, stop) = self._stream.span("val"), self._stream.span("test")
        middle = (start + stop) // 2
        found = {"train": last, "val": (start, middle), "test": (middle, stop)}[split]
        if found[0] >= found[1]:
            what = f"{self.path}: the stream has too few validation or test events for a {split!r} split"
            raise DataError(what, "Prepare it again with a --split that makes some.")
        return found

    def source(self, split: str, shuffle: bool = False) -> BlockSource:
        """Return the blocks of `split` ("train", "val" or "test")."""
        part = self._stream.slice(*self._span(split))
        return _Pairs(part, self.negatives, [self.seed, SPLITS.index(split)], shuffle)


class _Pairs(BlockSource):
    """The rows of a span of events, in blocks.

    Args:
        stream: The events.
        negatives: Rows with label 0 for each event.
        seed: Seed of those.
        shuffle: Draw the order of blocks, and of events in a block, anew in each epoch.
    """

    def __init__(self, stream: EventStream, negatives: int, seed: list[int], shuffle: bool) -> None:
        self.stream, self.negatives, self.seed, self.shuffle = stream, negatives, seed, shuffle

    def _order(self, epoch: int) -> Sequence[int]:
        count = math.ceil(len(self.stream) / BLOCK_EVENTS)
        if not self.shuffle:
            return range(count)
        return np.random.default_rng([*self.seed, epoch]).permutation(count).tolist()

    def block_rows(self, epoch: int) -> Sequence[int]:
        """Return the rows of each block."""
        sizes = [min(BLOCK_EVENTS, len(self.stream) - index * BLOCK_EVENTS) for index in self._order(epoch)]
        return [size * (1 + self.negatives) for size in sizes]

    def load(self, epoch: int, index: int) -> Batch:
        """Make a block."""
        block = self._order(epoch)[index]
        part = self.stream.slice(block * BLOCK_EVENTS, min((block + 1) * BLOCK_EVENTS, len(self.stream)))
        events, width = len(part), 1 + self.negatives
        order = torch.arange(events)
        if self.shuffle:  # neighbours in time are often the same user at the same item
            order = torch.from_numpy(np.random.default_rng([*self.seed, block, 2, epoch]).permutation(events))
        random = np.random.default_rng([*self.seed, block, 1])
        drawn = torch.from_numpy(random.integers(0, events, (events, self.negatives)))
        source, destination, time = (column[order] for column in (part.source, part.destination, part.time))
        items = torch.cat([destination[:, None], destination[drawn]], dim=1).flatten()
        labels = torch.zeros(events, width)
        labels[:, 0] = 1
        seconds = torch.div(time, part.ticks, rounding_mode="floor").repeat_interleave(width)
        angle = (seconds % DAY).float() * (2 * math.pi / DAY)
        users = source.repeat_interleave(width)
        return Batch(
            dense_features=torch.stack([angle.sin(), angle.cos()], dim=1),
            sparse_features=KeyedJaggedTensor(["user", "item"], torch.cat([users, items])),
            labels=labels.flatten(),
            timestamps=seconds,
        )
