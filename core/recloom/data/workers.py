"""The processes that load blocks of rows for a `BatchLoader`."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Iterator
from multiprocessing import forkserver
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from recloom.batch import Batch
from recloom.errors import RecloomError

if TYPE_CHECKING:
    from recloom.data.loader import BlockSource


def end_with_parent(worker: int) -> None:
    """Make a worker end when the training process does, however that dies; else a `kill -9` leaves workers behind.

    torch's own watchdog looks at the parent's process id: that of the fork server, which lives as long as its workers.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Order:
    """The sampler of the workers' DataLoader: the blocks of an epoch, set before each iteration."""

    def __init__(self) -> None:
        self.items: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class Blocks(Dataset):
    """The source as the map-style data set that a DataLoader wants."""

    def __init__(self, source: BlockSource) -> None:
        self.source = source

    def __getitem__(self, item: tuple[int, int]) -> Batch | RecloomError:
        return load(self.source, item)


def load(source: BlockSource, item: tuple[int, int]) -> Batch | RecloomError:
    """Return the block, or the user's mistake: as a value, since a DataLoader wraps exceptions in its traceback."""
    try:
        return source.load(*item)
    except RecloomError as error:
        return error


def as_is(block: Any) -> Any:
    """Return a block: nothing is collated."""
    return block


def start_server() -> str:
    """Start the fork server, which imports torch while the caller goes on; return the start method for workers.

    Forking this process itself, with its thread pools, its tables and perhaps CUDA, can deadlock, and doubles the
    memory of every table that training writes to.
    """
    multiprocessing.set_forkserver_preload(["__main__", "recloom.data.loader", "pyarrow.parquet"])
    try:
        forkserver.ensure_running()
    except ChildProcessError:  # this process was forked from one that has a server
        return "spawn"
    return "forkserver"
