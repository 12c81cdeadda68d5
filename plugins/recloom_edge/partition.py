"""How many steps a stream takes one after another, and which nodes to decouple so that it takes fewer.

An event can be computed once those before it at both its ends are: its level is one more than the higher of theirs.
The number of levels is that of sequential steps, and events over levels is the parallelism. JODIE's t-batches are the
levels, begun anew in every window. A decoupled node depends on nothing: what others read of it is not computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recloom.data.streams.stream import EventStream
from recloom.errors import RecloomError
from recloom_edge import kernels

CHUNK = 1 << 23
METHODS = ("activity", "greedy")


@dataclass(frozen=True)
class Partition:
    """What a sweep over a stream found.

    Args:
        events: Number of events.
        steps: Number of levels, over all windows.
        decoupled: Number of decoupled nodes.
        dependencies: Number of links from an event to the one before it at one of its ends.
        cut: How many of them lead through a decoupled node.
    """

    events: int
    steps: int
    decoupled: int
    dependencies: int
    cut: int

    @property
    def parallelism(self) -> float:
        """Mean number of events of a step."""
        return self.events / max(self.steps, 1)

    @property
    def cut_share(self) -> float:
        """Share of the dependencies that were cut."""
        return self.cut / max(self.dependencies, 1)


class LevelSweep:
    """Levels of events as they come: `add` them piece by piece, in order of time.

    Args:
        num_nodes: Number of nodes.
        offset: What brings a destination's number to its node.
        decoupled: By node, bool; None: none is.
        window: Levels begin anew every so many events, as JODIE's t-batches do; 0: never.
    """

    def __init__(self, num_nodes: int, offset: int, decoupled: Tensor | None = None, window: int = 0) -> None:
        cut = torch.zeros(num_nodes, dtype=torch.bool) if decoupled is None else decoupled
        self.offset, self.window = offset, window
        self._nodes = kernels.level_table(cut)
        self._state = torch.zeros(3, dtype=torch.int64)

    @property
    def steps(self) -> int:
        """Number of levels so far."""
        return int(self._state[2])

    def add(self, source: Tensor, destination: Tensor, levels: bool = False) -> Tensor | None:
        """Sweep n events; return their levels, from 1, if they are wanted."""
        out = torch.empty(len(source), dtype=torch.int32) if levels else None
        kernels.levels(source, destination, self.offset, self._nodes, self.window, self._state, out)
        return out


def event_levels(stream: EventStream, decoupled: Tensor | None = None, window: int = 0) -> Tensor:
    """Return the level of every event, int32, from 1."""
    sweep = LevelSweep(stream.num_nodes, stream.node_offset, decoupled, window)
    found = sweep.add(stream.source, stream.destination, levels=True)
    assert found is not None
    return found


def waiting_steps(stream: EventStream, decoupled: Tensor, segments: int) -> int:
    """Return the number of sequential steps where decoupled nodes are read as their states at a segment's start.

    Such a state waits for the node's last event in earlier segments: `partition` counts as if it were known. With one
    segment the two are the same.

    Args:
        stream: n events.
        decoupled: By node, bool.
        segments: As many segments of as many events each.
    """
    return kernels.critical_path(stream.source, stream.destination, stream.node_offset, ~decoupled, segments)[0]


def partition(stream: EventStream, decoupled: Tensor | None = None, window: int = 0) -> Partition:
    """Sweep a stream once, of which a chunk at a time need be in memory."""
    sweep = LevelSweep(stream.num_nodes, stream.node_offset, decoupled, window)
    for start in range(0, len(stream), CHUNK):
        part = slice(start, start + CHUNK)
        sweep.add(stream.source[part], stream.destination[part])
    links = (activity(stream) - 1).clamp_(min=0)
    cut = 0 if decoupled is None else int(links[decoupled].sum())
    count = 0 if decoupled is None else int(decoupled.sum())
    return Partition(len(stream), sweep.steps, count, int(links.sum()), cut)


def activity(stream: EventStream) -> Tensor:
    """Return the number of events of every node."""
    counts = torch.zeros(stream.num_nodes, dtype=torch.int64)
    for start in range(0, len(stream), CHUNK):
        part = slice(start, start + CHUNK)
        counts[: stream.num_sources] += torch.bincount(stream.source[part], minlength=stream.num_sources)
        there = counts[stream.node_offset :]
        there += torch.bincount(stream.destination[part], minlength=stream.num_destinations)
    return counts


def by_activity(stream: EventStream, count: int) -> Tensor:
    """Return the mask of the `count` nodes with the most events."""
    mask = torch.zeros(stream.num_nodes, dtype=torch.bool)
    mask[activity(stream).argsort(descending=True, stable=True)[:count]] = True
    return mask


def greedy(stream: EventStream, count: int, budget: int = 0, portion: float = 0.05, segments: int = 1) -> Tensor:
    """Return the mask of up to `count` nodes, each of those that carry a longest path most when it is chosen.

    Args:
        stream: The stream.
        count: Most nodes to decouple.
        budget: Stop once the longest path is not longer than this.
        portion: Of the nodes that are still to be chosen, so many may be taken from one path: those that carry at
            least half of what its first one does.
        segments: Paths wait for the states of decoupled nodes at the start of so many segments, as in `waiting_steps`.
    """
    mask = torch.zeros(stream.num_nodes, dtype=torch.bool)
    left = count
    while left > 0:
        longest, carried = kernels.critical_path(stream.source, stream.destination, stream.node_offset, ~mask, segments)
        if longest <= budget or not bool(carried.any()):
            break
        values, nodes = carried.topk(max(1, min(left, int(left * portion), int((carried > 0).sum()))))
        chosen = nodes[(values > 0) & (2 * values >= values[0])]
        mask[chosen] = True
        left -= len(chosen)
    return mask


def within_budget(stream: EventStream, steps: int, method: str = "activity", segments: int = 1) -> Tensor:
    """Return a mask with which `waiting_steps` is at most `steps`: of few nodes, the smallest by activity.

    Raises:
        RecloomError: No choice of nodes does that.
    """
    if steps < 1:
        raise RecloomError(f"a budget of {steps} steps", "An event is a step: it takes at least 1.")
    least = waiting_steps(stream, torch.ones(stream.num_nodes, dtype=torch.bool), segments)
    if steps < least:
        raise RecloomError(
            f"a budget of {steps} steps",
            f"With all nodes decoupled the longest path still waits for {segments} segments to begin, and has {least} "
            "events: use fewer segments, or a larger budget.",
        )
    if method == "greedy":
        return greedy(stream, stream.num_nodes, steps, 0.01, segments)
    low, high = 0, stream.num_nodes
    ranked = activity(stream).argsort(descending=True, stable=True)
    while low < high:
        middle = (low + high) // 2
        mask = torch.zeros(stream.num_nodes, dtype=torch.bool)
        mask[ranked[:middle]] = True
        if waiting_steps(stream, mask, segments) <= steps:
            high = middle
        else:
            low = middle + 1
    mask = torch.zeros(stream.num_nodes, dtype=torch.bool)
    mask[ranked[:low]] = True
    return mask


def choose(stream: EventStream, method: str, share: float, budget: int = 0, segments: int = 1) -> Tensor:
    """Return the decoupled nodes as a mask.

    Args:
        stream: The events to look at: those of training.
        method: "activity" or "greedy".
        share: Share of the nodes that have events to decouple.
        budget: If it is not 0, `share` does not count: as few nodes as bring the longest path to this length.
        segments: Segments whose beginning decoupled nodes are read at, for paths that wait for it; 1: none waits.
    """
    if method not in METHODS:
        raise RecloomError(f"decoupled nodes are not chosen by {method!r}", f"There are: {', '.join(METHODS)}.")
    if budget:
        return within_budget(stream, budget, method, segments)
    count = round(share * int((activity(stream) > 0).sum()))
    return by_activity(stream, count) if method == "activity" else greedy(stream, count, segments=segments)
