"""What a raw format is: its columns, how to cut a file into pieces, and how to parse a piece.

A plugin adds a format by subclassing `TextFormat` (formats/text.py) or `RawFormat` and registering it:
`catalog.formats.add("mylog", "my_package.formats:MyLog", summary="...")`.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

SHOWN = 10  # bad rows kept for messages

Role = Literal["label", "dense", "sparse", "bag", "timestamp", "group", "weight", "raw", "ignore"]
Kind = Literal["string", "hex", "int", "float", "time"]


@dataclass(frozen=True)
class Column:
    """One column of a log.

    Args:
        name: Its name, also the feature's.
        role: What becomes of it. A "bag" is a string of several categories; "raw" is read for `derive` and then left
            out; "ignore" is not read.
        kind: How to read it: "string"; "hex" (8 hexadecimal digits, kept as 32 bits); "int"; "float"; "time" (unix
            seconds, or ISO 8601). Dense features, labels and weights are "int" or "float".
        separator: Between the categories of a bag.
        unit: Of "time" given as numbers: so many a second.
    """

    name: str
    role: Role = "ignore"
    kind: Kind = "string"
    separator: str = ""
    unit: int = 1


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Args:
        file: Its file.
        line: Line (of Parquet: row), counted from 1.
        field: The column, or "" when the row as a whole is wrong.
        reason: What is wrong.
    """

    file: str
    line: int
    field: str
    reason: str

    def __str__(self) -> str:
        where = f"{self.file}, line {self.line}" + (f", field {self.field}" if self.field else "")
        return f"{where}: {self.reason}"


@dataclass
class Chunk:
    """A piece of a file, not parsed yet.

    Args:
        file: The file.
        row: Position of its first row of data in the file, from 0.
        line: Line of that row, from 1.
        rows: Number of lines of data in the piece, good or bad.
        data: The bytes, or whatever the format's `parse` takes.
        position: Bytes of the file consumed so far, for progress.
        header: Names of the file's columns, in order.
    """

    file: Path
    row: int
    line: int
    rows: int
    data: Any
    position: int
    header: Sequence[str] = ()


@dataclass
class RawBlock:
    """Parsed rows: columns by name, as Arrow arrays of the same length.

    Args:
        file: Their file.
        row: Position of the first line in the file, see `Chunk`.
        lines: Line of each row, from 1.
        first_line: Line of `row`.
        columns: The values; missing ones are null.
        bad: The first few rows that were found bad.
        bad_rows: Number of all of them.
        left_out: Good rows that the options leave out, by reason.
    """

    file: Path
    row: int
    first_line: int
    lines: NDArray[np.int64]
    columns: dict[str, pa.Array]
    bad: list[BadRow] = field(default_factory=list)
    bad_rows: int = 0
    left_out: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rejected = np.zeros(len(self.lines), bool)

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def positions(self) -> NDArray[np.int64]:
        """Position of each row in the file, counting bad rows too."""
        return self.lines - self.first_line + self.row

    def reject(self, wrong: NDArray[np.bool_] | pa.Array, name: str, reason: str, values: pa.Array = None) -> None:
        """Mark the rows where `wrong` is true as bad: "field NAME: VALUE REASON"."""
        if not isinstance(wrong, np.ndarray):
            wrong = pc.fill_null(wrong, False).to_numpy(zero_copy_only=False)
        fresh = wrong & ~self.rejected
        if not fresh.any():
            return
        rows = np.flatnonzero(fresh)
        for row in rows[:SHOWN]:
            value = None if values is None else values[int(row)].as_py()
            shown = reason if value is None else f"{value!r} {reason}"
            self.bad.append(BadRow(str(self.file), int(self.lines[row]), name, shown))
        self.bad_rows += len(rows)
        self.rejected |= fresh

    def drop_rejected(self) -> None:
        """Leave out the rows that were marked."""
        if self.rejected.any():
            self.take(np.flatnonzero(~self.rejected))
        self.bad = sorted(self.bad, key=lambda row: row.line)[:SHOWN]

    def take(self, rows: NDArray[np.int64]) -> None:
        """Keep the rows at these indices; an index may come twice."""
        self.columns = {name: array.take(pa.array(rows)) for name, array in self.columns.items()}
        self.lines = self.lines[rows]
        self.rejected = self.rejected[rows]


class RawFormat(ABC):
    """A raw log's format.

    Attributes:
        name: What users call it.
        dense_transform: What becomes of dense values: "log" (negative to 0, then log(x+1)) or "none". Missing: 0.
        default_split: The split when the command line names none.
        notes: Facts for the schema's `info`.
    """

    name: str
    dense_transform: str = "none"
    default_split: str = "random:0.8,0.1,0.1"
    notes: str = ""

    @property
    @abstractmethod
    def columns(self) -> Sequence[Column]:
        """The columns that become features, labels and so on; those that `parse` returns."""

    @abstractmethod
    def sniff(self, path: Path) -> None:
        """Look at the first rows of `path`; raise DataError naming the line and the columns if it is not ours."""

    @abstractmethod
    def chunks(self, path: Path, block_bytes: int) -> Iterator[Chunk]:
        """Yield the file in pieces of about `block_bytes`, cheaply: this runs in one thread, parsing in several."""

    @abstractmethod
    def parse(self, chunk: Chunk) -> RawBlock:
        """Parse a piece; bad rows are marked by `RawBlock.reject`, never raised. Thread-safe."""

    @abstractmethod
    def head(self, chunk: Chunk, rows: int) -> Chunk:
        """Return the first `rows` rows of a piece."""

    @classmethod  # noqa: B027 - most formats have none
    def add_arguments(cls, parser: argparse._ArgumentGroup) -> None:
        """Add the format's own options to the command line."""

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """Return the format with the options that the command line gave."""
        return cls()

    def columns_of(self, *roles: Role) -> list[Column]:
        """Return the columns with one of `roles`, in order."""
        return [column for column in self.columns if column.role in roles]
