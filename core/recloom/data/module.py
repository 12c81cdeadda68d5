"""The base of the LightningDataModules of click data: loaders over block sources, split over the trainer's ranks."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from typing import Any

from lightning.pytorch import LightningDataModule

from recloom.data.loader import BatchLoader, BlockSource
from recloom.data.plan import RankSplit
from recloom.errors import RecloomError


class BlockDataModule(LightningDataModule):
    """Makes the loaders of every split from block sources; a subclass gives the sources and the schema.

    Args:
        batch_size: Rows of a training batch, per rank.
        eval_batch_size: Rows of an evaluation batch, per rank.
        num_workers: Processes that load data, per rank and split; 0 loads in the training process.
        shuffle: Draw the order of training rows anew in each epoch.
        rank_split: "blocks": each rank reads its own span of the data. "rows": each rank takes its part of every
            global batch, so that R ranks see what one rank with an R times larger batch sees.
    """

    def __init__(
        self, batch_size: int, eval_batch_size: int, num_workers: int, shuffle: bool, rank_split: RankSplit
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise RecloomError(f"{name} is {value}", f"It must be at least {least}.")
        if rank_split not in ("blocks", "rows"):
            raise RecloomError(f"rank_split is {rank_split!r}", "It must be 'blocks' or 'rows'.")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.shuffle = shuffle
        self.rank_split: RankSplit = rank_split
        self._loaders: weakref.WeakSet[BatchLoader] = weakref.WeakSet()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_loaders"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._loaders = weakref.WeakSet()

    @property
    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """The FeatureSchema as a dict of primitives."""

    @abstractmethod
    def source(self, split: str, shuffle: bool = False) -> BlockSource:
        """Return the blocks of `split` ("train", "val" or "test"); DataError if there are none."""

    def has(self, split: str) -> bool:
        """Return whether there are rows of `split`."""
        return True

    def train_dataloader(self) -> BatchLoader:
        """Return full batches, in a new order in each epoch if `shuffle`."""
        # Trainer(overfit_batches=...) wants the same batches in each epoch
        shuffle = self.shuffle and not getattr(self.trainer, "overfit_batches", 0)
        return self._loader("train", self.batch_size, shuffle, drop_last=True)

    def val_dataloader(self) -> BatchLoader:
        """Return all rows of the validation split."""
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> BatchLoader:
        """Return all rows of the test split."""
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> BatchLoader:
        """Return all rows of the test split."""
        return self.test_dataloader()

    def _loader(self, split: str, batch_size: int, shuffle: bool = False, drop_last: bool = False) -> BatchLoader:
        ranks: dict[str, Any] = {}
        if self.trainer is not None:
            ranks = self.trainer.distributed_sampler_kwargs or {}
        loader = BatchLoader(
            self.source(split, shuffle),
            batch_size,
            drop_last=drop_last,
            num_workers=self.num_workers,
            rank=ranks.get("rank", 0),
            world_size=ranks.get("num_replicas", 1),
            rank_split=self.rank_split,
            epoch=self.trainer.current_epoch if self.trainer is not None else 0,
        )
        self._loaders.add(loader)
        return loader

    def teardown(self, stage: str) -> None:
        """Stop the workers."""
        for loader in self._loaders:
            loader.close()

    def on_exception(self, exception: BaseException) -> None:
        """Stop the workers."""
        self.teardown("")
