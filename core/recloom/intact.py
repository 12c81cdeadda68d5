"""Whether files are as they were written: checksums of a folder's files, of a manifest itself, and room for them."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recloom.errors import DataError

CHECKSUMS = "files.json"
FULL = {errno.ENOSPC, errno.EDQUOT}
_CHECKSUM = "checksum"
SPARE = 1 << 16
"""Bytes that have to be left after writing: some libraries lose the end of a file on a full disk and say nothing."""


def seal(folder: Path) -> None:
    """Write the sizes and sha256 of all files in `folder`, and in folders in it, to its files.json."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    facts = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
    }
    (folder / CHECKSUMS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def check(folder: Path, hint: str) -> None:
    """Compare the files in `folder` with its files.json; files that it does not name are left alone.

    Args:
        folder: A folder that was sealed.
        hint: What to do about a damaged one.

    Raises:
        DataError: Names the file that is missing, cut short or changed, or says that there is no files.json.
    """
    try:
        facts: dict[str, dict[str, Any]] = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        expected = [(name, int(fact["bytes"]), str(fact["sha256"])) for name, fact in facts.items()]
    except FileNotFoundError:
        raise DataError(f"{folder}: it is not complete, for {CHECKSUMS} is missing", hint) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # by which byte of it is wrong
        raise DataError(f"{folder / CHECKSUMS}: it is damaged: {error}", hint) from None
    for name, size, digest in expected:
        path = inside(folder, name, folder / CHECKSUMS, hint)
        if not path.is_file() or path.stat().st_size != size:
            raise DataError(f"{path}: it is missing or cut short", hint)
        if sha256(path) != digest:
            raise DataError(f"{path}: it is damaged: its sha256 is not that in {CHECKSUMS}", hint)


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Tell a full disk as such, whatever the library that writes into `folder`, aside, makes of it.

    Raises:
        DataError: The disk is full; names the file that was written last.
    """
    try:
        yield
        if shutil.disk_usage(folder).free < SPARE:
            raise OSError(errno.ENOSPC, "the disk is full")
    except (OSError, RuntimeError) as error:  # torch and faiss, which are C++, raise a RuntimeError
        if getattr(error, "errno", None) not in FULL and shutil.disk_usage(folder).free >= SPARE:
            raise
        files = [path for path in folder.rglob("*") if path.is_file()]
        last = max(files, key=lambda path: path.stat().st_mtime_ns, default=folder)
        hint = "Free some space and run it again; what was there before is as it was."
        raise DataError(f"{last}: the disk is full", hint) from error


def inside(folder: Path, name: str, source: Path, hint: str) -> Path:
    """Return the file in `folder` that `source` names; DataError if the name leads out of the folder."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
        raise DataError(f"{source}: it names {name!r}, which is not in {folder}", hint)
    return folder / name


def signed(facts: dict[str, Any]) -> dict[str, Any]:
    """Return what a manifest is to hold, with a checksum of it."""
    return {**facts, _CHECKSUM: _digest(facts)}


def unsigned(facts: dict[str, Any], path: Path, hint: str) -> dict[str, Any]:
    """Return what `signed` got; one that an earlier version wrote, without a checksum, is taken as it is.

    Args:
        facts: What the manifest holds.
        path: The manifest.
        hint: What to do about a damaged one.

    Raises:
        DataError: Something in it is not what was written.
    """
    rest = {key: value for key, value in facts.items() if key != _CHECKSUM}
    if _CHECKSUM in facts and facts[_CHECKSUM] != _digest(rest):
        raise DataError(f"{path}: it is damaged: its checksum is wrong", hint)
    return rest


def _digest(facts: dict[str, Any]) -> str:
    """Return the sha256 of `facts` as JSON, whatever the order of its keys."""
    text = json.dumps(json.loads(json.dumps(facts)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
