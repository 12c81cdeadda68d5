"""Click logs in Parquet shards, as `recloom prepare` writes them, as a LightningDataModule."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from recloom.data.manifest import SCHEMA, Manifest
from recloom.data.module import BlockDataModule
from recloom.data.parquet_source import ParquetBlocks
from recloom.data.plan import RankSplit
from recloom.errors import DataError, RecloomError
from recloom.features import FeatureSchema


class ParquetClicks(BlockDataModule):
    """A shard directory written by `recloom prepare`, streamed: whole row groups, read by worker processes.

    Args:
        path: The directory.
        batch_size: Rows of a training batch, per rank.
        eval_batch_size: Rows of an evaluation batch, per rank.
        num_workers: Processes that read shards, per rank and split; 0 reads in the training process.
        shuffle: Shuffle the training rows anew in each epoch.
        shuffle_rows: Rows that are mixed with each other: row groups (65,536 rows, less of long histories) drawn at
            random from all shards until they have this many rows. A worker holds a few times this many rows.
        seed: Seed of the shuffling.
        rank_split: "blocks": each rank reads its own span of the data. "rows": each rank takes its part of every
            global batch, so that R ranks see what one rank with an R times larger batch sees.
        limit_rows: Use only the first rows of each split; 0: all.
        in_batch_negatives: For each row, which must be a positive of an event log, so many rows more with the label 0:
            the same with the candidate of another row of the block. Drawn anew in each epoch; those of evaluation are
            always the same.
        verify: What to check of each shard beforehand: its "size", "full" (its sha256 too, which reads all files
            once) or "none". Whatever is chosen, damaged pages and wrong ids are found when they are read.
    """

    def __init__(
        self,
        path: Path | str,
        batch_size: int = 2048,
        eval_batch_size: int = 16384,
        num_workers: int = 1,
        shuffle: bool = True,
        shuffle_rows: int = 131_072,
        seed: int = 0,
        rank_split: RankSplit = "blocks",
        limit_rows: int = 0,
        in_batch_negatives: int = 0,
        verify: Literal["none", "size", "full"] = "size",
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, shuffle, rank_split)
        if shuffle_rows < 1 or limit_rows < 0 or in_batch_negatives < 0:
            raise RecloomError("shuffle_rows must be at least 1, limit_rows and in_batch_negatives at least 0")
        self.path = Path(path)
        self.shuffle_rows = shuffle_rows
        self.seed = seed
        self.limit_rows = limit_rows
        self.in_batch_negatives = in_batch_negatives
        self.verify = verify
        self.manifest = Manifest.load(self.path)
        self._schema = FeatureSchema.load(self.path / SCHEMA)
        if not self._schema.labels:
            raise DataError(
                f"{self.path / SCHEMA}: there is no label", "Name a label column when you prepare the data."
            )

    @property
    def schema(self) -> dict[str, Any]:
        """The FeatureSchema as a dict of primitives."""
        return self._schema.to_dict()

    def prepare_data(self) -> None:
        """Check the sha256 of every shard, if `verify` is "full"; on one rank of each machine."""
        if self.verify == "full":
            for shards in self.manifest.splits.values():
                for shard in shards:
                    shard.check(self.path, full=True)

    def has(self, split: str) -> bool:
        """Return whether there are rows of `split`."""
        return bool(self.manifest.rows(split))

    def source(self, split: str, shuffle: bool = False) -> ParquetBlocks:
        """Return the blocks of `split` ("train", "val" or "test").

        Raises:
            DataError: The data set has no such split, or one of its shards is missing or has the wrong size.
        """
        shards = self.manifest.splits.get(split, [])
        if not self.has(split):
            has = ", ".join(name for name in self.manifest.splits if self.manifest.rows(name)) or "no rows at all"
            hint = "Prepare the data again with a --split that makes one."
            if split == "val":
                hint += " Or train without validation: --trainer.limit_val_batches 0."
            raise DataError(f"{self.path}: there is no {split!r} split here, only: {has}", hint)
        if self.verify != "none":
            for shard in shards:
                shard.check(self.path)
        shuffle_rows = self.shuffle_rows if shuffle else 0
        return ParquetBlocks(
            self.path, self._schema, shards, shuffle_rows, self.seed, self.limit_rows, self.in_batch_negatives
        )
