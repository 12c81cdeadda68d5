"""The destinations that an event's is told from: all of them, or those of the events near it and random ones."""

from __future__ import annotations

import math
from ctypes import c_int64
from dataclasses import dataclass

import torch
from torch import Tensor

from recloom.data.streams.stream import EventStream
from recloom.data.streams.window import EventWindow
from recloom_edge import plain
from recloom_edge.kernels import address, library


@dataclass(frozen=True)
class Groups:
    """A window's events in G groups, each with candidates of its own: T in all, of the window's M.

    Args:
        size: Events of a group; the last one may have fewer.
        starts: G + 1, int32: where each group's candidates begin, and their end.
        chosen: T, int32: which of the M each is.
        place: G x M, int32: where each of the M is among a group's candidates; -1: nowhere.
    """

    size: int
    starts: Tensor
    chosen: Tensor
    place: Tensor

    def of(self, events: Tensor) -> Tensor:
        """Return the groups of events."""
        return torch.div(events, self.size, rounding_mode="floor")

    def bounds(self, events: int) -> Tensor:
        """Return G + 1, int32: where each group's events begin, and their end."""
        return (torch.arange(len(self.starts), dtype=torch.int32) * self.size).clamp(max=events)


@dataclass(frozen=True)
class Candidates:
    """M destinations that scores are wanted of.

    Args:
        ids: M destinations, each once, int64.
        place: By destination, int32: its place among them; -1: it is none.
        correction: M logarithms of how likely each is to be among them, or T with groups; None: they are all
            destinations.
        groups: Which of them each event is told from; None: all.
    """

    ids: Tensor
    place: Tensor
    correction: Tensor | None = None
    groups: Groups | None = None

    @classmethod
    def of(
        cls, ids: Tensor, num_destinations: int, correction: Tensor | None = None, groups: Groups | None = None
    ) -> Candidates:
        """Return the candidates `ids`."""
        place = torch.full((num_destinations,), -1, dtype=torch.int32, device=ids.device)
        place[ids] = torch.arange(len(ids), dtype=torch.int32, device=ids.device)
        return cls(ids, place, correction, groups)

    @classmethod
    def every(cls, num_destinations: int, device: torch.device) -> Candidates:
        """Return all destinations."""
        return cls.of(torch.arange(num_destinations, device=device), num_destinations)

    @classmethod
    def drawn(cls, window: EventWindow, popularity: Tensor, most: int, group: int = 0) -> Candidates:
        """Return all destinations if there are at most `most`; else as many for each group: of its events, and random.

        Args:
            window: The window.
            popularity: By destination, its share of the training events.
            most: Largest number of candidates of a group, if its events have no more destinations.
            group: Events of a group; 0: all of the window.
        """
        size, device, events = len(popularity), popularity.device, len(window)
        if size <= most:
            return cls.every(size, device)
        group = group or max(events, 1)
        random = torch.randint(size, (-(-events // group), most), dtype=torch.int32)
        destination = window.destination.cpu()
        found = plain.candidates if library("window") is None else _candidates
        *tables, wanted = (x.to(device) for x in found(destination, size, group, most, random))
        place, ids, chosen, starts = tables
        counts, lengths = starts.diff(), torch.full_like(wanted, group)
        lengths[-1] = events - (len(wanted) - 1) * group
        seen = lengths.repeat_interleave(counts) * torch.log1p(-popularity[ids[chosen]])
        drawn = wanted.repeat_interleave(counts) * math.log1p(-1 / size)
        correction = torch.log1p(-torch.exp(seen + drawn))
        if len(wanted) == 1:
            return cls(ids, place, correction)
        among = torch.full((len(wanted), len(ids)), -1, dtype=torch.int32, device=device)
        owner = torch.arange(len(wanted), device=device).repeat_interleave(counts)
        among[owner, chosen.long()] = torch.arange(len(chosen), dtype=torch.int32, device=device) - starts[owner]
        return cls(ids, place, correction, Groups(group, starts, chosen, among))


def _candidates(destination: Tensor, size: int, group: int, most: int, random: Tensor) -> tuple[Tensor, ...]:
    """Return by destination its place among the candidates, these, those chosen by groups, starts, numbers drawn."""
    compiled, events, groups = library("window"), len(destination), len(random)
    assert compiled is not None
    compiled.edge_candidates.restype = c_int64
    place = torch.full((size,), -1, dtype=torch.int32)
    mark, ids, chosen = (torch.empty(events + random.numel(), dtype=torch.int32) for _ in range(3))
    starts, wanted = (torch.empty(count, dtype=torch.int32) for count in (groups + 1, groups))
    tensors = (random, place, mark, ids, chosen, starts, wanted)
    sizes = map(c_int64, (group, most))
    known = compiled.edge_candidates(c_int64(events), address(destination), *sizes, *map(address, tensors))
    return place, ids[:known].long(), chosen[: int(starts[-1])], starts, wanted


def popularity(training: EventStream) -> Tensor:
    """Return each destination's share of the training events, of which it is given half a one more."""
    counts = torch.bincount(training.destination, minlength=training.num_destinations) + 0.5
    return counts / counts.sum()
