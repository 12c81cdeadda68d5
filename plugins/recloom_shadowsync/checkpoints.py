"""Checkpoints of ranks that are not in step: FILE.ckpt, rank 0's, and a file beside it for what each other rank has.

FILE.ckpt holds the model that replicas agree on, so that whatever reads checkpoints reads one consistent model, and
under KEY rank 0's own replica. FILE.ckpt.ranks/R.ckpt holds rank R's: its replica, optimizers, place in the data. Each
rank writes when it gets there, aside and then renamed; none waits for another.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from recloom import checkpoint as checkpoints
from recloom.errors import DataError
from recloom.sharded_checkpoint import write_file

KEY = "shadowsync"


def part_of(path: Path, rank: int) -> Path:
    """Return where rank `rank`'s part of the checkpoint at `path` is."""
    return folder_of(path) / f"{rank}.ckpt"


def folder_of(path: Path) -> Path:
    """Return the folder with the parts of the checkpoint at `path`."""
    return path.with_name(path.name + ".ranks")


def write_part(checkpoint: dict[str, Any], path: Path, rank: int) -> None:
    """Write what rank `rank` has of its own; the model is in the file itself."""
    part = {key: value for key, value in checkpoint.items() if key != "state_dict"}
    write_file(part, part_of(path, rank))


def remove_parts(path: Path) -> None:
    """Remove the parts of the checkpoint at `path`, if it has any."""
    if folder_of(path).exists():
        shutil.rmtree(folder_of(path))


def read_part(loaded: dict[str, Any], path: Path, rank: int, world_size: int) -> dict[str, Any] | None:
    """Return what rank `rank` has to go on from: `loaded`, read from `path`, with all that is the rank's own.

    None if there is no such part: another number of ranks, or a run that ended before the rank had written.
    """
    common = loaded.get(KEY)
    if common is None or common["world_size"] != world_size:
        return None
    if rank == 0:
        return loaded
    try:
        part = checkpoints.read(part_of(path, rank))
    except DataError:
        if part_of(path, rank).exists():
            raise
        return None
    if part[KEY]["run"] != common["run"]:
        return None
    return {**part, "state_dict": loaded["state_dict"]}
