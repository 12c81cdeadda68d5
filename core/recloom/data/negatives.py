"""In-batch negatives: each row again with the candidates of other rows of its block, as rows with the label 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recloom.batch import Batch
from recloom.errors import DataError, RecloomError
from recloom.features import FeatureSchema


@dataclass(frozen=True)
class InBatchNegatives:
    """Adds negatives to blocks of positives.

    Args:
        count: Negatives a row, k.
        features: Places, among the sparse features, of the candidate's: those that share a table with a key of a
            history. The first of them says which candidates are the same.
    """

    count: int
    features: Sequence[int]

    @classmethod
    def of(cls, schema: FeatureSchema, count: int) -> InBatchNegatives:
        """Return what adds `count` negatives a row to data of this schema; RecloomError if it has no candidate."""
        shared = [key.table_name for history in schema.sequences for key in history.keys]
        tables = [feature.table_name for feature in schema.sparse]
        features = [tables.index(table) for table in dict.fromkeys(shared) if table in tables]
        if not features or not schema.one_hot or len(schema.labels) != 1:
            raise RecloomError(
                "in_batch_negatives needs data with histories, one-hot features and one label",
                "Prepare an event log (recloom prepare taobao, movielens or events), or leave it 0.",
            )
        return cls(count, features)

    def repeated(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the n rows of `order`, each 1 + k times."""
        return np.repeat(order, 1 + self.count)

    def fill(self, block: Batch, rng: np.random.Generator, where: str) -> None:
        """Turn the last k of each 1 + k equal rows of `block` into negatives, in place.

        A negative has the candidate of another row, drawn uniformly among the rows whose candidate is another one: a
        candidate is drawn as often as it occurs.

        Raises:
            DataError: There are rows with label 0, or all candidates are the same.
        """
        if not bool((block.labels == 1).all()):
            raise DataError(
                f"{where}: in_batch_negatives is for data without negatives, and these have rows with the label 0",
                "Prepare the log with --negatives none, or set in_batch_negatives to 0.",
            )
        size = 1 + self.count
        ids = block.sparse_features.values.view(len(block.sparse_features.keys), -1, size).numpy()  # F x n x (1 + k)
        drawn = _others(ids[self.features[0], :, 0], self.count, rng, where)
        for place in self.features:
            ids[place, :, 1:] = ids[place, :, 0][drawn]
        block.labels.view(-1, size)[:, 1:] = 0


def _others(items: NDArray[np.int32], count: int, rng: np.random.Generator, where: str) -> NDArray[np.int64]:
    """Return n x count rows drawn uniformly among those with another item than row n's."""
    order = np.argsort(items, kind="stable")
    first = np.searchsorted(items, items, sorter=order)
    same = np.searchsorted(items, items, side="right", sorter=order) - first
    if (same == len(items)).any():
        raise DataError(f"{where}: all {len(items)} rows have the same item", "Use more rows, or in_batch_negatives 0.")
    place = rng.integers(0, (len(items) - same)[:, None], (len(items), count))
    place += np.where(place >= first[:, None], same[:, None], 0)  # skip the rows of the same item
    return order[place]
