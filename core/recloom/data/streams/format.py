"""What a raw log of a graph is: one line an event, of a source, a destination and a time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import pyarrow.compute as pc

from recloom.data.formats.base import Column, RawBlock
from recloom.data.formats.text import TextFormat
from recloom.data.streams.limits import LATEST_SECOND
from recloom.errors import DataError

TICKS: dict[str, int] = {"s": 1, "ms": 1_000, "us": 1_000_000}


@dataclass(frozen=True)
class StreamOptions:
    """How a log becomes a stream.

    Args:
        time_unit: Of times that are numbers; the stream keeps it.
        order: "sort" brings events into order of time, "strict" refuses a log that is not.
        repeated: Whether to "keep" or "drop" events that repeat one of the same nodes and time.
        bipartite: Whether sources and destinations are different things.
    """

    time_unit: Literal["s", "ms", "us"] = "s"
    order: Literal["sort", "strict"] = "sort"
    repeated: Literal["keep", "drop"] = "keep"
    bipartite: bool = True


class StreamFormat(TextFormat):
    """A log that becomes an event stream.

    Args:
        options: How.

    Attributes:
        source: The source's column.
        destination: The destination's column.
        time: The time's column.
        label: The state label's column, or "".
        features: Columns of numbers that describe an event.
    """

    default_split: str = "time:0.7,0.15,0.15"
    labels: Literal["binary", "rate", "any"] = "any"
    source: str = "source"
    destination: str = "destination"
    time: str = "time"
    label: str = ""
    features: tuple[str, ...] = ()

    def __init__(self, options: StreamOptions | None = None) -> None:
        self.options = options or StreamOptions()

    def event_columns(self) -> list[Column]:
        """Return the columns of an event with their roles."""
        seconds = self.options.time_unit == "s"  # ISO 8601 times have a place among seconds only
        return [
            Column(self.source, "sparse"),
            Column(self.destination, "sparse"),
            Column(self.time, "timestamp", "time" if seconds else "int"),
            *(Column(self.label, "label", "float") for _ in range(bool(self.label))),
            *(Column(name, "dense", "float") for name in self.features),
        ]

    def derive(self, block: RawBlock) -> None:
        """Reject events without a node or at impossible times."""
        for name in (self.source, self.destination):
            array = block.columns[name]
            block.reject(pc.fill_null(pc.equal(array, ""), True), name, "is empty")
        for name in self.features:
            block.reject(block.columns[name].is_null(), name, "is empty")
        array = block.columns[self.time]
        times = array.fill_null(0).to_numpy(zero_copy_only=False)
        unit = self.options.time_unit
        late = times >= LATEST_SECOND * TICKS[unit]
        if block.row == 0 and len(times) and int(np.median(times)) >= LATEST_SECOND * TICKS[unit]:
            guess = next((u for u, ticks in TICKS.items() if int(np.median(times)) < LATEST_SECOND * ticks), "")
            hint = f"Say so: --time-unit {guess}" if guess else "Is it the right column?"
            what = f"times like {int(np.median(times))} are no {_WORDS[unit]}"
            raise DataError(f"{block.file}, field {self.time}: {what}", hint)
        block.reject(times < 0, self.time, "is negative", array)
        block.reject(late, self.time, "is after 5138 (other units: --time-unit)", array)

    @classmethod
    def add_arguments(cls, parser: argparse._ArgumentGroup) -> None:
        """Add the options of event streams."""
        parser.add_argument("--time-unit", choices=tuple(TICKS), default="s", help="of times that are numbers")
        help_ = "bring events into order of time, or refuse a log that is not (default: sort)"
        parser.add_argument("--order", choices=("sort", "strict"), default="sort", help=help_)
        help_ = "events with the nodes and the time of another one (default: keep)"
        parser.add_argument("--repeated", choices=("keep", "drop"), default="keep", help=help_)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """Return the format with the options that the command line gave."""
        return cls(stream_options(arguments))


def stream_options(arguments: argparse.Namespace, bipartite: bool = True) -> StreamOptions:
    """Return the options of streams that the command line gave."""
    return StreamOptions(arguments.time_unit, arguments.order, arguments.repeated, bipartite)


def roles_of(names: Sequence[str], columns: Sequence[Column]) -> tuple[Column, ...]:
    """Return a column for every name in a file: that of `columns`, or one that is left out."""
    known = {column.name: column for column in columns}
    return tuple(known.get(name, Column(name)) for name in names)


_WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}
