"""Generated event streams of any size: power-law activity, and what comes next planted in the order of events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from recloom.data.streams.folder import StreamWriter, load_stream
from recloom.data.streams.limits import MAX_NODES
from recloom.data.streams.stream import EventStream, split_bounds
from recloom.errors import DataError

Piece = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]
_DAY = 86_400


@dataclass(frozen=True)
class PowerLawStream:
    """A bipartite stream in which what a source does next depends on what it did last.

    Source i and destination j are drawn in proportion to (i + 1)^-source_exponent and (j + 1)^-destination_exponent.
    An event of a source that has been there before repeats its last destination with probability `repeat`; goes on to
    the successor of that with probability `follow`; and is drawn anew otherwise. The successor of j is the next one of
    its band of `band` destinations of like popularity, the first one after the last; so popularity stays a power law.
    A model that knows the source's last destination predicts repeats and successors; one that is a few events late
    does not, if the source was there in between.

    Args:
        events: Number of events.
        sources: Number of sources.
        destinations: Number of destinations.
        source_exponent: Exponent of the sources' activity; 0: all alike.
        destination_exponent: Exponent of the destinations' popularity.
        repeat: Probability of a repeat.
        follow: Probability of the successor.
        band: Destinations of a band.
        days: Length of the stream. Nights have fewer events than days.
        seed: Seed.
        chunk: Events that are drawn at a time; another number gives another stream.
    """

    events: int = 1_000_000
    sources: int = 100_000
    destinations: int = 20_000
    source_exponent: float = 0.8
    destination_exponent: float = 1.0
    repeat: float = 0.3
    follow: float = 0.4
    band: int = 20
    days: float = 30.0
    seed: int = 0
    chunk: int = 1 << 20

    def __post_init__(self) -> None:
        if min(self.events, self.sources, self.destinations, self.band, self.chunk) < 1 or self.days <= 0:
            raise DataError("a generated stream needs at least one event, source, destination, day and event a chunk")
        if min(self.repeat, self.follow) < 0 or self.repeat + self.follow > 1:
            raise DataError(f"repeat {self.repeat} and follow {self.follow}: probabilities of at most 1 together")
        if self.sources + self.destinations > MAX_NODES:
            raise DataError(f"more than {MAX_NODES:,} nodes")

    def pieces(self) -> Iterator[Piece]:
        """Yield the events chunk by chunk: sources, destinations, times in seconds."""
        source_bounds = _cumulative(self.sources, self.source_exponent)
        destination_bounds = _cumulative(self.destinations, self.destination_exponent)
        last = np.full(self.sources, -1, np.int32)  # each source's last destination
        passed = 0.0
        for number, start in enumerate(range(0, self.events, self.chunk)):
            size = min(self.chunk, self.events - start)
            random = np.random.default_rng([self.seed, number])
            source = _draw(random, source_bounds, size)
            fresh = _draw(random, destination_bounds, size)
            kind = random.random(size)
            destination = self._destinations(source, fresh, kind, last)
            gaps = random.exponential(size=size)
            moments = passed + np.cumsum(gaps)
            passed = moments[-1]
            yield source, destination, self._times(moments)

    def _destinations(
        self, source: NDArray[np.int32], fresh: NDArray[np.int32], kind: NDArray[np.float64], last: NDArray[np.int32]
    ) -> NDArray[np.int32]:
        """Return where the events of a chunk go; `last` is brought up to date.

        In the events of one source, in order, the last fresh draw and the number of successors since then say it all.
        """
        order = np.argsort(source, kind="stable")
        by_source = source[order]
        first = np.diff(by_source, prepend=-1) != 0
        drawn = (kind >= self.repeat + self.follow)[order]
        step = ((kind >= self.repeat) & ~(kind >= self.repeat + self.follow))[order]
        before = last[by_source]
        drawn |= first & (before < 0)
        origin = np.where(drawn, fresh[order], before)
        rows = np.arange(len(source))
        anchor = np.maximum.accumulate(np.where(drawn | first, rows, 0))
        steps = np.cumsum(step & ~drawn)
        since = steps - steps[anchor] + (step & ~drawn)[anchor]
        base = origin[anchor]
        low = base - base % self.band
        width = np.minimum(self.band, self.destinations - low)
        went = (low + (base - low + since) % width).astype(np.int32)
        ends = np.append(first[1:], True)
        last[by_source[ends]] = went[ends]
        destination = np.empty_like(went)
        destination[order] = went
        return destination

    def _times(self, moments: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the seconds of moments of a uniform stream, spread so that there is a day and a night."""
        day = moments / self.events * self.days  # as if all hours were alike
        moved = day + 0.09 * np.sin(2 * np.pi * day)  # grows: 0.09 < 1 / 2 pi
        return (moved * _DAY).astype(np.int64)

    def build(self, shares: tuple[float, float, float] = (0.7, 0.15, 0.15)) -> EventStream:
        """Return the stream in memory, with 16 bytes an event."""
        source = np.empty(self.events, np.int32)
        destination, time = np.empty_like(source), np.empty(self.events, np.int64)
        start = 0
        for piece in self.pieces():
            rows = slice(start, start + len(piece[0]))
            source[rows], destination[rows], time[rows] = piece
            start = rows.stop
        stream = EventStream(
            torch.from_numpy(source),
            torch.from_numpy(destination),
            torch.from_numpy(time),
            num_sources=self.sources,
            num_destinations=self.destinations,
            info=self._info(),
        )
        return stream.split(shares)

    def write(self, directory: Path, shares: tuple[float, float, float] = (0.7, 0.15, 0.15)) -> EventStream:
        """Write the stream to `directory`, a chunk of it in memory at a time, and return it mapped from there."""
        with StreamWriter(directory, ("source", "destination", "time")) as writer:
            for source, destination, time in self.pieces():
                writer.add({"source": source, "destination": destination, "time": time})
            bounds = split_bounds(torch.from_numpy(writer.mapped("time")), shares)
            sizes = {"num_sources": self.sources, "num_destinations": self.destinations}
            writer.finish({**sizes, "bipartite": True, "ticks": 1, "bounds": list(bounds), "info": self._info()})
        return load_stream(directory)

    def _info(self) -> dict[str, object]:
        return {"generator": "PowerLawStream", **asdict(self)}


def _cumulative(count: int, exponent: float) -> NDArray[np.float64]:
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    bounds = np.cumsum(weights)
    return bounds / bounds[-1]


def _draw(random: np.random.Generator, bounds: NDArray[np.float64], size: int) -> NDArray[np.int32]:
    return np.minimum(np.searchsorted(bounds, random.random(size), side="right"), len(bounds) - 1).astype(np.int32)
