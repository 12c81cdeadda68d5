"""Sets of points with a label each, as Lightning data modules."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, Self

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recloom.errors import DataError
from recloom.features import DenseFeature, FeatureSchema
from recloom_distkernels.readers import read_parquet
from recloom_distkernels.samplesets import SampleSets
from recloom_distkernels.tasks import TASKS, LabelledSets


@dataclass
class GroupBatch:
    """B sets of points.

    Args:
        values: N x d points.
        lengths: B sizes.
        labels: B labels.
    """

    values: Tensor
    lengths: Tensor
    labels: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """Return a copy on `device`."""
        return type(self)(*(t.to(device, non_blocking=non_blocking) for t in (self.values, self.lengths, self.labels)))

    def __len__(self) -> int:
        return len(self.lengths)


class _Groups(Dataset[GroupBatch]):
    """Sets that are taken whole batches at a time."""

    def __init__(self, sets: SampleSets, labels: Tensor) -> None:
        self.sets, self.labels = sets, labels

    def __len__(self) -> int:
        return len(self.sets)

    def __getitem__(self, index: int) -> GroupBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> GroupBatch:
        chosen = self.sets.select(indices)
        return GroupBatch(chosen.values, chosen.sizes, self.labels[indices])


class GroupDataModule(pl.LightningDataModule):
    """Labelled sets of points, split at random by set into training, validation and test.

    Args:
        batch_size: Sets of a training batch.
        eval_batch_size: Sets of an evaluation batch.
        seed: Seed of the split.
    """

    def __init__(self, batch_size: int, eval_batch_size: int, seed: int) -> None:
        super().__init__()
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self._splits: dict[str, _Groups] = {}

    @abstractmethod
    def load(self) -> LabelledSets:
        """Return all sets, float32, with their labels."""

    @property
    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """The FeatureSchema as a dict of primitives: a dense feature for each coordinate."""

    def setup(self, stage: str) -> None:
        """Load and split, once."""
        if self._splits:
            return
        sets, labels = self.load()
        order = np.random.default_rng([self.seed, 17]).permutation(len(sets))
        train, val = int(0.7 * len(order)), int(0.8 * len(order))
        for name, rows in (("train", order[:train]), ("val", order[train:val]), ("test", order[val:])):
            if not len(rows):
                raise DataError(f"{len(sets)} sets leave none for the {name} split", "Give more sets.")
            self._splits[name] = _Groups(sets.select(rows), torch.from_numpy(labels[rows].astype(np.float32)))

    def train_dataloader(self) -> DataLoader[GroupBatch]:
        """Return the training batches, in an order drawn anew in each epoch."""
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[GroupBatch]:
        """Return the validation batches."""
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[GroupBatch]:
        """Return the test batches."""
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[GroupBatch]:
        """Return the test batches."""
        return self.test_dataloader()

    def _loader(self, split: str, size: int, shuffle: bool = False) -> DataLoader[GroupBatch]:
        return DataLoader(self._splits[split], batch_size=size, shuffle=shuffle, collate_fn=_same)  # type: ignore[arg-type]


def _same(batch: GroupBatch) -> GroupBatch:
    return batch


class SyntheticGroups(GroupDataModule):
    """Sets drawn from distributions that are known: what decides a label is a property of the distribution.

    Args:
        task: "skewness": sets from Beta(a, 3), the label is the skewness; "entropy": rotated 2-d Gaussians, the label
            is the entropy of the first marginal; "digits": scikit-learn's digits as 500 noisy points each, ten classes;
            "ring": rings and blobs, two classes.
        num_sets: Number of sets.
        points: Points of a set, about.
        batch_size: Sets of a training batch.
        eval_batch_size: Sets of an evaluation batch.
        seed: Seed of the sets and the split.
    """

    def __init__(
        self,
        task: Literal["skewness", "entropy", "digits", "ring"] = "ring",
        num_sets: int = 1000,
        points: int = 100,
        batch_size: int = 32,
        eval_batch_size: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        self.task, self.num_sets, self.points = task, num_sets, points

    @property
    def schema(self) -> dict[str, Any]:
        """The FeatureSchema as a dict of primitives."""
        dim = 1 if self.task == "skewness" else 2
        dense = tuple(DenseFeature(f"x{i}") for i in range(dim))
        return FeatureSchema(dense=dense, info={"generator": "SyntheticGroups", "task": self.task}).to_dict()

    def load(self) -> LabelledSets:
        """Return the sets and labels."""
        sets, labels = TASKS[self.task](self.num_sets, self.points, self.seed)
        return sets.to(torch.float32), labels


class ParquetGroups(GroupDataModule):
    """Sets of points in Parquet files, a row a point; the rows of a set have the same value in a group column.

    Args:
        path: A Parquet file, or a folder of them.
        group: Column that tells the set.
        label: Column of the set's label, the same in all its rows.
        columns: Columns of coordinates; empty: all other numeric columns.
        batch_size: Sets of a training batch.
        eval_batch_size: Sets of an evaluation batch.
        seed: Seed of the split.
    """

    def __init__(
        self,
        path: str,
        group: str = "group",
        label: str = "label",
        columns: tuple[str, ...] = (),
        batch_size: int = 32,
        eval_batch_size: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        self._table = read_parquet(path, group, columns, label)

    @property
    def schema(self) -> dict[str, Any]:
        """The FeatureSchema as a dict of primitives."""
        return FeatureSchema(dense=tuple(DenseFeature(name) for name in self._table.columns)).to_dict()

    def load(self) -> LabelledSets:
        """Return the sets and labels."""
        assert self._table.labels is not None
        return self._table.sets.to(torch.float32), self._table.labels
