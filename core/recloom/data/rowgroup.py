"""What a row group of a shard must be before it becomes a batch: the schema's columns, without holes or wild ids."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from recloom.data.columns import arrow_schema, weight_columns
from recloom.errors import DataError
from recloom.features import FeatureSchema, SequenceFeature, SparseFeature

AGAIN = "Copy the shard again from where it came, or run `recloom prepare` again."


def checked(table: pa.Table, schema: FeatureSchema, rows: int, where: str, hint: str = AGAIN) -> pa.Table:
    """Return the schema's columns of the first `rows` rows of `table`.

    Args:
        table: A row group.
        schema: Its schema.
        rows: Rows that it must have at least.
        where: Its file and number, for messages.
        hint: What to do about columns that are missing or wrong.

    Raises:
        DataError: It has too few rows, a column is missing or of another type or has empty values, an id lies outside
            its table, or the columns of a history do not fit together.
    """
    if table.num_rows < rows:
        raise DataError(f"{where}: {table.num_rows} rows where the manifest has {rows}", hint)
    wanted = arrow_schema(schema)
    for field in wanted:
        if field.name not in table.column_names:
            raise DataError(f"{where}: the schema's column {field.name!r} is missing", hint)
        if table[field.name].type != field.type:
            found = table[field.name].type
            raise DataError(f"{where}: column {field.name!r} is {found}, it should be {field.type}", hint)
    table = table.select([*wanted.names, *weight_columns(schema, table.column_names)])
    if rows < table.num_rows:
        table = table.slice(0, rows)
    for name in table.column_names:
        if empty := sum(_nulls(chunk) for chunk in table[name].chunks):
            raise DataError(f"{where}: column {name!r} has {empty} empty values", hint)
    for feature in schema.sparse:
        _check_ids(feature, feature.name, table[feature.name], where)
    for history in schema.sequences:
        _check_history(history, table, where)
    return table


def _nulls(chunk: pa.Array) -> int:
    return chunk.null_count + (chunk.flatten().null_count if pa.types.is_list(chunk.type) else 0)


def _check_ids(feature: SparseFeature, name: str, column: pa.ChunkedArray, where: str) -> None:
    """Raise DataError unless all ids lie in the feature's table."""
    for chunk in column.chunks:
        ids = (chunk.flatten() if pa.types.is_list(chunk.type) else chunk).to_numpy()
        if len(ids) and not (ids.min() >= 0 and ids.max() < feature.num_embeddings):
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise DataError(
                f"{where}: feature {name!r} has the id {wrong}, its table has {feature.num_embeddings:,} rows",
                "schema.json and the shards are not of the same run. " + AGAIN,
            )


def _check_history(history: SequenceFeature, table: pa.Table, where: str) -> None:
    """Raise DataError unless the history's columns have the same lengths, none longer than it may be, and good ids."""
    names = [f"{history.name}:{key.name}" for key in history.keys]
    for key, name in zip(history.keys, names, strict=True):
        _check_ids(key, name, table[name], where)
    lengths = _lengths(table[names[0]])
    if lengths.max(initial=0) > history.max_length:
        found = f"a {history.name!r} of {lengths.max()} steps where the schema has at most {history.max_length}"
        raise DataError(f"{where}: {found}", AGAIN)
    for name in [*names[1:], *([f"{history.name}:time"] if history.timestamps else [])]:
        if not np.array_equal(_lengths(table[name]), lengths):
            raise DataError(f"{where}: the lists of {name!r} and {names[0]!r} differ in length", AGAIN)


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    return np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks])
