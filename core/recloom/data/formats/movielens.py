"""The ratings of MovieLens (GroupLens), in the layouts that they come in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from recloom.data.events.format import EventFormat
from recloom.data.formats.base import Column
from recloom.data.formats.text import TextFormat
from recloom.errors import DataError

_NAMES = {"user_id": "user", "userId": "user", "item_id": "item", "movieId": "item"}


class RatingsLayout(TextFormat):
    """Layouts of ratings: u.data (TAB, no header), ratings.dat (user::item::rating::time), ratings.csv, RecBole's.

    Beside another TextFormat, which says in `event_columns` what the columns become.
    """

    @abstractmethod
    def event_columns(self) -> list[Column]:
        """Return the columns of an event with their roles."""

    def sniff(self, path: Path) -> None:
        """Find out which of the layouts it is."""
        line = self.first_lines(path)[0].decode("utf-8", "replace").rstrip("\r\n")
        separator = next((mark for mark in ("::", "\t", ",") if mark in line), "")
        roles = {column.name: column for column in self.event_columns()}
        names = self._header(line.split(separator)) if separator else []
        names = names or ["user", "item", "rating", "timestamp"]
        fits = separator and len(line.split(separator)) == len({*names}) == len(names)
        if not fits or not roles.keys() <= {*names}:
            raise DataError(
                f"{path}, line 1: not ratings of MovieLens: {line[:80]!r}",
                "They are user, item, rating and time, separated by TAB, comma or ::.",
            )
        if separator == "::":  # the parser knows separators of one character: an empty column between two
            names = [name for pair in names for name in (pair, f"after {pair}")][:-1]
        if self.fields and (self.separator, [column.name for column in self.fields]) != (separator[0], names):
            raise DataError(f"{path}: not the same layout as the files before it", "Prepare them one by one.")
        self.separator = separator[0]
        self.fields = tuple(roles.get(name, Column(name)) for name in names)

    def _header(self, first: Sequence[str]) -> list[str]:
        """Return the columns' names if `first` is a header, else none. RecBole writes "user_id:token"."""
        names = [field.strip('"').partition(":")[0] for field in first]
        return [_NAMES.get(name, name) for name in names] if not _NAMES.keys().isdisjoint(names) else []

    def header(self, first: list[str]) -> list[str] | None:
        """Return the columns' names if the first line is a header."""
        return self._header(first) or None


class MovieLens(RatingsLayout, EventFormat):
    """Ratings: u.data (TAB, no header), ratings.dat (user::item::rating::time), ratings.csv, or RecBole's .inter.

    The rating is what the user did: part of a history's steps, not of a candidate.
    """

    name: str = "movielens"
    behaviour: str = "rating"

    def event_columns(self) -> list[Column]:
        """Return the columns of an event with their roles."""
        return EventFormat.event_columns(self)
