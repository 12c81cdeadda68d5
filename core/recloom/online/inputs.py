"""Requests as batches, and batches as the named inputs of exported models."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from recloom.batch import Batch, KeyedJaggedTensor
from recloom.data.module import BlockDataModule
from recloom.errors import RecloomError
from recloom.features import FeatureSchema
from recloom.model import RankingModule
from recloom.serving import history_inputs


def inputs_of(module: RankingModule, batch: Batch) -> dict[str, Tensor]:
    """Return the named inputs of an exported `module` for a batch: the inverse of `recloom.serving.batch_of`."""
    sparse, schema = batch.sparse_features, module.schema
    count = len(schema.sparse)
    if sparse.one_hot and sparse.weights is None and schema.one_hot:
        inputs = {"sparse": sparse.values.view(count, -1).t().contiguous()}
    else:
        inputs = {"values": sparse.values, "lengths": sparse.lengths.view(count, -1).contiguous()}
        if sparse.weights is not None:
            inputs["weights"] = sparse.weights
    if schema.dense:
        inputs["dense"] = batch.dense_features
    for part in history_inputs(module):
        history, longest = batch.sequences[part.history.name], part.history.max_length
        inputs[part.name], mask = history.padded(longest)
        inputs[part.lengths] = mask.sum(1)
        if part.timed:
            assert batch.timestamps is not None
            inputs[part.gaps] = history.gaps(batch.timestamps, longest)
    return inputs


class Pool:
    """Rows that requests are made of; a request takes the rows after those of the one before.

    Args:
        rows: The rows.
    """

    def __init__(self, rows: Batch) -> None:
        self.rows = rows
        self._next = 0

    def take(self, count: int) -> Batch:
        """Return `count` rows."""
        parts = []
        while count:
            if self._next == len(self.rows):
                self._next = 0
            end = min(self._next + count, len(self.rows))
            parts.append(self.rows.rows(self._next, end))
            count -= end - self._next
            self._next = end
        return parts[0] if len(parts) == 1 else Batch.concat(parts)


def pool_of(data: BlockDataModule, count: int) -> Batch:
    """Return the first `count` rows, or all if there are fewer, of the data's validation rows."""
    source = data.source("val")
    parts, have = [], 0
    for index in range(len(source.block_rows(0))):
        if have >= count:
            break
        parts.append(source.load(0, index))
        have += len(parts[-1])
    if not have:
        raise RecloomError("the data have no validation rows to make requests of", "Give it some (num_val).")
    whole = parts[0] if len(parts) == 1 else Batch.concat(parts)
    return whole.rows(0, min(count, have))


def fresh_ids(rows: Batch, schema: FeatureSchema, seed: int) -> Batch:
    """Return the rows with ids drawn anew, every id of a table as likely as any other: nothing for caches to hold."""
    sparse, generator = rows.sparse_features, torch.Generator().manual_seed(seed)
    counts = sparse.lengths.view(len(schema.sparse), -1).sum(1).tolist()
    ids = [
        torch.randint(0, feature.num_embeddings, (count,), generator=generator)
        for feature, count in zip(schema.sparse, counts, strict=True)
    ]
    drawn = KeyedJaggedTensor(
        sparse.keys, torch.cat(ids), lengths=None if sparse.one_hot else sparse.lengths, weights=sparse.weights
    )
    return dataclasses.replace(rows, sparse_features=drawn)
