"""Tensors in memory that ranks of one machine share, for Hogwild and for tables of which there is one copy."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from recloom.errors import RecloomError

FOLDER = Path("/dev/shm")


class SharedMemory:
    """Makes tensors that the ranks of a set see as one. All ranks of the run together, on the main thread.

    The file behind a tensor has no name once all have opened it: nothing is left behind, however the run ends.

    Args:
        ranks: The ranks that share with this one, itself included.
    """

    def __init__(self, ranks: Sequence[int]) -> None:
        names: list[str] = [""] * dist.get_world_size()
        dist.all_gather_object(names, socket.gethostname() + _boot())
        if not FOLDER.is_dir() or len({names[rank] for rank in ranks}) > 1:
            raise RecloomError(
                f"ranks {', '.join(map(str, ranks))} are to share memory and are on different machines",
                "Share among the ranks of one machine only: choose `hogwild`, or tables: synced.",
            )
        self.ranks = ranks
        tokens: list[str] = [""] * dist.get_world_size()
        dist.all_gather_object(tokens, secrets.token_hex(8))
        self._prefix = FOLDER / f"recloom-{tokens[ranks[0]]}"
        self._count = 0

    def tensor(self, length: int, dtype: torch.dtype) -> Tensor:
        """Return a zeroed tensor of `length` values that all of `ranks` see."""
        path = self._prefix.with_name(f"{self._prefix.name}-{self._count}")
        self._count += 1
        first = dist.get_rank() == self.ranks[0]
        size = length * torch.empty(0, dtype=dtype).element_size()
        free = shutil.disk_usage(FOLDER).free
        lacking: list[bool] = [False] * dist.get_world_size()
        dist.all_gather_object(lacking, first and free < size)
        if any(lacking):
            raise RecloomError(
                f"{size / 1e6:,.0f} MB of shared memory are needed, and {FOLDER} has {free / 1e6:,.0f} MB left",
                "In a container: --shm-size. Or use less: tables: synced, hogwild: 1.",
            )
        made = None
        try:
            if first:
                made = torch.from_file(str(path), shared=True, size=length, dtype=dtype)
            dist.barrier()
            if made is None:
                made = torch.from_file(str(path), shared=True, size=length, dtype=dtype)
            dist.barrier()
        finally:
            if first:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
        return made


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return ""
