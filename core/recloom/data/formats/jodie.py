"""The csv of JODIE (Kumar et al. 2019) and of the data sets that follow it: Wikipedia, Reddit, MOOC, LastFM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recloom.data.formats.base import Column
from recloom.data.streams.format import StreamFormat
from recloom.errors import DataError


class Jodie(StreamFormat):
    """user,item,timestamp,state_label,features...: comma, a header that names fewer columns than there are, or none.

    Any number of features, also none. Users and items are numbered apart, whether the items' numbers go on where the
    users' end or not.
    """

    name: str = "jodie"
    separator: str = ","
    source: str = "user"
    destination: str = "item"
    time: str = "timestamp"
    label: str = "state_label"

    def sniff(self, path: Path) -> None:
        """Count the columns of the first event."""
        lines = [self.split_line(line) for line in self.first_lines(path)[:2]]
        event = next((fields for fields in lines if self.header(fields) is None), [])
        if len(event) < 4:
            raise DataError(
                f"{path}, line {min(2, len(lines))}: {len(event)} columns where JODIE has user, item, timestamp, "
                "state_label and any number of features",
                "For a log with other columns there is the format 'graph'.",
            )
        if self.fields and len(event) != len(self.fields):
            raise DataError(f"{path}: {len(event)} columns, and the files before have {len(self.fields)}")
        self.features = tuple(f"x{index}" for index in range(len(event) - 4))
        self.fields = tuple(self.event_columns())

    def header(self, first: list[str]) -> list[str] | None:
        """Return the columns' names if the first line has no time where times are."""
        named = len(first) < 3 or not first[2].strip().lstrip("-")[:1].isdigit()
        return [column.name for column in self.fields] or list(first) if named else None

    def fits(self, lines: Sequence[bytes]) -> bool:
        """Return whether the first lines of a file look like it."""
        rows = [self.split_line(line) for line in lines[1:3]]
        return bool(rows) and all(len(row) >= 4 and self.header(row) is None for row in rows)

    def fields_of(self, header: Sequence[str]) -> Sequence[Column]:
        """Return the columns, by place: the header of the published files is one name short."""
        return self.fields
