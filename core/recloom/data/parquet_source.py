"""Blocks of rows from Parquet shards: whole row groups, whole columns, few copies. Imports no Lightning."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recloom.batch import Batch
from recloom.data.assemble import to_batch
from recloom.data.loader import BlockSource
from recloom.data.manifest import Shard
from recloom.data.negatives import InBatchNegatives
from recloom.data.rowgroup import AGAIN, checked
from recloom.errors import DataError
from recloom.features import FeatureSchema

_PLAIN_ROWS = 65_536  # rows that a block gathers when nothing is shuffled
_PLAIN_STEPS = 1 << 22  # and steps of histories, at most
_OPEN_FILES = 16


@dataclass(frozen=True)
class RowGroup:
    """A row group of a shard, or its first `rows` rows."""

    file: str
    index: int
    rows: int


class ParquetBlocks(BlockSource):
    """One split of a shard directory as blocks: row groups drawn at random, their rows mixed.

    Args:
        directory: The shard directory.
        schema: Its schema.
        shards: The split's shards.
        shuffle_rows: Rows of a block, gathered from whole row groups drawn at random in each epoch and then mixed; 0
            keeps the order of the shards.
        seed: Seed of the order.
        limit_rows: Use only this many rows, the first ones; 0 uses all.
        negatives: Negatives to add to each row from others of its block: anew in each epoch if rows are shuffled, the
            same ones always, whatever the seed, if not.
    """

    def __init__(
        self,
        directory: Path,
        schema: FeatureSchema,
        shards: Sequence[Shard],
        shuffle_rows: int = 0,
        seed: int = 0,
        limit_rows: int = 0,
        negatives: int = 0,
    ) -> None:
        self._directory = directory
        self._schema = schema
        self._shuffle = shuffle_rows > 0
        steps = sum(history.max_length for history in schema.sequences)
        self._block_rows = shuffle_rows or min(_PLAIN_ROWS, _PLAIN_STEPS // max(steps, 1))
        self._seed = seed
        self._negatives = InBatchNegatives.of(schema, negatives) if negatives else None
        self._groups: list[RowGroup] = []
        left = limit_rows or sum(shard.rows for shard in shards)
        for shard in shards:
            for index, rows in enumerate(shard.row_groups):
                if left > 0 and rows:
                    self._groups.append(RowGroup(shard.file, index, min(rows, left)))
                    left -= rows
        self._plans: dict[int, list[list[RowGroup]]] = {}
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}, "_files": OrderedDict()}

    def block_rows(self, epoch: int) -> Sequence[int]:
        """Return the rows of each block of `epoch`."""
        times = 1 + self._negatives.count if self._negatives else 1
        return [times * sum(group.rows for group in block) for block in self._blocks(epoch)]

    def load(self, epoch: int, index: int) -> Batch:
        """Read a block.

        Raises:
            DataError: A shard is missing, truncated or corrupt, is not of the schema, or has an id outside its table.
        """
        tables = [self._read(group) for group in self._blocks(epoch)[index]]
        columns = {name: _joined([table[name] for table in tables]) for name in tables[0].column_names}
        order = None
        if self._shuffle:
            order = np.random.default_rng([self._seed, epoch, index]).permutation(sum(map(len, tables)))
        if self._negatives is None:
            return to_batch(columns, self._schema, order)
        order = np.arange(sum(map(len, tables))) if order is None else order
        block = to_batch(columns, self._schema, self._negatives.repeated(order))
        drawn = np.random.default_rng([self._seed, epoch, index, 1] if self._shuffle else [0, 0, index, 1])
        self._negatives.fill(block, drawn, str(self._directory))
        return block

    def _blocks(self, epoch: int) -> list[list[RowGroup]]:
        """Return the row groups of each block; kept for one epoch."""
        if epoch not in self._plans:
            groups = self._groups
            if self._shuffle:
                order = np.random.default_rng([self._seed, epoch]).permutation(len(groups))
                groups = [groups[place] for place in order]
            blocks: list[list[RowGroup]] = []
            room = 0
            for group in groups:
                if room <= 0:
                    blocks.append([])
                    room = self._block_rows
                blocks[-1].append(group)
                room -= group.rows
            self._plans = {epoch: blocks}
        return self._plans[epoch]

    def _read(self, group: RowGroup) -> pa.Table:
        """Return the columns of a row group, checked."""
        where = f"{self._directory / group.file}, row group {group.index}"
        try:
            table = self._open(group.file).read_row_group(group.index, use_threads=False)
        # pyarrow raises OSError, ArrowInvalid (a ValueError), IndexError, ... by where the file is broken
        except (OSError, pa.ArrowException, IndexError, EOFError) as error:
            cause = str(error).strip().split("\n")[0]
            raise DataError(f"{where}: the shard cannot be read: {cause}", AGAIN) from error
        return checked(table, self._schema, group.rows, where)

    def _open(self, file: str) -> pq.ParquetFile:
        if file not in self._files:
            self._files[file] = pq.ParquetFile(self._directory / file, page_checksum_verification=True)
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(file)
        return self._files[file]


def _joined(parts: Sequence[pa.ChunkedArray]) -> pa.Array:
    """Return one array of the chunks of `parts`, without a copy if there is just one chunk."""
    chunks = [chunk for part in parts for chunk in part.chunks]
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
