"""Zip archives from elsewhere: looked at before anything in them is inflated, and never unpacked to the disk.

What torch and NumPy write is stored, not compressed. So an archive that claims more bytes than it has, whether its
entries are compressed, overlap or lie about their sizes, is not one of theirs.
"""

from __future__ import annotations

import stat
import zipfile
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
from numpy.typing import NDArray

from recloom.errors import DataError


def check(path: Path, hint: str, compressed: bool = False, part: tuple[int, int] | None = None) -> None:
    """Look through a zip archive: names, sizes, then the checksums, which libraries that map it do not compare.

    Args:
        path: The archive, or a file that it is a part of.
        hint: What to do about a bad one.
        compressed: Whether its entries may be compressed; then as little of one is inflated as its size says, and that
            has to fit into memory.
        part: Where the archive begins in the file, and its length; it has to fit into memory.

    Raises:
        DataError: Names the file, and the entry that is damaged, or is not what an archive of data holds.
        FileNotFoundError: There is none.
    """
    try:
        with zipfile.ZipFile(path if part is None else _part(path, *part)) as archive:
            strange = _strange(archive, path.stat().st_size if part is None else part[1], compressed)
            damaged = None if strange else archive.testzip()
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib and struct have errors of their own, by which byte is wrong
        raise DataError(f"{path}: it is cut short or damaged: {type(error).__name__} {error}", hint) from error
    if strange:
        raise DataError(f"{path}: not an archive that is safe to open: {strange}", hint)
    if damaged is not None:
        raise DataError(f"{path}: it is damaged: the checksum of its entry {damaged} is wrong", hint)


def read_arrays(path: Path, hint: str, compressed: bool = False) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz file by name.

    Args:
        path: The file.
        hint: What to do about a bad one.
        compressed: Whether `numpy.savez_compressed` may have written it.

    Raises:
        DataError: It is no such file, or `check` refuses it, or an array is not as large as it says.
        FileNotFoundError: There is none.
    """
    check(path, hint, compressed)
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                with archive.open(info) as file:
                    _check_size(file, info)
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, TypeError, SyntaxError) as error:
        raise DataError(f"{path}: not an .npz file of arrays of numbers: {error}", hint) from error


def _part(path: Path, start: int, length: int) -> BytesIO:
    with path.open("rb") as file:
        file.seek(start)
        return BytesIO(file.read(length))


def _strange(archive: zipfile.ZipFile, size: int, compressed: bool) -> str:
    """Return what is wrong with an archive of `size` bytes, or nothing."""
    entries = archive.infolist()
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename
        if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
            return f"its entry {name!r} leads out of it"
        if stat.S_ISLNK(entry.external_attr >> 16):
            return f"its entry {name!r} is a link"
        if name.casefold() in seen:
            return f"its entry {name!r} is there twice"
        if not compressed and entry.compress_type != zipfile.ZIP_STORED:
            return f"its entry {name!r} is compressed, which such files are not"
        seen.add(name.casefold())
    claimed = sum(entry.file_size for entry in entries)
    room = psutil.virtual_memory().available if compressed else size
    if sum(entry.compress_size for entry in entries) > size:
        return f"its entries overlap: they have more than its {size:,} bytes"
    return f"its entries claim {claimed:,} bytes where there are {room:,}" if claimed > room else ""


def _check_size(file: IO[bytes], entry: zipfile.ZipInfo) -> None:
    """Raise ValueError unless an array takes the bytes of its entry; NumPy would allocate what the header says."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(file)
    if kind.hasobject:
        raise ValueError(f"{entry.filename} holds Python objects")
    wanted = int(np.prod(shape, dtype=object)) * kind.itemsize
    if wanted != entry.file_size - file.tell():
        raise ValueError(f"{entry.filename} says {wanted:,} bytes and has {entry.file_size - file.tell():,}")
