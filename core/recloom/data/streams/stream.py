"""An event stream: who met whom when, in order of time, as flat tensors in memory or mapped from files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from recloom.data.streams.limits import LATEST_SECOND, MAX_NODES
from recloom.errors import DataError
from recloom.features import DenseFeature, FeatureSchema, SparseFeature

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class EventStream:
    """N events in order of time; simultaneous ones in the order of the log.

    Nodes are numbered from 0. In a bipartite stream sources and destinations are numbered apart, and `node_offset`
    brings a destination's number behind those of the sources, where one number space is needed.

    Args:
        source: N numbers of sources, int32.
        destination: N numbers of destinations, int32.
        time: N times, int64, in ticks; not before 0. Never float32: unix seconds would be rounded to minutes.
        num_sources: Number of sources, those without an event included.
        num_destinations: Number of destinations. Of a stream that is not bipartite, the same number.
        bipartite: Whether sources and destinations are different things.
        label: N state labels (the source was banned, dropped out), float32; or None.
        features: N x F features of the events, float32; or None.
        ticks: Ticks a second.
        bounds: Position of the first validation event and of the first test event.
        info: Facts for people.
    """

    source: Tensor
    destination: Tensor
    time: Tensor
    num_sources: int
    num_destinations: int
    bipartite: bool = True
    label: Tensor | None = None
    features: Tensor | None = None
    ticks: int = 1
    bounds: tuple[int, int] = (0, 0)
    info: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def node_offset(self) -> int:
        """What is added to a destination's number to get its node."""
        return self.num_sources if self.bipartite else 0

    @property
    def num_nodes(self) -> int:
        """Number of nodes of both kinds."""
        return self.num_sources + self.num_destinations if self.bipartite else self.num_sources

    @property
    def num_features(self) -> int:
        """Number of features of an event."""
        return 0 if self.features is None else self.features.shape[1]

    def span(self, split: str) -> tuple[int, int]:
        """Return the first position of `split` ("train", "val" or "test") and the one after its last."""
        places = (0, *self.bounds, len(self))
        index = SPLITS.index(split)
        return places[index], places[index + 1]

    def slice(self, start: int, stop: int) -> Self:
        """Return the events from `start` to before `stop`, without a copy; bounds are moved along."""
        moved = tuple(min(max(bound - start, 0), stop - start) for bound in self.bounds)
        return self._of(slice(start, stop), (moved[0], moved[1]))

    def take(self, positions: Tensor) -> Self:
        """Return the events at these positions, which must grow."""
        first, second = (int(torch.searchsorted(positions, bound)) for bound in self.bounds)
        return self._of(positions, (first, second))

    def _of(self, rows: Any, bounds: tuple[int, int]) -> Self:
        return dataclasses.replace(
            self,
            source=self.source[rows],
            destination=self.destination[rows],
            time=self.time[rows],
            label=None if self.label is None else self.label[rows],
            features=None if self.features is None else self.features[rows],
            bounds=bounds,
        )

    def split(self, shares: tuple[float, ...]) -> Self:
        """Return the stream with bounds at these shares of its events; simultaneous events stay together."""
        return dataclasses.replace(self, bounds=split_bounds(self.time, shares))

    def schema(self) -> FeatureSchema:
        """Return the columns as a feature schema: nodes that share numbers share a table."""
        tables = ("source", "destination") if self.bipartite else ("node", "node")
        sizes = (self.num_sources, self.num_destinations)
        return FeatureSchema(
            dense=tuple(DenseFeature(f"x{index}") for index in range(self.num_features)),
            sparse=tuple(
                SparseFeature(name, size, 1, table=table)
                for name, size, table in zip(("source", "destination"), sizes, tables, strict=True)
            ),
            labels=("state",) if self.label is not None else (),
            timestamp="time",
            info={"events": len(self), **self.info},
        )

    def check(self) -> Self:
        """Return the stream itself.

        Raises:
            DataError: It is not in order of time, times are negative or in another unit, nodes are out of range, an
                event leads to its own source, or the columns do not fit each other. Names the first such event.
        """
        length = len(self)
        for name in ("destination", "time", "label", "features"):
            column = getattr(self, name)
            if column is not None and len(column) != length:
                raise DataError(f"the stream has {length:,} sources and {len(column):,} values of {name}")
        if self.time.dtype != torch.int64:
            raise DataError(f"times are {self.time.dtype}", "Use int64: float32 rounds unix seconds to minutes.")
        if self.num_nodes > MAX_NODES:
            raise DataError(f"{self.num_nodes:,} nodes", f"At most {MAX_NODES:,} fit.")
        if not length:
            return self
        _refuse(self.time[1:] < self.time[:-1], "is earlier than the one before it", "Sort the events by time.", 1)
        _refuse(self.time < 0, "has a negative time")
        hint = "Are these milliseconds? Then say so with `ticks=1000`."
        _refuse(self.time >= LATEST_SECOND * self.ticks, "is after the year 5138", hint)
        for name, size in (("source", self.num_sources), ("destination", self.num_destinations)):
            ids = getattr(self, name)
            _refuse((ids < 0) | (ids >= size), f"has a {name} outside 0 .. {size - 1:,}")
        if not self.bipartite:
            _refuse(self.source == self.destination, "leads from a node to itself", "Leave self loops out.")
        return self


def split_bounds(time: Tensor, shares: tuple[float, ...]) -> tuple[int, int]:
    """Return where validation and test begin, for shares of train, val and test of events in order of time."""
    places = []
    for share in (shares[0], shares[0] + shares[1]):
        place = min(round(share * len(time)), len(time))
        if place < len(time):
            tie = int(torch.searchsorted(time, time[place]))
            place = tie if tie else int(torch.searchsorted(time, time[place], right=True))
        places.append(place)
    return places[0], max(places)


def _refuse(wrong: Tensor, what: str, hint: str = "", offset: int = 0) -> None:
    if bool(wrong.any()):
        first = int(wrong.to(torch.uint8).argmax()) + offset
        raise DataError(f"event {first:,} {what} ({int(wrong.sum()):,} events do)", hint)
