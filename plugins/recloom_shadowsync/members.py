"""Who takes part: a store of their own for the ranks of a fit, and how survivors agree on a new group."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from recloom.errors import RecloomError

T = TypeVar("T")
ANSWER = 3.0
"""Seconds in which the store must answer: if rank 0 hangs, so does whoever asks it."""
SETTLE = 0.25
"""Seconds that survivors wait for one another before they go on without those who have not spoken."""


class Gone(RecloomError):
    """Another rank is not there any more."""


def make_store(rank: int, world_size: int, timeout: timedelta) -> Any:
    """Return a key-value store (a TCPStore) that rank 0 holds. All ranks together, once the run's group is up."""
    where: list[object] = [None]
    store: Any = None
    if rank == 0:
        host = local_address()
        store = TCPStore(host, 0, world_size, True, timeout, wait_for_workers=False)
        where = [(host, store.port)]
    if world_size > 1:
        dist.broadcast_object_list(where, 0)
    if store is None:
        address: Any = where[0]
        store = TCPStore(address[0], address[1], world_size, False, timeout, wait_for_workers=False)
    return store


def local_address() -> str:
    """Return the address by which other ranks reach this process: that of its interface towards MASTER_ADDR."""
    master = os.environ.get("MASTER_ADDR", "127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((master, 9))
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]


class Members:
    """The ranks that take part, and how they find out who is left.

    Args:
        store: A store that all ranks reach.
        rank: This process's rank.
        world_size: Number of ranks at the beginning.
    """

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self.store = store
        self.rank = rank
        self.world_size = world_size
        self.ranks = list(range(world_size))
        self.generation = 0
        self._speaker = store.clone()  # of the main thread: the other may be waiting in `store`

    @property
    def lost(self) -> int:
        """Number of ranks that are gone."""
        return self.world_size - len(self.ranks)

    def leave(self, why: str) -> None:
        """Tell the others that this rank stops, and why; an unreachable store is no reason to fail."""
        try:
            self._speaker.set(f"left/{self.rank}", why)
        except (RuntimeError, OSError):
            return

    def changed(self) -> bool:
        """Whether another rank has noticed that somebody is gone."""
        return self._ask(lambda: self.store.check([f"generation/{self.generation + 1}/started"]))

    def agree(self) -> list[int]:
        """Find out with the other survivors who is left; return the ranks that are gone since the last time.

        Raises:
            Gone: The store is gone with rank 0, or the others went on without this rank.
        """
        before = self.ranks
        agreed = self._ask(self._agree)
        if self.rank not in agreed:
            raise Gone(
                f"rank {self.rank} was not heard from, and the others went on without it",
                "It hung for longer than `round_timeout`. Go on from the last checkpoint: --ckpt_path last.",
            )
        self.ranks = agreed
        self.generation += 1
        return [rank for rank in before if rank not in agreed]

    def _agree(self) -> list[int]:
        prefix = f"generation/{self.generation + 1}"
        self.store.set(f"{prefix}/started", "1")
        self.store.set(f"{prefix}/here/{self.rank}", "1")
        end, here = time.monotonic() + SETTLE, [self.rank]
        while time.monotonic() < end and len(here) < len(self.ranks):
            here = [rank for rank in self.ranks if self.store.check([f"{prefix}/here/{rank}"])]
            time.sleep(0.01)
        return json.loads(self.store.compare_set(f"{prefix}/members", "", json.dumps(here)))

    def _ask(self, question: Callable[[], T]) -> T:
        """Ask the store, on a thread that is left behind if it does not answer; Gone if so, or if it is not there."""
        answers: list[T] = []

        def ask() -> None:
            with contextlib.suppress(RuntimeError, OSError):
                answers.append(question())

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(ANSWER)
        if not answers:
            raise Gone(
                "rank 0, which holds the ranks' store, is gone", "Go on from the last checkpoint: --ckpt_path last."
            )
        return answers[0]

    def reasons(self, ranks: list[int]) -> str:
        """Return what is known of why `ranks` are gone: "rank 1 stopped (ValueError: ...)"."""
        found = []
        for rank in ranks:
            said = self._ask(lambda rank=rank: self._word(rank))  # type: ignore[misc]
            found.append(f"rank {rank} stopped ({said})" if said else f"rank {rank} died or cannot be reached")
        return ", ".join(found)

    def _word(self, rank: int) -> str:
        return self.store.get(f"left/{rank}").decode() if self.store.check([f"left/{rank}"]) else ""
