"""Any CSV or Parquet file with named columns, by saying what each column is."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from recloom.data.formats.base import Chunk, Column, RawBlock
from recloom.data.formats.convert import convert
from recloom.data.formats.text import TextFormat
from recloom.errors import DataError, suggest, unknown

_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class TableColumns:
    """What the columns are; columns not named are left out.

    Args:
        label: Label columns, one a task: numbers from 0 to 1.
        dense: Numbers.
        sparse: Categories of any type, compared as text.
        bags: Columns of several categories, with the separator between them ("" for Parquet lists).
        timestamp: Times: unix seconds or ISO 8601 (UTC unless they say otherwise).
        group: What groups samples (user, session) for grouped metrics.
        weight: Sample weights.
        separator: Between the fields of a CSV file; "" for TAB in .tsv files and comma in others.
        positive: From which number on a label is 1, smaller ones 0, as with ratings; None: labels are as they are.
    """

    label: tuple[str, ...] = ()
    dense: tuple[str, ...] = ()
    sparse: tuple[str, ...] = ()
    bags: Mapping[str, str] = field(default_factory=dict)
    timestamp: str = ""
    group: str = ""
    weight: str = ""
    separator: str = ""
    positive: float | None = None

    def columns(self) -> tuple[Column, ...]:
        """Return the columns; DataError when there is no label or a column is named twice."""
        columns = [
            *(Column(name, "label", "float") for name in self.label),
            *(Column(name, "dense", "float") for name in self.dense),
            *(Column(name, "sparse") for name in self.sparse),
            *(Column(name, "bag", separator=separator) for name, separator in self.bags.items()),
            *(Column(name, "timestamp", "time") for name in (self.timestamp,) if name),
            *(Column(name, "group") for name in (self.group,) if name),
            *(Column(name, "weight", "float") for name in (self.weight,) if name),
        ]
        if not self.label:
            raise DataError("the format 'table' needs a label column", "Name it: --label click")
        names = [column.name for column in columns]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"column {twice[0]!r} is given two roles", "Give each column one of them.")
        return tuple(columns)

    @classmethod
    def load(cls, path: Path) -> TableColumns:
        """Read the roles from YAML: the names above as keys."""
        try:
            values = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise DataError(f"{path}: cannot be read as YAML: {error}") from error
        if not isinstance(values, dict):
            raise DataError(f"{path}: not a mapping", "Write lines like `label: click` and `dense: [age, price]`.")
        known = {item.name for item in fields(cls)}
        if strange := sorted(set(map(str, values)) - known):
            raise unknown(f"{path}: role", strange[0], known)
        if isinstance(values.get("positive", 0.0), bool) or not isinstance(values.get("positive", 0.0), int | float):
            raise DataError(f"{path}: positive: {values['positive']!r} is no number", "Write `positive: 4`.")
        lists = {key: names_of(values[key]) for key in ("label", "dense", "sparse") if key in values}
        return cls(**{**values, **lists})


class Table(TextFormat):
    """CSV with a header line, or Parquet."""

    name = "table"
    quote = '"'
    labels: Literal["binary", "rate", "any"] = "rate"
    not_a_rate = "is not between 0 and 1 (of a rating, --positive N makes 1 from N on, and 0 below)"

    positive: float | None = None

    def __init__(self, columns: TableColumns) -> None:
        self.fields, self.positive = columns.columns(), columns.positive
        self.separator = self._separator = columns.separator

    def sniff(self, path: Path) -> None:
        """Check that the named columns are there; find the separator of CSV files."""
        if _is_parquet(path):
            self._check(path, _parquet(path).schema_arrow.names)
            return
        separator = self._separator or ("\t" if ".tsv" in path.suffixes else ",")
        if self.separator not in ("", separator):
            raise DataError(f"{path}: not the same separator as in the files before", "Name it: --separator ,")
        self.separator = separator
        lines = self.first_lines(path)[:2]
        header = self.header(self.split_line(lines[0])) or [column.name for column in self.fields]
        self._check(path, header)
        if len(lines) > 1 and len(row := self.split_line(lines[1])) != len(header):
            raise DataError(
                f"{path}, line 2: {len(row)} columns where the header has {len(header)}", "Is there a header?"
            )

    def _check(self, path: Path, names: Sequence[str]) -> None:
        for column in self.fields:
            if column.name not in names:
                raise DataError(f"{path}: there is no column {column.name!r}", suggest(column.name, names))
        if twice := sorted({name for name in names if list(names).count(name) > 1}):
            raise DataError(f"{path}: two columns are named {twice[0]!r}", "Rename one of them.")

    def header(self, first: list[str]) -> list[str] | None:
        """Return the first line: it always is the header."""
        return first

    def fields_of(self, header: Sequence[str]) -> Sequence[Column]:
        """Return the columns of a file in its order, those without a role ignored."""
        known = {column.name: column for column in self.fields}
        return [known.get(name, Column(name)) for name in header]

    def chunks(self, path: Path, block_bytes: int) -> Iterator[Chunk]:
        """Yield blocks of lines, or record batches of Parquet."""
        if not _is_parquet(path):
            yield from super().chunks(path, block_bytes)
            return
        row, file, size = 0, _parquet(path), path.stat().st_size
        try:
            for batch in file.iter_batches(_BATCH_ROWS, columns=[column.name for column in self.fields]):
                done = size * (row + batch.num_rows) // max(file.metadata.num_rows, 1)
                yield Chunk(path, row, row + 1, batch.num_rows, batch, done)
                row += batch.num_rows
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path}, after row {row}: cannot be read: {error}", "Is the file complete?") from error

    def head(self, chunk: Chunk, rows: int) -> Chunk:
        """Return the first `rows` rows."""
        if isinstance(chunk.data, bytearray):
            return super().head(chunk, rows)
        return Chunk(chunk.file, chunk.row, chunk.line, rows, chunk.data.slice(0, rows), chunk.position)

    def parse(self, chunk: Chunk) -> RawBlock:
        """Parse lines, or convert the columns of Parquet."""
        if isinstance(chunk.data, bytearray):
            return super().parse(chunk)
        columns = {name: array for name, array in zip(chunk.data.schema.names, chunk.data.columns, strict=True)}
        lines = np.arange(chunk.line, chunk.line + chunk.rows)
        block = RawBlock(chunk.file, chunk.row, chunk.line, lines, columns)
        for column in self.fields:
            convert(block, column)
        return self.checked(block)

    def derive(self, block: RawBlock) -> None:
        """Make labels of ratings."""
        for column in self.columns_of("label") if self.positive is not None else ():
            block.columns[column.name] = pc.greater_equal(block.columns[column.name], self.positive).cast(pa.float64())

    @classmethod
    def add_arguments(cls, parser: argparse._ArgumentGroup) -> None:
        """Add the options that say what each column is."""
        parser.add_argument("--columns", type=Path, metavar="YAML", help="file with the roles below, as keys")
        parser.add_argument("--label", type=names_of, metavar="A[,B]", help="label column; several: one a task")
        parser.add_argument("--positive", type=float, metavar="N", help="labels from N on are 1, smaller ones 0")
        parser.add_argument("--dense", type=names_of, metavar="A,B", help="columns with numbers")
        parser.add_argument("--sparse", type=names_of, metavar="A,B", help="columns with categories")
        parser.add_argument("--bag", action="append", metavar="A|SEP", help="column with categories separated by SEP")
        parser.add_argument("--timestamp", metavar="A", help="column with unix seconds or ISO 8601 times")
        parser.add_argument("--group", metavar="A", help="column that groups samples for grouped metrics")
        parser.add_argument("--weight", metavar="A", help="column with sample weights")
        parser.add_argument("--separator", help="between CSV fields (default: TAB in .tsv files, else comma)")

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """Return the format; options win over the file of `--columns`."""
        spec = TableColumns.load(arguments.columns) if arguments.columns else TableColumns()
        names = ("label", "positive", "dense", "sparse", "timestamp", "group", "weight", "separator")
        given: dict[str, Any] = {name: value for name in names if (value := getattr(arguments, name)) is not None}
        if arguments.bag:
            given["bags"] = {bag.partition("|")[0]: bag.partition("|")[2] or "|" for bag in arguments.bag}
        values = {item.name: getattr(spec, item.name) for item in fields(spec)}
        return cls(TableColumns(**{**values, **given}))


def names_of(text: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names in "a,b", or those of a list, stripped."""
    names = text.split(",") if isinstance(text, str) else map(str, text)
    return tuple(name.strip() for name in names if name.strip())


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a Parquet file: {error}", "Is the file complete?") from error


class NamedTable(Table):
    """A table whose columns may be named by the command line, for files without a header line: `self._names`."""

    _names: tuple[str, ...]

    def header(self, first: list[str]) -> list[str] | None:
        """Return the first line, unless the names were given."""
        return None if self._names else first

    def sniff(self, path: Path) -> None:
        """Check that the named columns are there; find the separator of CSV files."""
        super().sniff(path)
        if self._names and len(row := self.split_line(self.first_lines(path)[0])) != len(self._names):
            raise DataError(f"{path}, line 1: {len(row)} columns where --header has {len(self._names)}")
