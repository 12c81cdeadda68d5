"""One lookup of sharded tables: ids to the ranks that own their rows, pooled rows back, gradients the first way again.

    source rank:  ids ----------> owner rank: lookup
    source rank:  pooled rows <-- owner rank                (while the source runs its dense arch)
    source rank:  gradients ----> owner rank: row gradients (while the source runs the dense arch's backward)

A part is what one bag has on one owner: a non-empty set of ids, whose rows the owner adds up. K parts, N ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from recloom import rowgrad
from recloom.rowlayout import RowLayout
from recloom_dlrm.exchange import Counts, Groups, Transfer, send
from recloom_dlrm.routing import Routed


def start(weight: Tensor, group: Groups, routed: Routed, counts: Counts, factor: float) -> Callable[[], Tensor]:
    """Exchange ids, pool the rows that others asked for, send those; return what waits for one's own, B x F x D.

    Args:
        weight: This rank's rows.
        group: The process groups.
        routed: Where this rank's ids go.
        counts: All ranks' counts.
        factor: Factor on the gradients of rows, on their way to the owner.
    """
    values_from = [row[group.rank] for row in counts.values]
    parts_from = [row[group.rank] for row in counts.parts]
    rows = send(group, routed.rows, routed.values_to, values_from)
    bounds, weights = None, None
    if counts.bags:
        lengths = torch.ones_like(routed.rows) if routed.lengths is None else routed.lengths
        received = send(group, lengths, routed.parts_to, parts_from).wait()
        bounds = F.pad(received.cumsum(0), (1, 0))
    if routed.weights is not None:
        args = (routed.weights, group, routed.values_to, values_from, factor)
        weights = SendWeights.apply(*args)  # type: ignore[no-untyped-call]
    layout = RowLayout(("rows",), (0,), (len(weight),), ("sum" if weights is None else "weighted",), (0,))
    pooled = rowgrad.lookup(weight, rows.wait(), bounds, weights, layout).squeeze(1)
    link = Link(group, routed, parts_from, factor)
    buffer = SendPooled.apply(pooled, link)  # type: ignore[no-untyped-call]
    return lambda: ReceivePooled.apply(buffer, link)  # type: ignore[no-untyped-call]


class SendWeights(torch.autograd.Function):
    """Value weights to the owners; their gradients come back."""

    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, group: Groups, sent: list[int], received: list[int], factor: float
    ) -> Tensor:
        """Return the N' weights that this rank received."""
        ctx.group, ctx.sent, ctx.received, ctx.factor = group, sent, received, factor
        return send(group, weights, sent, received).wait()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Return the gradients; owners saw the bags' gradients times a factor, which is for rows only."""
        back = send(ctx.group, gradient, ctx.received, ctx.sent).wait()
        return back / ctx.factor, None, None, None, None


@dataclass
class Link:
    """What `SendPooled` and `ReceivePooled` share, in both passes.

    Args:
        group: The process groups.
        routed: Where this rank's ids went.
        owned: Parts that this rank pools for each rank.
        factor: Factor on the gradients of rows.
    """

    group: Groups
    routed: Routed
    owned: list[int]
    factor: float
    forward: Transfer = field(init=False)
    backward: Transfer = field(init=False)

    def __post_init__(self) -> None:
        self.forward, self.backward = Transfer(self.group), Transfer(self.group)

    def combine(self, parts: Tensor) -> Tensor:
        """Return B x F x D sums of the K x D parts of each bag."""
        features, samples = self.routed.shape
        bag, scale = self.routed.bag, self.routed.scale
        if self.routed.lengths is None:  # every bag is one part
            place = torch.empty_like(bag)
            place[bag] = torch.arange(len(bag), device=bag.device)
            index = place.view(features, samples).t().reshape(-1)  # B*F
            return parts.index_select(0, index).view(samples, features, -1)
        offsets = F.pad(bag.bincount(minlength=features * samples).cumsum(0), (1, 0))
        order = bag.argsort(stable=True)
        flat = F.embedding_bag(order, parts, offsets, mode="sum", include_last_offset=True)  # F*B x D
        flat = flat if scale is None else flat * scale[:, None]
        return flat.view(features, samples, -1).transpose(0, 1)

    def spread(self, gradient: Tensor) -> Tensor:
        """Return the K x D gradients of the parts from the B x F x D ones of the bags, times the factor.

        Each rank's loss is the mean over its own samples, and dense gradients are averaged over ranks. Those of rows
        add up at their owner, and need the factor 1/R: without it tables would learn R times faster than the rest.
        """
        features, samples = self.routed.shape
        bag, scale = self.routed.bag, self.routed.scale
        flat = gradient.float().transpose(0, 1).reshape(features * samples, -1)
        return flat.index_select(0, bag) * (self.factor if scale is None else self.factor * scale[bag][:, None])


class SendPooled(torch.autograd.Function):
    """Pooled rows to those who asked; does not wait."""

    @staticmethod
    def forward(ctx: Any, pooled: Tensor, link: Link) -> Tensor:
        """Return a buffer, not filled yet, for the K x D parts that this rank asked for."""
        ctx.link = link
        return link.forward.launch(pooled, link.owned, link.routed.parts_to)

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
    def forward(ctx: Any, buffer: Tensor, link: Link) -> Tensor:
        """Return B x F x D pooled rows."""
        ctx.link = link
        return link.combine(link.forward.wait())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Send the gradients on their way; the tensor returned only tells autograd to go on."""
        link = ctx.link
        parts = link.spread(gradient)
        link.backward.launch(parts, link.routed.parts_to, link.owned)
        return parts, None
