"""Writing the Parquet files of one split: full row groups, whole files, their hashes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from recloom.data.manifest import Shard


class _HashingFile:
    """A file that is written once from start to end, with the sha256 of what was written."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("wb", buffering=1 << 20)
        self.digest = hashlib.sha256()
        self.size = 0

    @property
    def closed(self) -> bool:
        return False  # else pyarrow, which flushes a writer even when it is thrown away, would complain

    def discard(self) -> None:
        """Write no more: what comes from now on is dropped."""
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            self._file.close()

    def write(self, data: bytes) -> int:
        if self._file.closed:  # after discard()
            return len(data)
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


class SplitWriter:
    """Writes one split: collects rows to full row groups, starts a new shard when one is full."""

    def __init__(self, directory: Path, split: str, row_group_rows: int, groups_per_shard: int) -> None:
        self._directory = directory
        self._split = split
        self._row_group_rows = row_group_rows
        self._groups_per_shard = groups_per_shard
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._groups: list[int] = []
        self.shards: list[Shard] = []

    def add(self, table: pa.Table) -> None:
        """Append rows."""
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        while self._waiting_rows >= self._row_group_rows:
            rows = pa.concat_tables(self._waiting)
            self._write_group(rows.slice(0, self._row_group_rows))
            self._waiting = [rows.slice(self._row_group_rows)]
            self._waiting_rows = self._waiting[0].num_rows

    def close(self) -> None:
        """Write out what is left."""
        if self._waiting_rows:
            self._write_group(pa.concat_tables(self._waiting))
            self._waiting, self._waiting_rows = [], 0
        self._close_shard()

    def discard(self) -> None:
        """Close what is open without keeping it."""
        if self._writer is not None:
            self._sink.discard()
            self._writer = None

    def _write_group(self, table: pa.Table) -> None:
        if self._writer is None:
            self._name = f"{self._split}/part-{len(self.shards):05d}.parquet"
            path = self._directory / (self._name + ".part")
            path.parent.mkdir(exist_ok=True)
            self._sink = _HashingFile(path)
            # ids and floats are close to incompressible beyond their unused high bytes: plain pages decode fastest
            self._writer = pq.ParquetWriter(
                self._sink,
                table.schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=False,
                write_page_checksum=True,
            )
        self._writer.write_table(table.combine_chunks(), row_group_size=self._row_group_rows)
        self._groups.append(table.num_rows)
        if len(self._groups) == self._groups_per_shard:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._sink.close()
        self._writer = None
        path = self._directory / self._name
        path.with_name(path.name + ".part").replace(path)
        self.shards.append(
            Shard(self._name, sum(self._groups), self._groups, self._sink.size, self._sink.digest.hexdigest())
        )
        self._groups = []
