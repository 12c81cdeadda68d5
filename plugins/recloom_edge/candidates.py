"""The destinations that an event's is told from: all of them, or those of the events near it and random ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recloom.data.streams.stream import EventStream
from recloom.data.streams.window import EventWindow


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
        number = torch.div(torch.arange(events, device=device), group, rounding_mode="floor")
        count = -(-events // group)
        keys = (number * size + window.destination.long()).unique()
        wanted = (most - torch.bincount(torch.div(keys, size, rounding_mode="floor"), minlength=count)).clamp(min=1)
        more = torch.arange(count, device=device).repeat_interleave(wanted)
        keys = torch.cat([keys, more * size + torch.randint(size, more.shape, device=device)]).unique()
        owner, chosen = torch.div(keys, size, rounding_mode="floor"), keys % size
        lengths = torch.full((count,), group, device=device)
        lengths[-1] = events - (count - 1) * group
        missed = (1 - popularity[chosen]) ** lengths[owner] * (1 - 1 / size) ** wanted[owner]
        correction = torch.log1p(-missed)
        if count == 1:
            return cls.of(chosen, size, correction)
        ids, chosen = chosen.unique(return_inverse=True)
        starts = torch.searchsorted(owner, torch.arange(count + 1, device=device))
        place = torch.full((count, len(ids)), -1, dtype=torch.int32, device=device)
        place[owner, chosen] = (torch.arange(len(keys), device=device) - starts[owner]).int()
        return cls.of(ids, size, correction, Groups(group, starts.int(), chosen.int(), place))


def popularity(training: EventStream) -> Tensor:
    """Return each destination's share of the training events, of which it is given half a one more."""
    counts = torch.bincount(training.destination, minlength=training.num_destinations) + 0.5
    return counts / counts.sum()
