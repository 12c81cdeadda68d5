"""From the columns of shards to a Batch: whole columns at a time, each copied once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from recloom.batch import Batch, KeyedJaggedTensor, Sequences
from recloom.features import FeatureSchema, SequenceFeature


def to_batch(columns: dict[str, pa.Array], schema: FeatureSchema, order: np.ndarray | None = None) -> Batch:
    """Return the columns of a shard as a block of int32 ids, with the rows in `order` (None: as they are).

    A row may come several times in `order`, or not at all.
    """
    taken = slice(None) if order is None else order
    count = len(columns[schema.labels[0]]) if order is None else len(order)

    def floats(names: Sequence[str]) -> np.ndarray:
        matrix = np.empty((count, len(names)), np.float32)
        for place, name in enumerate(names):
            matrix[:, place] = columns[name].to_numpy()[taken]
        return matrix

    def column(name: str) -> torch.Tensor | None:
        return torch.from_numpy(columns[name].to_numpy()[taken].copy()) if name else None

    labels = torch.from_numpy(floats(schema.labels))
    group = column(schema.group)
    return Batch(
        dense_features=torch.from_numpy(floats([feature.name for feature in schema.dense])),
        sparse_features=_sparse(columns, schema, count, order),
        labels=labels.squeeze(1) if len(schema.labels) == 1 else labels,
        sequences={history.name: _sequences(columns, history, order) for history in schema.sequences},
        weights=column(schema.weight),
        timestamps=column(schema.timestamp),
        extras={} if group is None else {"group": group},
    )


def _sparse(
    columns: dict[str, pa.Array], schema: FeatureSchema, count: int, order: np.ndarray | None
) -> KeyedJaggedTensor:
    """Return the ids of all features; as F x B when all of them are one-hot."""
    names = schema.sparse_names
    if schema.one_hot:
        ids = np.empty((len(names), count), np.int32)
        for place, name in enumerate(names):
            ids[place] = columns[name].to_numpy() if order is None else columns[name].to_numpy()[order]
        return KeyedJaggedTensor(names, torch.from_numpy(ids))
    weighted = any(f"{name}:weight" in columns for name in names)
    lengths = np.ones((len(names), count), np.int64)
    values: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    for place, name in enumerate(names):
        array = columns[name]
        if not pa.types.is_list(array.type):
            values.append(array.to_numpy() if order is None else array.to_numpy()[order])
            weights.append(np.ones(count if weighted else 0, np.float32))
            continue
        offsets = array.offsets.to_numpy()
        sizes = np.diff(offsets)
        lengths[place] = sizes if order is None else sizes[order]
        inner = _inner(offsets, lengths[place], order)
        values.append(array.values.to_numpy()[inner])
        if f"{name}:weight" in columns:
            weights.append(columns[f"{name}:weight"].flatten().to_numpy()[_rebased(inner, offsets[0])])
        elif weighted:
            weights.append(np.ones(len(values[-1]), np.float32))
    return KeyedJaggedTensor(
        names,
        torch.from_numpy(np.concatenate(values, dtype=np.int32)),
        lengths=torch.from_numpy(lengths.reshape(-1)),
        weights=torch.from_numpy(np.concatenate(weights)) if weighted else None,
    )


def _sequences(columns: dict[str, pa.Array], history: SequenceFeature, order: np.ndarray | None) -> Sequences:
    """Return the histories of all rows. The history's columns have equal lengths (`recloom.data.rowgroup`)."""
    arrays = [columns[f"{history.name}:{key.name}"] for key in history.keys]
    offsets = arrays[0].offsets.to_numpy()
    lengths = np.diff(offsets) if order is None else np.diff(offsets)[order]
    taken = _rebased(_inner(offsets, lengths, order), offsets[0])
    bounds = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    values = np.empty((bounds[-1], len(arrays)), np.int32)
    for place, array in enumerate(arrays):
        values[:, place] = array.flatten().to_numpy()[taken]
    times = None
    if history.timestamps:
        times = torch.from_numpy(columns[f"{history.name}:time"].flatten().to_numpy()[taken].copy())
    return Sequences([key.name for key in history.keys], torch.from_numpy(values), torch.from_numpy(bounds), times)


def _inner(offsets: np.ndarray, lengths: np.ndarray, order: np.ndarray | None) -> slice | np.ndarray:
    """Return the places, among a list column's values, of the values of its rows in `order`."""
    if order is None:
        return slice(int(offsets[0]), int(offsets[-1]))
    ends = np.cumsum(lengths)
    starts = offsets[:-1][order].astype(np.int64) - (ends - lengths)
    return np.repeat(starts, lengths) + np.arange(ends[-1] if len(ends) else 0)


def _rebased(inner: slice | np.ndarray, start: int) -> slice | np.ndarray:
    return slice(inner.start - start, inner.stop - start) if isinstance(inner, slice) else inner - start
