"""What travels between ranks in a lookup of sharded tables: counts, ids, pooled rows, and their gradients.

    source rank:  ids ----------> owner rank: lookup
    source rank:  pooled rows <-- owner rank                (while the source runs its dense arch)
    source rank:  gradients ----> owner rank: row gradients (while the source runs the dense arch's backward)

A part is what one bag has on one owner: a non-empty set of ids, whose rows the owner adds up. K parts, N ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    dist.all_gather(list(table.unbind(0)), torch.tensor(row), group=group.counts)
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


class SendWeights(torch.autograd.Function):
    """Value weights to the owners; their gradients come back."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, group: Groups, sent: list[int], received: list[int]) -> Tensor:
        """Return the N' weights that this rank received."""
        ctx.group, ctx.sent, ctx.received = group, sent, received
        return send(group, weights, sent, received).wait()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradients; owners saw the bags' gradients divided by R, which is for rows only."""
        back = send(ctx.group, gradient, ctx.received, ctx.sent).wait()
        return back * ctx.group.world_size, None, None, None


@dataclass
class Pooled:
    """The pooled rows of one lookup between `SendPooled` and `ReceivePooled`, and what both passes need to know.

    Args:
        group: The process groups.
        owned: Parts that this rank pools for each rank.
        asked: Parts that each rank pools for this one, K in all.
        bag: K indices f*B+b of the bags that the parts belong to, by owner.
        shape: (F, B).
        one_hot: Whether every bag has exactly one part.
        scale: F*B factors of the bags, for mean pooling, or None.
    """

    group: Groups
    owned: list[int]
    asked: list[int]
    bag: Tensor
    shape: tuple[int, int]
    one_hot: bool
    scale: Tensor | None
    forward: Transfer = field(init=False)
    backward: Transfer = field(init=False)

    def __post_init__(self) -> None:
        self.forward, self.backward = Transfer(self.group), Transfer(self.group)

    def combine(self, parts: Tensor) -> Tensor:
        """Return B x F x D sums of the K x D parts of each bag."""
        features, samples = self.shape
        if self.one_hot:
            place = torch.empty_like(self.bag)
            place[self.bag] = torch.arange(len(self.bag), device=self.bag.device)
            index = place.view(features, samples).t().reshape(-1)  # B*F
            pooled = parts.index_select(0, index).view(samples, features, -1)
        else:
            order = self.bag.argsort(stable=True)
            ends = self.bag.bincount(minlength=features * samples).cumsum(0)
            offsets = torch.cat([ends.new_zeros(1), ends])
            flat = F.embedding_bag(order, parts, offsets, mode="sum", include_last_offset=True)
            pooled = flat.view(features, samples, -1).transpose(0, 1)
        return pooled if self.scale is None else pooled * self.scale.view(features, samples).t()[..., None]

    def spread(self, gradient: Tensor) -> Tensor:
        """Return the K x D gradients of the parts from the B x F x D ones of the bags, divided by R.

        Each rank's loss is the mean over its own samples, and dense gradients are averaged over ranks: rows, whose
        gradients add up at their owner, need the same factor.
        """
        features, samples = self.shape
        factor: float | Tensor = 1 / self.group.world_size
        if self.scale is not None:
            factor = self.scale.index_select(0, self.bag)[:, None] / self.group.world_size
        flat = gradient.float().transpose(0, 1).reshape(features * samples, -1)
        return flat.index_select(0, self.bag) * factor


class SendPooled(torch.autograd.Function):
    """Pooled rows to those who asked; does not wait."""

    @staticmethod
    def forward(ctx: Any, pooled: Tensor, link: Pooled) -> Tensor:
        """Return a buffer, not filled yet, for the K x D parts that this rank asked for."""
        ctx.link = link
        return link.forward.launch(pooled, link.owned, link.asked)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradients of what this rank pooled, now needed and waited for."""
        return ctx.link.backward.wait(), None


class ReceivePooled(torch.autograd.Function):
    """Pooled rows from the owners; its backward sends the gradients and does not wait.

    Autograd runs what was recorded last first: between this backward and SendPooled's lies the dense arch's.
    """

    @staticmethod
    def forward(ctx: Any, buffer: Tensor, link: Pooled) -> Tensor:
        """Return B x F x D pooled rows."""
        ctx.link = link
        return link.combine(link.forward.wait())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Send the gradients on their way; the tensor returned only tells autograd to go on."""
        link = ctx.link
        parts = link.spread(gradient)
        link.backward.launch(parts, link.asked, link.owned)
        return parts, None
