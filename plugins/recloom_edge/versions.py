"""Which version of a node's state is its newest one before an event, for any nodes and events of a window."""

from __future__ import annotations

import torch
from torch import Tensor

from recloom.data.streams.window import EventWindow
from recloom_edge.kernels import Plan


def newest_rows(plan: Plan, window: EventWindow, offset: int, event: Tensor, node: Tensor) -> Tensor:
    """Return the row of each node's newest state before an event; rows are those of `recurrence.roll`.

    Args:
        plan: The window's plan.
        window: E events.
        offset: What brings a destination's number to its node.
        event: n events of the window, int64.
        node: n nodes, int64, each with a row at the window's start.
    """
    rows = 2 * len(window)
    ends = torch.stack([window.source.long(), window.destination.long() + offset], dim=1).flatten()
    made = (ends * rows + torch.arange(rows, device=ends.device)).sort().values  # by node, then by row
    found = made[(torch.searchsorted(made, node * rows + 2 * event) - 1).clamp(min=0)]
    starts, order = plan.nodes.to(ends.device).long().sort()
    start = rows + order[torch.searchsorted(starts, node).clamp(max=len(order) - 1)]
    return torch.where((found // rows == node) & (found % rows < 2 * event), found % rows, start)
