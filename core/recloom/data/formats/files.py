"""Reading raw files: decompression, truncated archives, bytes that are no text."""

from __future__ import annotations

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
