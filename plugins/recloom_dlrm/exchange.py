"""How ranks exchange what a lookup of sharded tables needs: who sends how much, then all-to-alls of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from recloom.errors import RecloomError


@dataclass(frozen=True)
class Groups:
    """Process groups of their own, so that exchanges never mix with collectives of DDP, metrics or other threads.

    Args:
        payload: For ids, rows and gradients, on the model's device.
        counts: For counts, on CPU.
        rank: This process's rank.
        world_size: Number of ranks, R.
    """

    payload: Any
    counts: Any
    rank: int
    world_size: int


_made: list[tuple[Any, Groups]] = []


def groups() -> Groups:
    """Return the groups of the current distributed run, making them the first time: all ranks must call it then."""
    world = dist.group.WORLD
    if not _made or _made[-1][0] is not world:
        payload = dist.new_group()
        counts = payload if dist.get_backend(payload) == "gloo" else dist.new_group(backend="gloo")
        _made[:] = [(world, Groups(payload, counts, dist.get_rank(), dist.get_world_size()))]
    return _made[-1][1]


@dataclass(frozen=True)
class Counts:
    """What every rank tells all others before an exchange.

    Args:
        samples: Samples of each rank's batch.
        bags: Whether any rank has bags rather than one id a bag.
        values: R x R, row r: ids that rank r sends to each rank.
        parts: R x R, likewise parts.
    """

    samples: list[int]
    bags: bool
    values: list[list[int]]
    parts: list[list[int]]


def share_counts(group: Groups, samples: int, bags: bool, values: list[int], parts: list[int]) -> Counts:
    """Return all ranks' counts.

    Raises:
        RecloomError: Another rank called `share_failure` instead.
    """
    ranks = group.world_size
    table = _gather(group, [0, samples, int(bags), *values, *parts])
    if failed := [rank for rank, row in enumerate(table) if row[0]]:
        raise RecloomError(
            f"rank {', '.join(map(str, failed))} stopped before the lookup of this batch", "Its own message says why."
        )
    return Counts(
        [row[1] for row in table],
        any(row[2] for row in table),
        [row[3 : 3 + ranks] for row in table],
        [row[3 + ranks :] for row in table],
    )


def share_failure(group: Groups) -> None:
    """Make all other ranks raise: in place of `share_counts`, by a rank that cannot go on."""
    _gather(group, [1, *[0] * (2 + 2 * group.world_size)])


def _gather(group: Groups, row: list[int]) -> list[list[int]]:
    table = torch.empty(group.world_size, len(row), dtype=torch.int64)
    try:
        dist.all_gather(list(table.unbind(0)), torch.tensor(row), group=group.counts)
    except RuntimeError as error:  # a connection that broke, or nothing heard until the timeout
        raise RecloomError(
            f"another rank is gone: {str(error).splitlines()[0]}", "Its own message says why."
        ) from error
    return table.tolist()


@dataclass
class Transfer:
    """An all-to-all on its way."""

    group: Groups
    buffer: Tensor = field(default_factory=lambda: torch.empty(0))
    _held: Tensor | None = None
    _work: Any = None

    def launch(self, tensor: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Send `sent[r]` rows of `tensor` to each rank r; return the buffer that `received[r]` rows will be in."""
        self._held = tensor.contiguous()
        self.buffer = tensor.new_empty(sum(received), *tensor.shape[1:])
        self._work = dist.all_to_all_single(
            self.buffer, self._held, received, sent, group=self.group.payload, async_op=True
        )
        return self.buffer

    def wait(self) -> Tensor:
        """Return the buffer, filled."""
        if self._work is not None:
            self._work.wait()
            self._work = self._held = None
        return self.buffer


def send(group: Groups, tensor: Tensor, sent: list[int], received: list[int]) -> Transfer:
    """Start an all-to-all of `tensor`."""
    transfer = Transfer(group)
    transfer.launch(tensor, sent, received)
    return transfer
