"""Reading raw files: decompression, truncated archives, bytes that are no text."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recloom.data.formats.base import Chunk
from recloom.errors import DataError

_COMPRESSION = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}


def open_raw(path: Path, raw: Any = None) -> Any:
    """Open `path` for reading bytes, decompressing by its suffix."""
    try:
        compression = _COMPRESSION.get(path.suffix)
        if compression is None:
            return raw or path.open("rb", buffering=0)
        return pa.CompressedInputStream(pa.PythonFile(raw or path.open("rb")), compression)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def read_into(stream: Any, buffer: memoryview, path: Path, line: int) -> int:
    """Fill `buffer` as far as the file goes; return the number of bytes.

    Raises:
        DataError: Reading failed after `line` of `path`: a truncated archive, a bad disk.
    """
    filled = 0
    try:
        while filled < len(buffer) and (count := stream.readinto(buffer[filled:])):
            filled += count
    except OSError as error:
        raise DataError(f"{path}, after line {line}: cannot be read: {error}", "Is the file complete?") from error
    return filled


def whole_rows(data: bytearray, quote: str) -> int:
    """Return where the last whole row ends; a line end between quotes does not count."""
    last = data.rfind(b"\n") + 1
    if not quote or not data.count(quote.encode(), 0, last) % 2:
        return last
    values = np.frombuffer(data, np.uint8, last)
    ends, quotes = np.flatnonzero(values == ord("\n")), np.flatnonzero(values == ord(quote))
    outside = ends[np.searchsorted(quotes, ends) % 2 == 0]
    return int(outside[-1]) + 1 if len(outside) else last  # no pairs at all: the quotes are part of values


def check_quotes(chunk: Chunk, separator: str, quote: str) -> None:
    """Raise DataError if a quote opens in the piece and never closes: PyArrow takes all that follows for its value."""
    if not chunk.data.count(quote.encode()) % 2:
        return
    text = io.StringIO(chunk.data.decode("utf-8", "replace"), newline="")
    reader = csv.reader(text, delimiter=separator, quotechar=quote, strict=True)
    line = chunk.line
    try:
        for _ in reader:
            line = chunk.line + reader.line_num
    except csv.Error as error:
        raise DataError(f"{chunk.file}, line {line}: its quotes do not close: {error}", "Check the quotes.") from error


def row_lines(chunk: Chunk, quote: str, rows: int) -> NDArray[np.int64]:
    """Return the line on which each of the piece's `rows` rows starts: not every one where quotes enclose line ends."""
    lines = np.arange(chunk.line, chunk.line + rows)
    if not quote or rows == chunk.rows:
        return lines
    data = np.frombuffer(chunk.data, np.uint8)
    ends = data == ord("\n")
    outside = ends & (np.cumsum(data == ord(quote)) % 2 == 0)
    after = np.cumsum(ends)[outside]  # lines that have ended where a row ends
    starts = np.concatenate([[0], after[:-1] if outside[-1] else after])
    return starts + chunk.line if len(starts) == rows else lines


def blank_lines(chunk: Chunk) -> list[int]:
    """Return the numbers of the lines that are empty."""
    return [chunk.line + index for index, line in enumerate(chunk.data.split(b"\n")) if line in (b"", b"\r")]


def bad_text(chunk: Chunk) -> list[tuple[int, str]]:
    """Return (line, reason) of the lines that are not UTF-8."""
    bad = []
    for index, line in enumerate(chunk.data.split(b"\n")):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            bad.append((chunk.line + index, f"byte {error.start + 1} is not UTF-8"))
    return bad


def without_lines(chunk: Chunk, numbers: Sequence[int]) -> Chunk:
    """Return the piece with these lines made blank, so that the others keep their numbers."""
    lines = chunk.data.split(b"\n")
    for number in numbers:
        lines[number - chunk.line] = b""
    return replace(chunk, data=bytearray(b"\n").join(lines))
