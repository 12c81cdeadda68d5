"""What scores are to find: where events' destinations and their sources' recent ones are among the candidates."""

from __future__ import annotations

from ctypes import c_int64
from dataclasses import dataclass

import torch
from torch import Tensor

from recloom.data.streams.window import EventWindow
from recloom_edge.candidates import Candidates, Groups
from recloom_edge.kernels import address, library


@dataclass(frozen=True)
class Targets:
    """What is looked for among M candidates, which are the first nodes of a window's plan.

    Args:
        changed: E x C, int32: the candidates whose states an event makes, of its last C ends; -1: none.
        places: E x K, int32: where the source's recent destinations are among the event's candidates; -1: nowhere.
        target: E, int32: where the destination is.
        correction: See `Candidates`; subtracted from scores.
        groups: See `Candidates`.
    """

    changed: Tensor
    places: Tensor
    target: Tensor
    correction: Tensor | None = None
    groups: Groups | None = None

    def corrections(self, events: Tensor) -> Tensor | None:
        """Return what is subtracted from n events' scores, n x M or M: infinite for what is no candidate of theirs."""
        if self.groups is None or self.correction is None:
            return self.correction
        groups = self.groups
        table = torch.full(groups.place.shape, torch.inf, device=self.correction.device)
        group = torch.arange(len(table), device=table.device).repeat_interleave(groups.starts.long().diff())
        table[group, groups.chosen.long()] = self.correction
        return table[groups.of(events)]


def find_targets(window: EventWindow, recent: Tensor, candidates: Candidates, bipartite: bool) -> Targets:
    """Return what is looked for.

    Args:
        window: E events.
        recent: E x K last distinct destinations of the sources; -1: none.
        candidates: The candidates.
        bipartite: Whether an event makes no new state of a destination but its own.
    """
    groups, ends = candidates.groups, [window.destination] if bipartite else [window.source, window.destination]
    compiled = library("window")
    if compiled is not None and recent.device.type == "cpu":
        places, target = torch.empty_like(recent), torch.empty_like(window.destination)
        changed = torch.empty(len(recent), len(ends), dtype=torch.int32)
        sizes = (*recent.shape, len(ends), groups.size if groups else 1, len(candidates.ids))
        tensors = (window.source, window.destination, recent, candidates.place, groups.place if groups else None)
        compiled.edge_targets(*map(c_int64, sizes), *map(address, (*tensors, places, target, changed)))
        return Targets(changed, places, target, candidates.correction, groups)
    places = torch.where(recent >= 0, candidates.place[recent.clamp(min=0).long()], -1)
    if groups:
        group = groups.of(torch.arange(len(recent), device=recent.device))[:, None]
        places = torch.where(groups.place[group, places.clamp(min=0).long()] >= 0, places, -1)
    changed = candidates.place[torch.stack(ends, dim=1).long()]
    return Targets(changed, places, candidates.place[window.destination.long()], candidates.correction, groups)
