"""Checkpoints of sharded runs: a .ckpt file, and beside it a folder with the tensors whose rows ranks share out.

FILE.ckpt is read with `weights_only=True` like any other; it holds everything but the sharded tensors and names a
folder in FILE.ckpt.shards/ that holds those. The folder is written first; the file last, aside, and renamed into
place. So a save that was killed leaves the earlier checkpoint whole, and nothing half-written is ever read.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from recloom import dcp, intact
from recloom.dcp import RowSpans
from recloom.dcp_index import INDEX, read_index
from recloom.errors import DataError

KEY = "recloom_shards"


def new_folder(path: Path, step: int) -> Path:
    """Return a folder that does not exist yet, for the shards of the checkpoint at `path`."""
    return folder_of(path) / f"{step:09d}-{uuid.uuid4().hex[:8]}"


def folder_of(path: Path) -> Path:
    """Return the folder with all shards of the checkpoint at `path`."""
    return path.with_name(path.name + ".shards")


def write(checkpoint: dict[str, Any], path: Path, shards: Path) -> None:
    """Write the file of a checkpoint whose `shards` are on disk already; then remove the shards of earlier ones."""
    checkpoint[KEY] = {"folder": f"{shards.parent.name}/{shards.name}", "index": intact.sha256(shards / INDEX)}
    write_file(checkpoint, path)
    for other in shards.parent.iterdir():
        if other.name != shards.name:
            shutil.rmtree(other)


def write_file(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint file aside, flush it to the disk, and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    with aside.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def take_folder(checkpoint: dict[str, Any], path: Path) -> Path | None:
    """Remove the note about shards from `checkpoint`, read from `path`; return their folder, or None.

    Raises:
        DataError: The shards are missing, or their index is not the one that was written.
    """
    note = checkpoint.pop(KEY, None)
    if note is None:
        return None
    folder = intact.inside(path.parent, str(note["folder"]), path, "Use an earlier one.")
    if "index" in note and (folder / INDEX).exists() and intact.sha256(folder / INDEX) != note["index"]:
        raise DataError(
            f"{folder / INDEX}: it is damaged: its sha256 is not that in {path.name}", "Use an earlier one."
        )
    return folder


def complete(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Put the whole tensors into `checkpoint`, read from `path`, if it is a sharded one; return it.

    For a process that holds whole tables: a single device, plain `ddp`, `recloom export`.

    Raises:
        DataError: The shards are missing or damaged.
    """
    folder = take_folder(checkpoint, Path(path))
    if folder is None:
        return checkpoint
    wholes: dict[str, tuple[Tensor, RowSpans]] = {}
    for name, stored in read_index(folder).state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata)
        wholes[name] = torch.empty(stored.size, dtype=stored.properties.dtype), RowSpans.all(stored.size[0])
    dcp.load(folder, wholes)
    for name, (whole, _) in wholes.items():
        place, key = _place(checkpoint, name)
        place[key] = whole
    return checkpoint


def remove(path: Path) -> None:
    """Remove the shards of the checkpoint at `path`, if it has any."""
    if folder_of(path).exists():
        shutil.rmtree(folder_of(path))


def weight_name(name: str) -> str:
    """Return what the shards of parameter `name` are called on disk."""
    return f"state_dict/{name}"


def state_name(optimizer: int, parameter: int, key: str) -> str:
    """Return what the shards of an optimizer's state are called on disk."""
    return f"optimizer_states/{optimizer}/{parameter}/{key}"


def stored_states(folder: Path, optimizer: int, parameter: int) -> Iterator[tuple[str, TensorStorageMetadata]]:
    """Yield (key, size and type) of the states of an optimizer's parameter in `folder`."""
    prefix = state_name(optimizer, parameter, "")
    for name, stored in read_index(folder).state_dict_metadata.items():
        if name.startswith(prefix) and isinstance(stored, TensorStorageMetadata):
            yield name.removeprefix(prefix), stored


def _place(checkpoint: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """Return the dict of `checkpoint`, and the key in it, that the shards called `name` belong to."""
    part, _, rest = name.partition("/")
    if part == "state_dict":
        return checkpoint[part], rest
    optimizer, parameter, key = rest.split("/", 2)
    return checkpoint[part][int(optimizer)]["state"].setdefault(int(parameter), {}), key
