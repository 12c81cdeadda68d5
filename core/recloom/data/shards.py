"""The shard directory: what `recloom prepare` writes and the Parquet data module reads.

    DIR/schema.json               the FeatureSchema
    DIR/manifest.json             every shard with its rows, row groups, bytes and sha256; written last
    DIR/vocabulary/NAME.parquet   raw values and their counts by id, where ids come from a vocabulary
    DIR/train/part-00000.parquet  about a million rows, in row groups of 65,536; val/ and test/ likewise

A shard is written aside as `.part` and renamed when it is whole; a directory without a manifest is no data set.
"""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import pyarrow as pa

from recloom.data.columns import arrow_schema, to_table, weight_columns
from recloom.data.manifest import MANIFEST, SCHEMA, UNFINISHED, Manifest
from recloom.data.shardfile import SplitWriter
from recloom.errors import DataError
from recloom.features import FeatureSchema

if TYPE_CHECKING:
    from recloom.batch import Batch

_FULL = {errno.ENOSPC, errno.EDQUOT}
# What a run may leave in its directory; a new run removes these and nothing else.
_FILES = ("*.json.part", "*/part-*.parquet", "*/part-*.parquet.part", "vocabulary/*", "spill/events-*")
_COLUMNS = ("source", "destination", "time", "label", "features")  # of an event stream, see recloom.data.streams
_STREAM = (*(f"{name}.bin{end}" for name in _COLUMNS for end in ("", ".part", ".again.part")), "nodes/*.parquet")
_OWN = (MANIFEST, SCHEMA, *_FILES, *_STREAM, UNFINISHED)


class ShardWriter:
    """Writes a shard directory in bounded memory; a context manager that aborts on an exception.

    Args:
        directory: Where to write; made if it is missing. A directory that holds anything but the remains of an
            unfinished run is refused.
        schema: The columns, to which tables are cast; None when it is known only at the end (`finish` then needs it).
        format: Name of the raw format, for the record.
        source: Facts on the input, for the record: file names, sizes.
        rows_per_shard: Rows of a full shard, rounded down to whole row groups.
        row_group_rows: Rows of a row group, the unit that readers load and shuffle.
        overwrite: Replace the data set that is there. Only files of a data set are removed, never others.

    Raises:
        DataError: The directory is not empty, another process is writing there, or the disk is full.
    """

    def __init__(
        self,
        directory: Path,
        schema: FeatureSchema | None,
        *,
        format: str,
        source: dict[str, Any],
        rows_per_shard: int = 1_000_000,
        row_group_rows: int = 65_536,
        overwrite: bool = False,
    ) -> None:
        self.directory = Path(directory)
        self.schema = schema
        self._facts = {"format": format, "source": source}
        self._row_group_rows = row_group_rows
        self._groups_per_shard = max(rows_per_shard // row_group_rows, 1)
        self._splits: dict[str, SplitWriter] = {}
        self._lock = claim(self.directory, overwrite)

    def add(self, split: str, table: pa.Table) -> None:
        """Append the rows of `table` to `split` ("train", "val" or "test")."""
        if self.schema is not None:
            wanted = arrow_schema(self.schema)
            weights = weight_columns(self.schema, table.column_names)
            fields = [*wanted, *(pa.field(name, pa.list_(pa.float32())) for name in weights)]
            table = table.select([field.name for field in fields]).cast(pa.schema(fields))
        if split not in self._splits:
            self._splits[split] = SplitWriter(self.directory, split, self._row_group_rows, self._groups_per_shard)
        try:
            self._splits[split].add(table)
        except OSError as error:
            raise self._failed(error) from error

    def finish(self, schema: FeatureSchema | None = None, **facts: Any) -> None:
        """Write out what is left, the schema, and last the manifest with `facts` (bad_rows, stats, ...)."""
        self.schema = schema or self.schema
        assert self.schema is not None, "finish() needs the schema that the constructor did not get"
        try:
            for writer in self._splits.values():
                writer.close()
            self.schema.save(self.directory / SCHEMA)
            splits = {name: writer.shards for name, writer in self._splits.items()}
            Manifest(splits=splits, facts={**self._facts, **facts}).save(self.directory)
        except OSError as error:
            raise self._failed(error) from error
        (self.directory / UNFINISHED).unlink()
        self._lock.close()

    def abort(self) -> None:
        """Remove what this run wrote; the directory itself goes too if nothing else is in it. Harmless after finish."""
        if self._lock.closed:
            return
        for writer in self._splits.values():
            writer.discard()
        clear(self.directory)
        self._lock.close()
        if not any(self.directory.iterdir()):
            self.directory.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()

    def _failed(self, error: OSError) -> Exception:
        self.abort()
        if error.errno not in _FULL:
            return DataError(f"{self.directory}: cannot write: {error}", "Nothing half-written remains.")
        return DataError(
            f"{self.directory}: the disk is full",
            "Nothing half-written remains; free some space or choose another directory.",
        )


def claim(directory: Path, overwrite: bool) -> IO[str]:
    """Make `directory` an empty one of ours; return the locked marker file of an unfinished run."""
    if directory.exists() and not directory.is_dir():
        raise DataError(f"{directory}: this is a file", "Give a directory.")
    if directory.is_dir() and not overwrite and not (directory / UNFINISHED).exists() and any(directory.iterdir()):
        what = "there is a data set here already" if (directory / MANIFEST).exists() else "this directory is not empty"
        raise DataError(f"{directory}: {what}", "Choose another directory, or pass --overwrite to replace a data set.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / UNFINISHED).open("a")
    except OSError as error:
        raise DataError(f"{directory}: cannot write here: {error.strerror}", "Choose another directory.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise DataError(f"{directory}: another process is writing here", "Wait for it, or choose another.") from error
    clear(directory, keep=UNFINISHED)
    return lock


def clear(directory: Path, keep: str = "") -> None:
    """Remove a run's own files, the manifest first, so that no reader takes the rest for a data set."""
    for pattern in _OWN:
        for path in sorted(directory.glob(pattern)):
            if path.name != keep:
                path.unlink()
    for folder in directory.iterdir():
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def write_shards(
    batches: dict[str, Iterable[Batch]], schema: FeatureSchema, path: Path, *, format: str = "batches", **options: Any
) -> None:
    """Write the batches of each split to a shard directory at `path`; `options` are the ShardWriter's."""
    with ShardWriter(path, schema, format=format, source={}, **options) as writer:
        for split, parts in batches.items():
            for batch in parts:
                writer.add(split, to_table(batch, schema))
        writer.finish()
