"""Vocabularies of categories: counted in bounded memory, cut by frequency, written as Parquet, looked up by key.

A category is known by a 64-bit key: the number itself for hexadecimal ones, a stable hash for strings (two strings of
one feature with the same hash would share an id; for 100 million values the chance of one such pair is 3 in 10,000).
Ids are in the order of falling counts, ties in the order of values; id 0 stands for missing and left-out values.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recloom.errors import DataError

_ROW_BYTES = 40  # of a counted value, with room for its text
_COMPACT_ROWS = 1_000_000


class CategoryCounts:
    """How often each value of one feature occurs.

    Args:
        name: The feature.
        directory: Where counts go that do not fit in memory, and the vocabulary file in the end.
        hexadecimal: Whether keys are 32-bit numbers written in hexadecimal, so that no text is kept.

    Attributes:
        missing: Rows without a value, for the caller to count up.
        nbytes: Bytes that the counts take in memory, about.
    """

    def __init__(self, name: str, directory: Path, hexadecimal: bool) -> None:
        self.name = name
        self.path = directory / f"{quote(name, safe=' ')}.parquet"
        self.missing = 0
        self._hexadecimal = hexadecimal
        self._merged: pl.DataFrame | None = None
        self._waiting: list[pl.DataFrame] = []
        self._waiting_rows = 0
        self.nbytes = 0
        self._total = 0
        self._spills: list[Path] = []
        self._spilled_rows = 0

    def _frames(self) -> list[pl.DataFrame]:
        return [*([] if self._merged is None else [self._merged]), *self._waiting]

    def add(self, part: pl.DataFrame) -> None:
        """Add the counts of a block: columns key, count and, unless hexadecimal, value."""
        self._waiting.append(part)
        self._waiting_rows += part.height
        self.nbytes += int(part.estimated_size())
        self._total += int(part["count"].sum())
        height = 0 if self._merged is None else self._merged.height
        if self._waiting_rows > max(_COMPACT_ROWS, height) or len(self._waiting) >= 128:
            self._compact()

    def _compact(self) -> None:
        if self._waiting:
            self._merged = _sum(pl.concat(self._frames()).lazy()).collect()
            self._waiting, self._waiting_rows = [], 0
            self.nbytes = int(self._merged.estimated_size())

    def spill(self) -> None:
        """Move the counts from memory to a file, in the order of their keys."""
        self._compact()
        if self._merged is not None:
            path = self.path.with_suffix(f".{len(self._spills)}.counts")
            _save(self._merged.sort("key"), path, "lz4")
            self._spills.append(path)
            self._spilled_rows += self._merged.height
            self._merged, self.nbytes = None, 0

    def _pieces(self, memory: int) -> Iterator[pl.DataFrame]:
        """Yield all values with their counts, in pieces that fit in `memory` bytes."""
        if not self._spills:
            self._compact()
            if self._merged is not None:
                yield self._merged
            return
        self.spill()
        pieces = -(-self._spilled_rows * 2 * _ROW_BYTES // max(memory, 1 << 20))
        keys = 1 << (32 if self._hexadecimal else 64)
        span = keys // pieces + 1
        runs = pl.scan_parquet(self._spills)
        for piece in range(pieces):
            first, last = piece * span, min((piece + 1) * span, keys) - 1
            yield _sum(runs.filter(pl.col("key").is_between(first, last))).collect()

    def vocabulary(self, min_count: int, max_size: int | None, memory: int) -> Vocabulary:
        """Write the vocabulary of the values that occur at least `min_count` times, at most `max_size` - 1 of them.

        Args:
            min_count: Rarer values share id 0.
            max_size: Most ids, id 0 included; the most frequent values are kept. None: no limit.
            memory: Bytes that the kept values may take.

        Raises:
            DataError: The kept values do not fit.
        """
        order, kept, rows = "key" if self._hexadecimal else "value", [], 0
        for piece in self._pieces(memory):
            kept.append(piece.filter(pl.col("count") >= min_count))
            rows += kept[-1].height
            if max_size is not None and rows > 2 * max_size:
                kept = [_most_frequent(kept, order, max_size - 1)]
                rows = kept[0].height
            if rows * _ROW_BYTES > memory:
                raise DataError(
                    f"category {self.name}: more than {rows:,} values occur {min_count} times or more, "
                    "and a vocabulary of them does not fit in --memory",
                    "Raise --min-count, set --max-vocabulary, hash with --hash-size, or allow more --memory.",
                )
        self._merged, self.nbytes = None, 0
        frame = _most_frequent(kept, order, max_size - 1 if max_size else None) if kept else None
        for path in self._spills:
            path.unlink()
        return self._write(frame)

    def _write(self, frame: pl.DataFrame | None) -> Vocabulary:
        """Write value, count and id of every kept value, and of id 0 in the first row, whose value is null."""
        if frame is None:
            frame = pl.DataFrame(schema={"key": pl.UInt64, "count": pl.Int64, "value": pl.String})
        if self._hexadecimal and frame.height:
            frame = frame.with_columns(value=_hex_text(frame["key"].to_numpy()))
        rare = self.missing + self._total - int(frame["count"].sum())
        first = pl.DataFrame({"value": [None], "count": [rare]}, schema={"value": pl.String, "count": pl.Int64})
        table = (
            pl.concat([first, frame.select("value", "count")])
            .with_row_index("id")
            .select("value", "count", pl.col("id").cast(pl.Int32))
        )
        _save(table, self.path, "zstd")
        keys = frame["key"].to_numpy()
        order = np.argsort(keys, kind="stable")
        return Vocabulary(keys[order], (order + 1).astype(np.int32))


@dataclass(frozen=True)
class Vocabulary:
    """The ids of one feature's values.

    Args:
        keys: The values' keys, ascending.
        ids: Their ids, 1 and up.
    """

    keys: NDArray[np.unsignedinteger]
    ids: NDArray[np.int32]

    @property
    def size(self) -> int:
        """Number of ids, id 0 included."""
        return len(self.ids) + 1

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.keys.nbytes + self.ids.nbytes

    def lookup(self, keys: NDArray[np.unsignedinteger]) -> NDArray[np.int32]:
        """Return n ids, 0 for unknown keys."""
        if not len(self.keys):
            return np.zeros(len(keys), np.int32)
        order = np.argsort(keys)  # in order, a search walks through the keys' memory instead of jumping about in it
        wanted = keys[order].astype(self.keys.dtype)
        place = np.searchsorted(self.keys, wanted)
        place[place == len(self.keys)] = 0
        ids = np.empty(len(keys), np.int32)
        ids[order] = np.where(self.keys[place] == wanted, self.ids[place], 0)
        return ids


def _save(frame: pl.DataFrame, path: Path, compression: str) -> None:
    """Write `frame` as Parquet, to the disk; OSError when that fails (Polars' own writer hides it)."""
    with path.open("wb") as file:
        pq.write_table(frame.to_arrow(), file, row_group_size=65_536, compression=compression, use_dictionary=False)
        file.flush()
        os.fsync(file.fileno())


def _sum(counts: pl.LazyFrame) -> pl.LazyFrame:
    columns = [pl.col("count").sum()]
    if "value" in counts.collect_schema():
        columns.append(pl.col("value").first())
    return counts.group_by("key").agg(columns)


def _most_frequent(frames: list[pl.DataFrame], order: str, size: int | None) -> pl.DataFrame:
    frame = pl.concat(frames).sort(["count", order], descending=[True, False])
    return frame if size is None else frame.head(size)


def _hex_text(keys: NDArray[np.unsignedinteger]) -> pl.Series:
    """Return n 8-digit hexadecimal strings."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    shifts = np.arange(28, -1, -4, dtype=np.uint32)
    text = digits[(keys.astype(np.uint32)[:, None] >> shifts) & 0xF]
    offsets = pa.py_buffer(np.arange(0, 8 * len(keys) + 1, 8, dtype=np.int64))
    return pl.Series(pa.Array.from_buffers(pa.large_string(), len(keys), [None, offsets, pa.py_buffer(text.tobytes())]))
