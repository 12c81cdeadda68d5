"""Items or users with their features: what encoders take, read from and written to Parquet. Imports no Lightning."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from recloom.batch import Batch
from recloom.data.assemble import to_batch
from recloom.data.columns import to_table
from recloom.data.rowgroup import checked
from recloom.errors import DataError
from recloom.features import FeatureSchema

ID = "id"


@dataclass(frozen=True)
class Rows:
    """Items or users.

    Args:
        ids: N ids (int64, not negative); those of items are what a search returns.
        batch: Their features.
        schema: Schema of that side.
    """

    ids: Tensor
    batch: Batch
    schema: FeatureSchema

    def __len__(self) -> int:
        return len(self.ids)

    def slice(self, start: int, end: int) -> Rows:
        """Return rows start..end-1, fewer where there are not as many."""
        end = min(end, len(self))
        return dataclasses.replace(self, ids=self.ids[start:end], batch=self.batch.rows(start, end))

    def chunks(self, size: int) -> Iterator[Rows]:
        """Yield the rows, `size` at a time."""
        for place in range(math.ceil(len(self) / size)):
            yield self.slice(place * size, (place + 1) * size)

    @staticmethod
    def concat(parts: list[Rows]) -> Rows:
        """Return the rows of `parts`, of one schema, one after the other."""
        ids = torch.cat([part.ids for part in parts])
        return Rows(ids, Batch.concat([part.batch for part in parts]), parts[0].schema)

    def save(self, path: Path) -> None:
        """Write a Parquet file: a column "id", then the features; aside first and then renamed."""
        table = to_table(self.batch, _featureless(self.schema)).add_column(0, ID, pa.array(self.ids.numpy()))
        aside = path.with_name(path.name + ".part")
        pq.write_table(table, aside)
        aside.replace(path)

    @classmethod
    def load(cls, path: Path, schema: FeatureSchema) -> Rows:
        """Read what `save` writes; DataError names the file and the column that is missing or wrong."""
        try:
            table = pq.read_table(path)
        except FileNotFoundError:
            raise DataError(f"{path}: there is no such file", "Name a Parquet file with ids and features.") from None
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: not a Parquet file: {str(error).splitlines()[0]}") from error
        if ID not in table.column_names:
            raise DataError(f"{path}: there is no column 'id'", f"Its columns: {', '.join(table.column_names)}.")
        if table[ID].type != pa.int64() or table[ID].null_count:
            raise DataError(f"{path}: column 'id' is {table[ID].type}, it should be int64 without empty values")
        ids = torch.from_numpy(table[ID].to_numpy().copy())
        if len(ids) and int(ids.min()) < 0:
            raise DataError(f"{path}: column 'id' has {int(ids.min())}", "Ids are not negative.")
        plain = _featureless(schema)
        wanted = ", ".join([*(f.name for f in plain.dense), *(f.name for f in plain.sparse)])
        hint = f"It needs the features of this side, users or items, as they were prepared: {wanted}."
        columns = checked(table, plain, table.num_rows, str(path), hint)
        arrays = {name: columns[name].combine_chunks() for name in columns.column_names}
        arrays = {n: a.chunk(0) if isinstance(a, pa.ChunkedArray) else a for n, a in arrays.items()}
        arrays[ID] = pa.array(ids.numpy().astype("float32"))
        batch = to_batch(arrays, dataclasses.replace(plain, labels=(ID,)))
        batch = dataclasses.replace(batch, labels=torch.zeros(len(ids)))
        return cls(ids, batch.rows(0, len(ids)), schema)


def distinct(rows: Rows) -> Rows:
    """Return the rows with the first of each id, in the order of ids."""
    ids, order = torch.unique(rows.ids, return_inverse=True)
    first = torch.full((len(ids),), len(rows), dtype=torch.int64)
    first.scatter_reduce_(0, order, torch.arange(len(rows)), "amin")
    table = to_table(rows.batch, _featureless(rows.schema)).take(pa.array(first.numpy()))
    arrays = {name: table[name].combine_chunks() for name in table.column_names}
    arrays[ID] = pa.array(ids.numpy().astype("float32"))
    batch = to_batch(arrays, dataclasses.replace(_featureless(rows.schema), labels=(ID,)))
    return Rows(ids, batch.rows(0, len(ids)), rows.schema)


def _featureless(schema: FeatureSchema) -> FeatureSchema:
    """Return the schema without what is no feature: labels, weight, group."""
    return dataclasses.replace(schema, labels=(), weight="", group="")
