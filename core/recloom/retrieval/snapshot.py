"""Versions of an index in one folder: written aside, made current in one step, so that a crash leaves the old one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from recloom import intact
from recloom.errors import DataError

CURRENT, SNAPSHOTS = "CURRENT", "snapshots"
AGAIN = "Copy the folder again, or build the index anew."
KEPT = 2


def current(folder: Path) -> Path:
    """Return the newest complete snapshot; DataError if there is none, or a file of it is missing or damaged."""
    try:
        name = (folder / CURRENT).read_text(errors="replace").strip()
    except FileNotFoundError:
        raise DataError(f"{folder}: there is no index here", "Build one: recloom index build --out ...") from None
    found = intact.inside(folder / SNAPSHOTS, name, folder / CURRENT, AGAIN)
    intact.check(found, AGAIN)
    return found


def write(folder: Path, save: Callable[[Path], None]) -> Path:
    """Write a new snapshot and make it current; return it. Readers of the old one may go on: the last two are kept.

    Args:
        folder: The index's folder.
        save: Writes everything into the empty folder that it is given.

    Raises:
        DataError: The disk is full; the snapshot before is the current one.
    """
    snapshots = folder / SNAPSHOTS
    snapshots.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        for left in snapshots.glob("*.part"):  # of a writer that was killed
            shutil.rmtree(left)
        numbers = [int(path.name) for path in snapshots.iterdir() if path.name.isdigit()]
        name = f"{max(numbers, default=0) + 1:06d}"
        aside = snapshots / f"{name}.part"
        aside.mkdir()
        try:
            with intact.room(aside):
                save(aside)
                intact.seal(aside)
                for path in aside.rglob("*"):
                    _flush(path)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        aside.replace(snapshots / name)
        _flush(snapshots)
        (folder / f"{CURRENT}.part").write_text(name + "\n")
        _flush(folder / f"{CURRENT}.part")
        (folder / f"{CURRENT}.part").replace(folder / CURRENT)
        _flush(folder)
        for number in sorted([*numbers, int(name)])[:-KEPT]:
            shutil.rmtree(snapshots / f"{number:06d}", ignore_errors=True)
    return snapshots / name


def _flush(path: Path) -> None:
    """Have the system write a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
