"""The newest events of every node: what temporal neighbours it has, at a window's start or before each event."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recloom.data.streams.window import EventWindow
from recloom.errors import RecloomError


@dataclass(frozen=True)
class Near:
    """The newest K events of n nodes, newest first.

    Args:
        node: n x K other ends; -1: there is none.
        at: n x K times in ticks.
        told: n x K x F features.
    """

    node: Tensor
    at: Tensor
    told: Tensor


class RecentNeighbours(nn.Module):
    """The newest K events of every node, as buffers.

    Args:
        num_nodes: Number of nodes.
        offset: What brings a destination's number to its node.
        count: K.
        features: F, the number of an event's features.
    """

    def __init__(self, num_nodes: int, offset: int, count: int, features: int) -> None:
        super().__init__()
        self.offset, self.count = offset, count
        self.node: Tensor
        self.at: Tensor
        self.told: Tensor
        self.register_buffer("node", torch.full((num_nodes, count), -1, dtype=torch.int64))
        self.register_buffer("at", torch.zeros(num_nodes, count, dtype=torch.int64))
        self.register_buffer("told", torch.zeros(num_nodes, count, features))

    def clear(self) -> None:
        """Forget all events."""
        self.node.fill_(-1)
        self.at.zero_()
        self.told.zero_()

    def of(self, nodes: Tensor) -> Near:
        """Return what n nodes have now."""
        return Near(self.node[nodes], self.at[nodes], self.told[nodes])

    @torch.no_grad()
    def pass_by(self, window: EventWindow, wanted: bool = True) -> Near | None:
        """Take the window's events in; if wanted, return what their sources have before each of them."""
        ends = torch.stack([window.source.long(), window.destination.long() + self.offset], dim=1)
        order = ends.flatten().argsort(stable=True)
        node, other = ends.flatten()[order], ends.flip(1).flatten()[order]
        features = self.told.new_zeros(len(window), 0) if window.features is None else window.features
        fresh = Near(other, window.time[order // 2], features[order // 2])
        nodes, counts = node.unique_consecutive(return_counts=True)
        last = counts.cumsum(0)
        rank = torch.arange(len(node), device=node.device) - (last - counts).repeat_interleave(counts)
        found = None
        if wanted:
            place = torch.empty_like(order)
            place[order] = torch.arange(len(order), device=order.device)
            at = place[::2]  # where the events' sources are: before their destinations, should these be the same
            found = self._merged(node[at], fresh, at, rank[at])
        self.node[nodes], self.at[nodes], self.told[nodes] = vars(self._merged(nodes, fresh, last, counts)).values()
        return found

    def _merged(self, nodes: Tensor, fresh: Near, stop: Tensor, counts: Tensor) -> Near:
        """Return what nodes have after `counts` fresh events, those before the places `stop`."""
        column = torch.arange(self.count, device=nodes.device)
        new = (stop[:, None] - 1 - column).clamp(min=0)
        old = (column - counts[:, None]).clamp(min=0)
        is_new = column < counts[:, None]
        near = self.of(nodes)
        return Near(
            torch.where(is_new, fresh.node[new], near.node.gather(1, old)),
            torch.where(is_new, fresh.at[new], near.at.gather(1, old)),
            torch.where(is_new[..., None], fresh.told[new], near.told.take_along_dim(old[..., None], 1)),
        )


def source_messages(width: int, static: int, features: int) -> nn.Module:
    """Return `attention.SourceMessages`, which needs DGL."""
    try:
        from recloom_edge.attention import SourceMessages
    except (ImportError, OSError) as error:  # DGL raises the latter where a library of its own is missing
        hint = "Try: pip install 'recloom[edge]' (DGL 1.1.3 or a later 1.x), or leave neighbours at 0."
        raise RecloomError(f"EDGE with neighbours cannot be built: {error}", hint) from error
    return SourceMessages(width, static, features)
