"""Calls of the compiled kernels (events.c, recurrence.c); where they cannot be compiled, plain.py does the same."""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from recloom import native
from recloom_edge import plain


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """Return the compiled library "events" or "recurrence", or None where there is no compiler."""
    found = native.load(f"{name}.c", Path(__file__).parent)
    if found is not None and name == "events":
        found.edge_critical.restype = c_int64
        found.edge_plan.restype = c_int64
    return found


def address(tensor: Tensor | None) -> c_void_p:
    """Return the address of a contiguous CPU tensor's values."""
    if tensor is None:
        return c_void_p(None)
    assert tensor.is_contiguous()
    assert tensor.device.type == "cpu"
    return c_void_p(tensor.data_ptr())


@dataclass(frozen=True)
class Plan:
    """What a window of n events computes from what. Rows: see events.c, edge_plan.

    Args:
        nodes: R nodes that have a row at the start: 2n + i is the row of nodes[i].
        place: n x 2 indices in `nodes`, of source and destination.
        read: n x 2 rows that an update reads, of source and destination.
        seen: n x 2 rows of the newest states before the event.
        last: R rows of the nodes' states after the window.
        order: The events by level.
        bounds: Where each level begins in `order`, and its end; one more than there are levels.
    """

    nodes: Tensor
    place: Tensor
    read: Tensor
    seen: Tensor
    last: Tensor
    order: Tensor
    bounds: Tensor

    @property
    def levels(self) -> int:
        """Number of levels: sequential steps."""
        return len(self.bounds) - 1


def levels(
    source: Tensor, destination: Tensor, offset: int, nodes: Tensor, window: int, state: Tensor, out: Tensor | None
) -> None:
    """Sweep n events; see events.c, edge_levels. `nodes` is num_nodes x 2 int32: level, and -1 or 0."""
    compiled = library("events")
    if compiled is None:
        plain.levels(source, destination, offset, nodes, window, state, out)
        return
    compiled.edge_levels(
        c_int64(len(source)),
        *map(address, (source, destination)),
        c_int64(offset),
        address(nodes),
        c_int64(window),
        address(state),
        address(out),
    )


def critical_path(
    source: Tensor, destination: Tensor, offset: int, keep: Tensor, segments: int = 1
) -> tuple[int, Tensor]:
    """Return the length of a longest path and how many of its links lead through each node that is kept.

    Args:
        source: n sources, int32.
        destination: n destinations, int32.
        offset: What brings a destination's number to its node.
        keep: By node, bool: whether it is not decoupled.
        segments: Decoupled nodes are read as they are when each of so many segments begins; 1: they depend on nothing.

    Returns:
        Events of the path, and links by node, int64.
    """
    compiled, count = library("events"), len(keep)
    carried = torch.zeros(count, dtype=torch.int64)
    if compiled is None:
        return plain.critical_path(source, destination, offset, keep, segments, carried), carried
    nodes, newest = level_table(~keep), torch.tensor([[0, -1]], dtype=torch.int32).repeat(count, 1)
    event, before, through = (torch.full((size,), -1, dtype=torch.int32) for size in (count, len(source), len(source)))
    longest = compiled.edge_critical(
        c_int64(len(source)),
        *map(address, (source, destination)),
        *map(c_int64, (offset, count, segments)),
        *map(address, (nodes, event, newest, before, through, carried)),
    )
    return int(longest), carried


def level_table(decoupled: Tensor) -> Tensor:
    """Return the table of levels that `levels` works on, at its start, for a mask of decoupled nodes."""
    return torch.stack([torch.zeros_like(decoupled, dtype=torch.int32), decoupled.to(torch.int32) - 1], dim=1)


def plan(
    source: Tensor, destination: Tensor, offset: int, cut: Tensor | None, slot: Tensor, given: Tensor | None = None
) -> Plan:
    """Return the plan of a window of n events.

    Args:
        source: n sources, int32.
        destination: n destinations, int32.
        offset: What brings a destination's number to its node.
        cut: By node, bool: whether it is decoupled; None: none is.
        slot: By node, int32, filled with -1; scratch, left as it was.
        given: Nodes that are to have a row in any case, int32.
    """
    compiled, n = library("events"), len(source)
    more = 0 if given is None else len(given)
    if compiled is None:
        return Plan(*plain.plan(source, destination, offset, cut, given))
    nodes, last = (torch.empty(2 * n + more, dtype=torch.int32) for _ in range(2))
    if given is not None:
        nodes[:more] = given
    place, read, seen = (torch.empty(n, 2, dtype=torch.int32) for _ in range(3))
    level, order = (torch.empty(n, dtype=torch.int32) for _ in range(2))
    bounds, counts = torch.empty(n + 2, dtype=torch.int32), torch.empty(1, dtype=torch.int64)
    known = compiled.edge_plan(
        c_int64(n),
        *map(address, (source, destination)),
        c_int64(offset),
        address(cut),
        address(slot),
        c_int64(more),
        *map(address, (nodes, place, read, seen, last, level, order, bounds, counts)),
    )
    return Plan(nodes[:known], place, read, seen, last[:known], order, bounds[: int(counts[0]) + 1])


def history(
    source: Tensor, destination: Tensor, now: Tensor, offset: int, time: Tensor, recent: Tensor, when: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gaps (n x 2), recent destinations (n x K) and their ages (n x K), in ticks; -1: there is none.

    `time` (by node), `recent` and `when` (by node, K each) are brought up to date; see events.c, edge_history.
    """
    compiled, n, width = library("events"), len(source), recent.shape[1]
    gaps, ages = torch.empty(n, 2, dtype=torch.int64), torch.empty(n, width, dtype=torch.int64)
    found = torch.empty(n, width, dtype=torch.int32)
    if compiled is None:
        plain.history(source, destination, now, offset, time, recent, when, gaps, found, ages)
        return gaps, found, ages
    compiled.edge_history(
        c_int64(n),
        *map(address, (source, destination, now)),
        c_int64(offset),
        c_int64(width),
        *map(address, (time, recent, when, gaps, found, ages)),
    )
    return gaps, found, ages


def recent_places(
    source: Tensor, destination: Tensor, asked: Tensor, head: Tensor, follow: Tensor, item: Tensor, used: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the places of n x A asked destinations in the sources' lists, and the lists' lengths; see events.c."""
    compiled = library("events")
    places, length = torch.empty_like(asked), torch.empty(len(asked), dtype=torch.int32)
    lists = (head, follow, item, used)
    if compiled is None:
        plain.recent_places(source, destination, asked, *lists, places, length)
        return places, length
    compiled.edge_recent(
        c_int64(len(source)),
        *map(address, (source, destination)),
        c_int64(asked.shape[1]),
        *map(address, (asked.contiguous(), *lists, places, length)),
    )
    return places, length
