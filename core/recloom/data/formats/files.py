"""Reading raw files: decompression, truncated archives, bytes that are no text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from recloom.data.formats.base import Chunk
from recloom.errors import DataError


def open_raw(path: Path, raw: Any = None) -> Any:
    """Open `path` for reading bytes, decompressing by its suffix."""
    try:
        return pa.input_stream(pa.PythonFile(raw) if raw is not None else str(path), compression=_compression(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _compression(path: Path) -> str | None:
    return {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}.get(path.suffix)


def read_raw(stream: Any, size: int, path: Path, line: int) -> bytes:
    """Read up to `size` bytes; DataError after which line of `path` that failed (a truncated archive, a bad disk)."""
    try:
        return stream.read(size)
    except OSError as error:
        raise DataError(f"{path}, after line {line}: cannot be read: {error}", "Is the file complete?") from error


def bad_text(chunk: Chunk) -> list[tuple[int, str]]:
    """Return (line, reason) of the lines that are not UTF-8."""
    bad = []
    for index, line in enumerate(chunk.data.split(b"\n")):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            bad.append((chunk.line + index, f"byte {error.start + 1} is not UTF-8"))
    return bad


def without_bad_text(chunk: Chunk) -> Chunk:
    """Return the piece with the lines that are not UTF-8 made blank, so that the others keep their numbers."""
    lines = chunk.data.split(b"\n")
    for line, _ in bad_text(chunk):
        lines[line - chunk.line] = b""
    return Chunk(chunk.file, chunk.row, chunk.line, chunk.rows, b"\n".join(lines), chunk.position, chunk.header)
