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


@dataclass(frozen=True)
class _Line:
    """The 2E ends of a window's events, by node and then by time.

    Args:
        key: node x rows + place in the window, in order.
        node: Their nodes.
        fresh: What each is told: the other end, time, features.
        rows: 2E.
    """

    key: Tensor
    node: Tensor
    fresh: Near
    rows: int


def _line(window: EventWindow, offset: int, told: Tensor) -> _Line:
    ends = torch.stack([window.source.long(), window.destination.long() + offset], dim=1)
    rows = ends.numel()
    key, order = (ends.flatten() * rows + torch.arange(rows, device=ends.device)).sort()
    features = told.new_zeros(len(window), 0) if window.features is None else window.features
    fresh = Near(ends.flip(1).flatten()[order], window.time[order // 2], features[order // 2])
    return _Line(key, ends.flatten()[order], fresh, rows)


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
    def before(self, window: EventWindow, event: Tensor, node: Tensor) -> Near:
        """Return what n nodes have before n events of a window (E: after its last one) that was not taken in yet."""
        return self._before(_line(window, self.offset, self.told), event, node)

    @torch.no_grad()
    def pass_by(self, window: EventWindow, wanted: bool = True) -> Near | None:
        """Take the window's events in; if wanted, return what their sources have before each of them."""
        line = _line(window, self.offset, self.told)
        source = window.source.long()
        found = self._before(line, torch.arange(len(window), device=source.device), source) if wanted else None
        nodes, counts = line.node.unique_consecutive(return_counts=True)
        merged = self._merged(nodes, line.fresh, counts.cumsum(0), counts)
        self.node[nodes], self.at[nodes], self.told[nodes] = vars(merged).values()
        return found

    def _before(self, line: _Line, event: Tensor, node: Tensor) -> Near:
        first = torch.searchsorted(line.key, node * line.rows)
        stop = torch.searchsorted(line.key, node * line.rows + 2 * event)
        return self._merged(node, line.fresh, stop, stop - first)

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
