"""One evaluator for all models: it gets the score of every destination for each event, made before the event.

Ranks are among all destinations, ties averaged. Average precision and AUC compare the destination with another one of
the same event: at random, one where the source was before (historical), or one where it goes only outside training
(inductive; Poursafaei et al. 2022). Beside every result stand two that know nothing but counts: popularity (the number
of events so far) and most recent (the source's last destinations, newest first).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from recloom.data.streams.stream import EventStream
from recloom.data.streams.window import EventWindow
from recloom_edge import kernels

NEGATIVES = ("random", "historical", "inductive")
_MET = 1e9


@dataclass(frozen=True)
class Protocol:
    """What is evaluated.

    Args:
        k: Recall is that of the first k.
        seed: Seed of the negatives.
    """

    k: int = 10
    seed: int = 0


class Pairs:
    """The distinct destinations of each source in some events, for drawing from.

    Args:
        source: Sources.
        destination: Destinations.
        num_destinations: Number of destinations.
        without: Pairs, as source x num_destinations + destination in order, that do not count.
    """

    def __init__(
        self,
        source: NDArray[np.int32],
        destination: NDArray[np.int32],
        num_destinations: int,
        without: NDArray[np.int64] | None = None,
    ) -> None:
        keys = np.unique(source.astype(np.int64) * num_destinations + destination)
        self.keys = keys if without is None else np.setdiff1d(keys, without, assume_unique=True)
        self.size = num_destinations

    def draw(
        self, random: np.random.Generator, source: NDArray[np.int64], other: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return for each source one of its destinations that is not `other`; -1 where there is none."""
        first = np.searchsorted(self.keys, source * self.size)
        count = np.searchsorted(self.keys, (source + 1) * self.size) - first
        place = np.searchsorted(self.keys, source * self.size + other)
        taken = place < len(self.keys)
        taken[taken] = self.keys[place[taken]] == (source * self.size + other)[taken]
        free = count - taken
        drawn = first + (random.random(len(source)) * np.maximum(free, 1)).astype(np.int64)
        drawn += taken & (drawn >= place)
        found = np.full(len(source), -1, np.int64)
        found[free > 0] = self.keys[drawn[free > 0]] % self.size
        return found


class Evaluation:
    """Collects the scores of a span of a stream's events, window by window.

    Args:
        stream: The whole stream.
        training: What models were trained on: nodes that it has not are new.
        split: "val" or "test".
        protocol: What is evaluated.
    """

    def __init__(
        self, stream: EventStream, training: EventStream, split: str = "test", protocol: Protocol | None = None
    ) -> None:
        self.protocol = protocol or Protocol()
        self.size, self.start = stream.num_destinations, stream.span(split)[0]
        self.seen = torch.zeros(stream.num_nodes, dtype=torch.bool)
        self.seen[training.source.long()] = True
        self.seen[training.destination.long() + stream.node_offset] = True
        self.offset = stream.node_offset
        earlier, now = stream.slice(0, self.start), stream.slice(*stream.span(split))
        self.popular = torch.bincount(earlier.destination, minlength=self.size)
        self.trained = Pairs(training.source.numpy(), training.destination.numpy(), self.size)
        self.fresh = Pairs(now.source.numpy(), now.destination.numpy(), self.size, self.trained.keys)
        self.recent = _Recent(stream.num_sources, len(stream.slice(0, stream.span(split)[1])))
        self.recent.add(earlier.source, earlier.destination)
        self.random = np.random.default_rng(self.protocol.seed)
        self.parts: list[dict[str, Tensor]] = []

    def add(self, window: EventWindow, scores: Tensor) -> None:
        """Take the scores (E x all destinations) of the next window's events."""
        scores = scores.detach().float().cpu()
        source, destination = window.source.cpu().long(), window.destination.cpu().long()
        new = ~(self.seen[source] & self.seen[destination + self.offset])
        negatives = self._negatives(source.numpy(), destination.numpy())
        part = {"new": new, "rank": ranks(scores, destination), "score": _at(scores, destination)}
        part |= {f"{kind}": _at(scores, negatives[kind]) for kind in NEGATIVES}
        counts = self.popular.float().expand_as(scores)
        part |= {"popularity_rank": ranks(counts, destination), "popularity_score": _at(counts, destination)}
        part |= {f"popularity_{kind}": _at(counts, negatives[kind]) for kind in NEGATIVES}
        asked = torch.stack([destination, *(negatives[kind] for kind in NEGATIVES)], dim=1)
        places, met = self.recent.places(source, destination, asked)
        # destinations that the source never met are all alike, behind those that it met
        part["recent_rank"] = torch.where(places[:, 0] >= 0, places[:, 0] + 1.0, (met + 1 + self.size) / 2)
        known = torch.where(places >= 0, -places.float(), -_MET)
        part |= {"recent_score": known[:, 0]} | {f"recent_{kind}": known[:, i + 1] for i, kind in enumerate(NEGATIVES)}
        self.popular += torch.bincount(destination, minlength=self.size)
        self.parts.append(part)

    def compute(self) -> dict[str, float]:
        """Return the metrics of all events and, with the prefix "new_", of those with a node that training has not."""
        columns = {name: torch.cat([part[name] for part in self.parts]) for name in self.parts[0]}
        found = self._of(columns)
        rows = columns["new"]
        found["new_share"] = float(rows.float().mean())
        if bool(rows.any()):
            found |= {f"new_{k}": v for k, v in self._of({name: c[rows] for name, c in columns.items()}).items()}
        return found

    def _of(self, columns: dict[str, Tensor]) -> dict[str, float]:
        found = {}
        for prefix in ("", "popularity_", "recent_"):
            rank = columns[f"{prefix}rank"].double()
            found[f"{prefix}mrr"] = float((1 / rank).mean())
            found[f"{prefix}recall"] = float((rank <= self.protocol.k).double().mean())
            labels = np.repeat([1, 0], len(rank))
            for kind in NEGATIVES:
                name = "" if kind == "random" else f"{kind}_"
                values = torch.cat([columns[f"{prefix}score"], columns[f"{prefix}{kind}"]]).numpy()
                found[f"{prefix}{name}ap"] = float(average_precision_score(labels, values))
                found[f"{prefix}{name}auc"] = float(roc_auc_score(labels, values))
        return found

    def _negatives(self, source: NDArray[np.int64], destination: NDArray[np.int64]) -> dict[str, Tensor]:
        uniform = [self._uniform(destination) for _ in NEGATIVES]
        found = {"random": uniform[0]}
        for kind, pairs, spare in (("historical", self.trained, uniform[1]), ("inductive", self.fresh, uniform[2])):
            drawn = pairs.draw(self.random, source, destination)
            found[kind] = np.where(drawn >= 0, drawn, spare)
        return {kind: torch.from_numpy(values) for kind, values in found.items()}

    def _uniform(self, destination: NDArray[np.int64]) -> NDArray[np.int64]:
        drawn = self.random.integers(0, max(self.size - 1, 1), len(destination))
        return (drawn + (drawn >= destination)) % self.size  # never the destination itself


def ranks(scores: Tensor, destination: Tensor) -> Tensor:
    """Return E ranks from 1 among all M scores, higher first, ties averaged; a NaN ranks last."""
    own = scores.gather(1, destination[:, None])
    better = (scores > own).sum(1).double()
    equal = (scores == own).sum(1).double()
    found = better + (equal + 1) / 2
    return torch.where(own.squeeze(1).isnan(), float(scores.shape[1]), found)


def _at(scores: Tensor, place: Tensor) -> Tensor:
    return scores.gather(1, place[:, None]).squeeze(1)


class _Recent:
    """The distinct destinations of each source, newest first, in linked lists.

    Args:
        sources: Number of sources.
        events: Most events that are added.
    """

    def __init__(self, sources: int, events: int) -> None:
        self.head = torch.full((sources,), -1, dtype=torch.int32)
        self.next, self.item = (torch.full((events,), -1, dtype=torch.int32) for _ in range(2))
        self.used = torch.zeros(1, dtype=torch.int64)

    def add(self, source: Tensor, destination: Tensor) -> None:
        """Move the events' destinations to the front."""
        self.places(source, destination, destination[:, None])

    def places(self, source: Tensor, destination: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Return where E x A destinations stand (-1: nowhere), and how long the list is, before each event."""
        lists = (self.head, self.next, self.item, self.used)
        return kernels.recent_places(source.int(), destination.int(), asked.int(), *lists)
