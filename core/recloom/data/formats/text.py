"""Logs as lines of separated fields: read in blocks cut at line ends, each parsed by PyArrow."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv

from recloom.data.formats.base import BadRow, Chunk, Column, RawBlock, RawFormat
from recloom.data.formats.convert import convert, require
from recloom.data.formats.files import bad_text, open_raw, read_raw, without_bad_text
from recloom.errors import DataError

_HEAD = 1 << 18
_TYPES = {"int": pa.int64(), "float": pa.float64()}


class TextFormat(RawFormat):
    r"""A format of separated fields, without or with a header line; gzip, bz2, lz4 and zstd files are read as they are.

    A subclass states the class attributes and, if columns are computed, `derive`:

        class MyLog(TextFormat):
            name = "mylog"
            separator = "\t"
            fields = (Column("click", "label", "int"), Column("ad", "sparse"), Column("when", "timestamp", "time"))

    Attributes:
        separator: Between fields.
        quote: Character around fields that hold a separator; "" for none.
        fields: All columns of the file, in order. Empty fields are missing values.
        derived: Columns that `derive` adds.
        binary_label: Whether labels other than 0 and 1 are bad rows.
    """

    separator: ClassVar[str] = "\t"
    quote: ClassVar[str] = ""
    fields: ClassVar[tuple[Column, ...]] = ()
    derived: ClassVar[tuple[Column, ...]] = ()
    binary_label: ClassVar[bool] = True

    @property
    def columns(self) -> Sequence[Column]:
        return [column for column in (*self.fields, *self.derived) if column.role not in ("ignore", "raw")]

    def derive(self, block: RawBlock) -> None:
        """Compute further columns of `block` from those of the file, before bad rows are dropped."""

    def header(self, first: list[str]) -> list[str] | None:
        """Return the names of the columns if `first`, the fields of the first line, are a header; None if they are data."""
        names = [column.name for column in self.fields]
        return names if first == names else None

    def fields_of(self, header: Sequence[str]) -> Sequence[Column]:
        """Return the columns of a file with this `header`, in the file's order."""
        return self.fields

    # Looking at the first lines

    def split_line(self, line: bytes) -> list[str]:
        """Return the fields of one line."""
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if not self.quote:
            return text.split(self.separator)
        return next(csv.reader(io.StringIO(text), delimiter=self.separator, quotechar=self.quote), [])

    def first_lines(self, path: Path) -> list[bytes]:
        """Return the whole lines at the start of `path`; DataError if it cannot be read or is empty."""
        with open_raw(path) as stream:
            head = read_raw(stream, _HEAD, path, 1)
        lines = head.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")] or lines
        if not whole:
            raise DataError(f"{path}: the file is empty")
        return whole

    def sniff(self, path: Path) -> None:
        lines = [line for line in self.first_lines(path)[:20] if line.strip()]
        found = [len(self.split_line(line)) for line in lines]
        if lines and len(self.fields) not in found:
            raise DataError(
                f"{path}, line 1: {found[0]} columns separated by {self.separator!r} "
                f"where the format {self.name!r} has {len(self.fields)}",
                _other_formats(self, path),
            )

    # Cutting into pieces

    def chunks(self, path: Path, block_bytes: int) -> Iterator[Chunk]:
        with path.open("rb") as raw, open_raw(path, raw) as stream:
            rest, line, row, header = b"", 1, 0, None
            while data := read_raw(stream, block_bytes, path, line):
                data = rest + data
                if header is None:
                    header, skipped = self._skip_header(data)
                    data, line = data[skipped:], 2 if header else 1
                    header = header or [column.name for column in self.fields]
                end = self._cut(data)
                if end == 0 and len(data) > 8 * block_bytes:
                    raise DataError(f"{path}, line {line}: no line end in {len(data):,} bytes", "Is it a text file?")
                rest = data[end:]
                if end:
                    lines = data.count(b"\n", 0, end)
                    yield Chunk(path, row, line, lines, data[:end], raw.tell(), header)
                    line, row = line + lines, row + lines
            if rest:
                yield Chunk(path, row, line, rest.count(b"\n") + 1, rest, raw.tell(), header or ())

    def head(self, chunk: Chunk, rows: int) -> Chunk:
        end = 0
        for _ in range(rows):
            end = chunk.data.index(b"\n", end) + 1
        return Chunk(chunk.file, chunk.row, chunk.line, rows, chunk.data[:end], chunk.position, chunk.header)

    def _skip_header(self, data: bytes) -> tuple[list[str] | None, int]:
        mark = 3 if data.startswith(b"\xef\xbb\xbf") else 0
        end = data.find(b"\n") + 1 or len(data)
        header = self.header(self.split_line(data[mark:end]))
        return header, end if header else mark

    def _cut(self, data: bytes) -> int:
        """Return the end of the last whole line; a line end between quotes does not count."""
        end = data.rfind(b"\n") + 1
        quote = self.quote.encode()
        while quote and end and data.count(quote, 0, end) % 2:
            end = data.rfind(b"\n", 0, end - 1) + 1
        return end

    # Parsing

    def parse(self, chunk: Chunk) -> RawBlock:
        fields = [column for column in self.fields_of(chunk.header) if column.role != "ignore"]
        try:
            block = self._read_columns(chunk, fields, _TYPES)
        except pa.ArrowInvalid:  # a value somewhere does not convert, or is not UTF-8: find the rows
            block = self._read_columns(without_bad_text(chunk), fields, {})
            for line, reason in bad_text(chunk):
                block.bad.append(BadRow(str(chunk.file), line, "", reason))
                block.bad_rows += 1
        for column in fields:
            convert(block, column)
        self.derive(block)
        for column in self.columns_of("label"):
            require(block, column.name)
            if self.binary_label:
                values = block.columns[column.name].fill_null(0).to_numpy(zero_copy_only=False)
                block.reject(
                    (values != 0) & (values != 1), column.name, "is neither 0 nor 1", block.columns[column.name]
                )
        block.drop_rejected()
        block.columns = {column.name: block.columns[column.name] for column in self.columns}
        return block

    def _read_columns(self, chunk: Chunk, fields: Sequence[Column], types: dict[str, pa.DataType]) -> RawBlock:
        bad: list[BadRow] = []
        skipped: list[int] = []

        def on_invalid(row: Any) -> str:
            line = chunk.line + row.number - 1
            skipped.append(line)
            if row.text.strip():  # a blank line is none
                reason = f"{row.actual_columns} columns where {row.expected_columns} are expected"
                bad.append(BadRow(str(chunk.file), line, "", reason))
            return "skip"

        table = arrow_csv.read_csv(
            pa.BufferReader(chunk.data),
            arrow_csv.ReadOptions(use_threads=False, block_size=len(chunk.data) + 1, column_names=list(chunk.header)),
            arrow_csv.ParseOptions(
                delimiter=self.separator,
                quote_char=self.quote or False,
                newlines_in_values=bool(self.quote),
                ignore_empty_lines=False,
                invalid_row_handler=on_invalid,
            ),
            arrow_csv.ConvertOptions(
                column_types={column.name: types.get(column.kind, pa.string()) for column in fields},
                include_columns=[column.name for column in fields],
                null_values=[""],
                strings_can_be_null=True,
            ),
        ).combine_chunks()
        lines = np.arange(chunk.line, chunk.line + table.num_rows + len(skipped))
        if skipped:
            lines = np.delete(lines, np.array(skipped) - chunk.line)
        columns = {column.name: _one(table.column(column.name)) for column in fields}
        return RawBlock(chunk.file, chunk.row, chunk.line, lines, columns, bad, len(bad))


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _other_formats(mine: RawFormat, path: Path) -> str:
    """Return a hint naming the registered formats that `path` would be."""
    from recloom.plugins import catalog

    fitting = []
    for entry in catalog().formats:
        try:
            other = entry.load()
            if issubclass(other, TextFormat) and other.fields and not isinstance(mine, other):
                other().sniff(path)
                fitting.append(entry.name)
        except ValueError:
            continue
    return f"It looks like {' or '.join(repr(name) for name in fitting)}." if fitting else "Is it the right file?"
