"""Any log of events between two nodes, in CSV or Parquet, by saying which column is what."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Self

from recloom.data.formats.base import Column
from recloom.data.formats.movielens import RatingsLayout
from recloom.data.formats.table import NamedTable, names_of
from recloom.data.streams.format import StreamFormat, StreamOptions, roles_of, stream_options
from recloom.errors import DataError


@dataclass(frozen=True)
class GraphColumns:
    """What the columns are; columns not named are left out.

    Args:
        source: The source node.
        destination: The destination node.
        time: The time: unix seconds (see --time-unit) or ISO 8601.
        label: The source's state, a number; "" for none.
        features: Numbers that describe an event.
        header: All columns in order, for a CSV file without a header line.
        separator: Between the fields of a CSV file; "" for TAB in .tsv files and comma in others.
    """

    source: str = "source"
    destination: str = "destination"
    time: str = "time"
    label: str = ""
    features: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    separator: str = ""


class Graph(StreamFormat, NamedTable):
    """Events between two nodes in CSV or Parquet."""

    name = "graph"

    def __init__(self, columns: GraphColumns | None = None, options: StreamOptions | None = None) -> None:
        StreamFormat.__init__(self, options)
        columns = columns or GraphColumns()
        self.source, self.destination, self.time = columns.source, columns.destination, columns.time
        self.label, self.features = columns.label, columns.features
        wanted = self.event_columns()
        names = [column.name for column in wanted]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"column {twice[0]!r} is given two roles", "Give each column one of them.")
        if missing := [name for name in names if columns.header and name not in columns.header]:
            raise DataError(f"--header has no column {missing[0]!r}", "Name all columns of the file, in order.")
        self._names = columns.header
        self.fields = roles_of(columns.header or names, wanted)
        self.separator = self._separator = columns.separator

    @classmethod
    def add_arguments(cls, parser: argparse._ArgumentGroup) -> None:
        """Add the options that say what each column is, and those of streams."""
        for name, what in (("source", "the source node"), ("destination", "the destination"), ("time", "the time")):
            parser.add_argument(f"--{name}", default=name, metavar="A", help=f"column of {what} (default: {name})")
        parser.add_argument("--label", default="", metavar="A", help="column with the source's state, a number")
        parser.add_argument("--features", type=names_of, default=(), metavar="A,B", help="columns of numbers")
        parser.add_argument(
            "--header", type=names_of, default=(), metavar="A,B", help="columns of a CSV without header"
        )
        parser.add_argument("--separator", default="", help="between CSV fields (default: TAB in .tsv, else comma)")
        parser.add_argument("--unipartite", action="store_true", help="sources and destinations are the same nodes")
        super().add_arguments(parser)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """Return the format with the options that the command line gave."""
        names = ("source", "destination", "time", "label", "features", "header", "separator")
        columns = GraphColumns(**{name: getattr(arguments, name) for name in names})
        return cls(columns, stream_options(arguments, not arguments.unipartite))


class MovieLensGraph(RatingsLayout, StreamFormat):
    """Ratings of MovieLens as a stream: user, item, time, and the rating as a feature."""

    name: str = "movielens_graph"
    source: str = "user"
    destination: str = "item"
    time: str = "timestamp"
    features: tuple[str, ...] = ("rating",)

    def event_columns(self) -> list[Column]:
        """Return the columns of an event with their roles."""
        return StreamFormat.event_columns(self)
