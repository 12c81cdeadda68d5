"""The columns of a shard: their types, and a batch as columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from recloom.features import FeatureSchema

if TYPE_CHECKING:
    from recloom.batch import Batch


def arrow_schema(schema: FeatureSchema) -> pa.Schema:
    """Return the columns, with their types, that a shard of `schema` has.

    Dense features and labels are float32, one-hot ids int32, bags list<int32>, times and groups int64. A bag may come
    with a column "NAME:weight" (list<float32>), which is optional and therefore not part of this. A history has a
    column "HISTORY:KEY" (list<int32>) for each of its keys and, if its steps have times, "HISTORY:time" (list<int64>),
    all of them with the same lengths, oldest step first.
    """
    columns: list[tuple[str, pa.DataType]] = [(feature.name, pa.float32()) for feature in schema.dense]
    for feature in schema.sparse:
        columns.append((feature.name, pa.int32() if feature.max_length == 1 else pa.list_(pa.int32())))
    for history in schema.sequences:
        columns += [(f"{history.name}:{key.name}", pa.list_(pa.int32())) for key in history.keys]
        columns += [(f"{history.name}:time", pa.list_(pa.int64()))] if history.timestamps else []
    columns += [(name, pa.float32()) for name in (*schema.labels, schema.weight) if name]
    columns += [(name, pa.int64()) for name in (schema.timestamp, schema.group) if name]
    return pa.schema(columns)


def weight_columns(schema: FeatureSchema, names: Iterable[str]) -> list[str]:
    """Return those of the columns `names` that hold the weights of a bag's values."""
    known = {f"{feature.name}:weight" for feature in schema.sparse}
    return [name for name in names if name in known]


def to_table(batch: Batch, schema: FeatureSchema) -> pa.Table:
    """Return the rows of `batch` as columns of a shard."""
    columns: dict[str, Any] = {}
    for index, dense in enumerate(schema.dense):
        columns[dense.name] = batch.dense_features[:, index].numpy()
    for feature in schema.sparse:
        values, lengths = batch.sparse_features[feature.name]
        ids = values.numpy().astype(np.int32)
        if feature.max_length != 1:
            offsets = np.concatenate([[0], lengths.numpy().cumsum()]).astype(np.int32)
            columns[feature.name] = pa.ListArray.from_arrays(offsets, ids)
        else:
            columns[feature.name] = ids
    for history in schema.sequences:
        sequences = batch.sequences[history.name]
        bounds = sequences.offsets.numpy().astype(np.int32)
        steps = sequences.values.numpy().astype(np.int32)
        for place, key in enumerate(history.keys):
            columns[f"{history.name}:{key.name}"] = pa.ListArray.from_arrays(bounds, steps[:, place].copy())
        if history.timestamps:
            assert sequences.timestamps is not None, f"the steps of {history.name!r} have no times"
            columns[f"{history.name}:time"] = pa.ListArray.from_arrays(bounds, sequences.timestamps.numpy())
    labels = batch.labels.reshape(len(batch), -1).numpy()
    columns.update({name: labels[:, task] for task, name in enumerate(schema.labels)})
    for name, tensor in (
        (schema.weight, batch.weights),
        (schema.timestamp, batch.timestamps),
        (schema.group, batch.extras.get("group")),
    ):
        if name:
            assert tensor is not None, f"the batch has no column for {name!r}"
            columns[name] = tensor.numpy()
    return pa.table(columns)
