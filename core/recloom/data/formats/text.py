"""Logs as lines of separated fields: read in blocks cut at line ends, each parsed by PyArrow."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv

from recloom.data.formats.base import SHOWN, BadRow, Chunk, Column, RawBlock, RawFormat
from recloom.data.formats.convert import convert
from recloom.data.formats.files import (
    bad_text,
    blank_lines,
    check_quotes,
    open_raw,
    read_into,
    row_lines,
    whole_rows,
    without_lines,
)
from recloom.errors import ComponentImportError, DataError
from recloom.plugins import catalog

_HEAD = 1 << 18
_BLOCK = 1 << 20  # PyArrow is fastest when what it works on stays in the cache
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
        labels: What labels may be, others being bad rows: "binary", 0 or 1; "rate", from 0 to 1; "any", numbers.
    """

    separator: str = "\t"
    quote: str = ""
    fields: tuple[Column, ...] = ()
    derived: tuple[Column, ...] = ()
    not_a_rate: ClassVar[str] = "is not between 0 and 1"
    labels: Literal["binary", "rate", "any"] = "binary"

    @property
    def columns(self) -> Sequence[Column]:
        """The columns that become features, labels and so on."""
        return [column for column in (*self.fields, *self.derived) if column.role not in ("ignore", "raw")]

    def derive(self, block: RawBlock) -> None:
        """Compute further columns of `block` from those of the file, before bad rows are dropped."""

    def header(self, first: list[str]) -> list[str] | None:
        """Return the columns' names if `first`, the fields of the first line, are a header; None if they are data."""
        names = [column.name for column in self.fields]
        return names if first == names else None

    def fields_of(self, header: Sequence[str]) -> Sequence[Column]:
        """Return the columns of a file with this `header`, in the file's order."""
        return self.fields

    # Looking at the first lines

    def split_line(self, line: bytes | bytearray) -> list[str]:
        """Return the fields of one line."""
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if not self.quote:
            return text.split(self.separator)
        try:
            return next(csv.reader(io.StringIO(text), delimiter=self.separator, quotechar=self.quote), [])
        except csv.Error:  # a line end in the middle of it, or a field of megabytes: no column has such a name
            return text.split(self.separator)

    def first_lines(self, path: Path) -> list[bytes]:
        """Return the whole lines at the start of `path`; DataError if it cannot be read or is empty."""
        with open_raw(path) as stream:
            head = bytearray(_HEAD)
            del head[read_into(stream, memoryview(head), path, 1) :]
        lines = bytes(head).removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")] or lines
        if not whole:
            raise DataError(f"{path}: the file is empty")
        return whole

    def sniff(self, path: Path) -> None:
        """Check the number of columns of the first lines."""
        lines = self.first_lines(path)
        if not self.fits(lines):
            raise DataError(
                f"{path}, line 1: {len(self.split_line(lines[0]))} columns separated by {self.separator!r} "
                f"where the format {self.name!r} has {len(self.fields)}",
                _other_formats(lines),
            )

    def fits(self, lines: Sequence[bytes]) -> bool:
        """Return whether one of the first lines of a file has this format's number of columns."""
        return any(len(self.split_line(line)) == len(self.fields) for line in lines[:20])

    # Cutting into pieces

    def chunks(self, path: Path, block_bytes: int) -> Iterator[Chunk]:
        """Yield blocks of whole lines."""
        with path.open("rb", buffering=0) as raw, open_raw(path, raw) as stream:
            rest, line, row, header, last = b"", 1, 0, None, False
            while not last:
                data = bytearray(rest).ljust(len(rest) + block_bytes)
                filled = len(rest) + read_into(stream, memoryview(data)[len(rest) :], path, line)
                last = filled < len(data)
                del data[filled:]
                if header is None:
                    header, skipped = self._skip_header(data)
                    del data[:skipped]
                    line, header = (2, header) if header else (1, [column.name for column in self.fields])
                end = len(data) if last else whole_rows(data, self.quote)
                if end == 0 and len(data) > 8 * block_bytes:
                    what = f"{path}, line {line}: no line end in {len(data):,} bytes"
                    raise DataError(what, "Is it a text file? Leave the line out, or cut it.")
                rest = bytes(data[end:])
                del data[end:]
                if data:
                    lines = data.count(b"\n") + (not data.endswith(b"\n"))
                    yield Chunk(path, row, line, lines, data, raw.tell(), header)
                    line, row = line + lines, row + lines

    def head(self, chunk: Chunk, rows: int) -> Chunk:
        """Return the first `rows` lines."""
        end = 0
        for _ in range(rows):
            end = chunk.data.find(b"\n", end) + 1 or len(chunk.data)
        data = chunk.data[:end]
        return replace(chunk, rows=rows, data=data[: whole_rows(data, self.quote)] if self.quote else data)

    def _skip_header(self, data: bytearray) -> tuple[list[str] | None, int]:
        mark = 3 if data.startswith(b"\xef\xbb\xbf") else 0
        end = data.find(b"\n") + 1 or len(data)
        header = self.header(self.split_line(data[mark:end]))
        return header, end if header else mark

    # Parsing

    def parse(self, chunk: Chunk) -> RawBlock:
        """Parse a block of lines; when something does not convert, again as text, to find out what."""
        fields = [column for column in self.fields_of(chunk.header) if column.role != "ignore"]
        try:
            block = self._read_columns(chunk, fields, _TYPES, _BLOCK)
        except pa.ArrowInvalid:  # a value somewhere does not convert, or is not UTF-8: find the rows
            bad = bad_text(chunk)
            readable = without_lines(chunk, [line for line, _ in bad])
            try:
                block = self._read_columns(readable, fields, {}, len(chunk.data) + 1)
            except pa.ArrowInvalid as error:  # quotes that never close
                lines = f"lines {chunk.line} to {chunk.line + chunk.rows - 1}"
                raise DataError(f"{chunk.file}, {lines}: cannot be parsed: {error}", "Check the quotes.") from error
            block.bad += [BadRow(str(chunk.file), line, "", reason) for line, reason in bad[:SHOWN]]
            block.bad_rows += len(bad)
        if self.quote and len(block) + block.bad_rows < chunk.rows:  # values with line ends in them
            check_quotes(chunk, self.separator, self.quote)
        for column in fields:
            convert(block, column)
        return self.checked(block)

    def checked(self, block: RawBlock) -> RawBlock:
        """Return `block`, its columns converted, with derived columns, checked labels and without bad rows."""
        self.derive(block)
        for column in self.columns_of("label", "timestamp", "weight"):
            array = block.columns[column.name]
            block.reject(array.is_null(), column.name, "is empty")
            values = array.fill_null(0).to_numpy(zero_copy_only=False)
            allowed = self.labels if column.role == "label" else ""
            if allowed == "binary":
                block.reject((values != 0) & (values != 1), column.name, "is neither 0 nor 1", array)
            elif allowed == "rate":
                block.reject((values < 0) | (values > 1), column.name, self.not_a_rate, array)
            if column.role == "weight":
                block.reject(values < 0, column.name, "is negative", array)
        block.drop_rejected()
        block.columns = {column.name: block.columns[column.name] for column in self.columns}
        return block

    def _read_columns(
        self, chunk: Chunk, fields: Sequence[Column], types: dict[str, pa.DataType], block_size: int
    ) -> RawBlock:
        wrong: list[BadRow] = []
        skipped: list[int] = []

        def on_invalid(row: Any) -> str:
            skipped.append(row.number - 1)
            if len(wrong) < SHOWN:
                reason = f"{row.actual_columns} columns where {row.expected_columns} are expected"
                wrong.append(BadRow(str(chunk.file), row.number - 1, "", reason))
            return "skip"

        table = arrow_csv.read_csv(
            pa.BufferReader(pa.py_buffer(chunk.data)),
            arrow_csv.ReadOptions(use_threads=False, block_size=block_size, column_names=list(chunk.header)),
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
        lines = row_lines(chunk, self.quote, table.num_rows + len(skipped))
        wrong = [replace(row, line=int(lines[row.line])) for row in wrong]
        lines = np.delete(lines, skipped)
        columns = {column.name: _one(table.column(column.name)) for column in fields}
        block = RawBlock(chunk.file, chunk.row, chunk.line, lines, columns, wrong, len(skipped))
        if all(array.null_count for array in columns.values()):  # blank lines come as rows of nulls
            block.take(np.flatnonzero(~np.isin(lines, blank_lines(chunk))))
        return block


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _other_formats(lines: Sequence[bytes]) -> str:
    """Return a hint naming the registered formats that a file with these first lines could have."""
    fitting = []
    for entry in catalog().formats:
        with contextlib.suppress(ComponentImportError):
            other = entry.load()
            if issubclass(other, TextFormat) and other.fields and other().fits(lines):
                fitting.append(entry.name)
    return f"It looks like {' or '.join(map(repr, fitting))}." if fitting else "Is it the right file?"
