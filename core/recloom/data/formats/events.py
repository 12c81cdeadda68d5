"""Any log of events in CSV or Parquet, by saying which column is what."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Self

from recloom.data.events.format import EventFormat
from recloom.data.events.options import EventOptions
from recloom.data.formats.base import Column
from recloom.data.formats.table import NamedTable, names_of
from recloom.errors import DataError

_TAKEN = ("label", "group", "weight")


@dataclass(frozen=True)
class EventColumns:
    """What the columns are; columns not named are left out.

    Args:
        user: The user.
        item: The item.
        time: The time: unix seconds (see --time-unit) or ISO 8601 (UTC unless they say otherwise).
        keys: Further columns of the item, like its category.
        behaviour: What the user did; "" for none.
        header: All columns in order, for a CSV file without a header line.
        separator: Between the fields of a CSV file; "" for TAB in .tsv files and comma in others.
    """

    user: str = "user"
    item: str = "item"
    time: str = "timestamp"
    keys: tuple[str, ...] = ()
    behaviour: str = ""
    header: tuple[str, ...] = ()
    separator: str = ""


class Events(EventFormat, NamedTable):
    """Events in CSV or Parquet."""

    name = "events"

    def __init__(self, columns: EventColumns, options: EventOptions | None = None) -> None:
        self.user, self.item, self.time = columns.user, columns.item, columns.time
        self.item_keys, self.behaviour = columns.keys, columns.behaviour
        EventFormat.__init__(self, options)
        roles = {column.name: column for column in self.event_columns()}
        if len(roles) < len(self.step_keys) + 2:
            raise DataError("a column is given two roles", "--user, --item, --time, --keys, --behaviour: each its own.")
        if taken := [*(name for name in _TAKEN if name in roles), *(name for name in self.step_keys if name == "time")]:
            raise DataError(f"the column {taken[0]!r} has a name that shards need", "Rename it.")
        self._names = columns.header
        self.fields = tuple(roles.get(name, Column(name)) for name in columns.header or roles)
        if missing := [name for name in roles if name not in (columns.header or roles)]:
            raise DataError(f"--header has no column {missing[0]!r}", "Name all columns of the file, in order.")
        self.separator = self._separator = columns.separator

    @classmethod
    def add_arguments(cls, parser: argparse._ArgumentGroup) -> None:
        """Add the options that say what each column is, and those of event logs."""
        parser.add_argument("--user", default="user", metavar="A", help="the user's column (default: user)")
        parser.add_argument("--item", default="item", metavar="A", help="the item's column (default: item)")
        parser.add_argument(
            "--time", default="timestamp", metavar="A", help="unix time or ISO 8601 (default: timestamp)"
        )
        parser.add_argument("--keys", type=names_of, default=(), metavar="A,B", help="further columns of the item")
        parser.add_argument("--behaviour", default="", metavar="A", help="column with what the user did")
        parser.add_argument(
            "--header", type=names_of, default=(), metavar="A,B", help="columns of a CSV without header"
        )
        parser.add_argument("--separator", default="", help="between CSV fields (default: TAB in .tsv, else comma)")
        super().add_arguments(parser)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """Return the format with the options that the command line gave."""
        names = ("user", "item", "time", "keys", "behaviour", "header", "separator")
        columns = EventColumns(**{name: getattr(arguments, name) for name in names})
        return cls(columns, EventOptions.from_arguments(arguments))
