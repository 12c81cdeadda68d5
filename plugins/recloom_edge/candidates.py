"""The destinations that an event's is told from: all of them, or those of the window and random ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recloom.data.streams.stream import EventStream
from recloom.data.streams.window import EventWindow


@dataclass(frozen=True)
class Candidates:
    """M destinations that scores are wanted of.

    Args:
        ids: M destinations, each once, int64.
        place: By destination, int32: its place among them; -1: it is none.
        correction: M logarithms of how likely each is to be among them; None: they are all destinations.
    """

    ids: Tensor
    place: Tensor
    correction: Tensor | None = None

    @classmethod
    def of(cls, ids: Tensor, num_destinations: int, correction: Tensor | None = None) -> Candidates:
        """Return the candidates `ids`."""
        place = torch.full((num_destinations,), -1, dtype=torch.int32, device=ids.device)
        place[ids] = torch.arange(len(ids), dtype=torch.int32, device=ids.device)
        return cls(ids, place, correction)

    @classmethod
    def every(cls, num_destinations: int, device: torch.device) -> Candidates:
        """Return all destinations."""
        return cls.of(torch.arange(num_destinations, device=device), num_destinations)

    @classmethod
    def drawn(cls, window: EventWindow, popularity: Tensor, most: int) -> Candidates:
        """Return all destinations if there are at most `most`; else about as many, of the window and random ones.

        Args:
            window: The window.
            popularity: By destination, its share of the training events.
            most: Largest number of candidates, if the window has no more destinations.
        """
        size, device = len(popularity), popularity.device
        if size <= most:
            return cls.every(size, device)
        chosen = torch.zeros(size, dtype=torch.bool, device=device)
        chosen[window.destination.long()] = True
        count = max(most - int(chosen.sum()), 1)
        chosen[torch.randint(size, (count,), device=device)] = True
        ids = chosen.nonzero().squeeze(1)
        missed = (1 - popularity[ids]) ** len(window) * (1 - 1 / size) ** count
        return cls.of(ids, size, torch.log1p(-missed))


def popularity(training: EventStream) -> Tensor:
    """Return each destination's share of the training events, of which it is given half a one more."""
    counts = torch.bincount(training.destination, minlength=training.num_destinations) + 0.5
    return counts / counts.sum()
