"""What an event log is: one line an event, of a user, an item and a time, and further columns of both."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recloom.data.events.options import UNITS, EventOptions, add_arguments
from recloom.data.formats.base import Column, RawBlock
from recloom.data.formats.text import TextFormat
from recloom.errors import DataError, unknown

_LATEST = 10**11  # seconds, in the year 5138: what is later counts milliseconds
_EARLIEST = 10**8  # milliseconds that would end before this, in 1973, are seconds

OUTSIDE = "outside the time range"
OTHER = "of other behaviours"


class EventFormat(TextFormat):
    """A log of events. A subclass names its columns and, in `fields`, reads them.

    Args:
        options: What becomes of the events.

    Attributes:
        user: The user's column.
        item: The item's column.
        time: The time's column.
        item_keys: Further columns of the item (its category), features of candidates and of steps.
        behaviour: The column with what the user did (view, buy, a rating): part of steps only, since a candidate's is
            not known before it happened; "" for none.
        known_behaviours: Its values, others are bad rows; () for any.
        time_range: The range of times if the options give none, and what to call it.
    """

    default_split: str = "users:0.7,0.1,0.2"
    user: str = "user"
    item: str = "item"
    time: str = "timestamp"
    item_keys: tuple[str, ...] = ()
    behaviour: str = ""
    known_behaviours: tuple[str, ...] = ()
    time_range: tuple[int, int] | None = None
    time_range_name: str = "all"

    def __init__(self, options: EventOptions | None = None) -> None:
        self.options = options or EventOptions(time_range=self.time_range)
        for behaviour in self.options.behaviours:
            if self.known_behaviours and behaviour not in self.known_behaviours:
                raise unknown("behaviour", behaviour, self.known_behaviours)
        if self.options.behaviours and not self.behaviour:
            raise DataError(f"the format {self.name!r} has no behaviours", "Leave out --behaviours.")

    @property
    def step_keys(self) -> tuple[str, ...]:
        """The columns that make up a step of a history."""
        return (self.item, *self.item_keys, *([self.behaviour] if self.behaviour else []))

    @property
    def columns(self) -> Sequence[Column]:
        """The columns of an event."""
        return self.event_columns()

    def event_columns(self) -> list[Column]:
        """Return the columns of an event with their roles."""
        categories = [Column(name, "sparse") for name in (self.user, *self.step_keys)]
        return [*categories, Column(self.time, "timestamp", "time", unit=UNITS[self.options.time_unit])]

    def derive(self, block: RawBlock) -> None:
        """Reject events without user or item, of unknown behaviours, or at impossible times."""
        for name in (self.user, self.item):
            array = block.columns[name]
            block.reject(pc.fill_null(pc.equal(array, ""), True), name, "is empty")
        if self.known_behaviours:
            array = block.columns[self.behaviour]
            wrong = pc.invert(pc.is_in(array, pa.array(self.known_behaviours)))
            block.reject(wrong, self.behaviour, f"is none of {', '.join(self.known_behaviours)}", array)
        self._check_times(block)

    def _check_times(self, block: RawBlock) -> None:
        array = block.columns[self.time]
        times = array.fill_null(0).to_numpy(zero_copy_only=False)
        if block.row == 0 and not block.rejected.all():
            self._check_unit(block, times[~block.rejected])
        if self.options.time_range is None:
            reason = "seconds is before 1970 or after 5138 (other units: --time-unit)"
            block.reject((times < 0) | (times >= _LATEST), self.time, reason, array)

    def _check_unit(self, block: RawBlock, times: NDArray[np.int64]) -> None:
        """Raise DataError if the first events of a file show that its times are not in the unit that was said."""
        said = self.options.time_unit
        middle = int(np.median(times)) * UNITS[said]
        if middle >= _LATEST * UNITS[said] or (said != "s" and 0 < middle < _EARLIEST * UNITS[said]):
            guess = next((unit for unit in UNITS if _EARLIEST <= middle / UNITS[unit] < _LATEST), "")
            hint = f"Say so: --time-unit {guess}" if guess else "Is it the right column?"
            raise DataError(f"{block.file}, field {self.time}: times like {middle} are no {_WORDS[said]}", hint)

    def checked(self, block: RawBlock) -> RawBlock:
        """Return the good events, less those that the options leave out."""
        block = super().checked(block)
        kept = np.ones(len(block), bool)
        if self.options.time_range is not None:
            first, last = self.options.time_range
            times = block.columns[self.time].to_numpy()
            kept = (times >= first) & (times <= last)
            block.left_out[OUTSIDE] = len(kept) - int(kept.sum())
        if self.options.behaviours:
            wanted = pc.is_in(block.columns[self.behaviour], pa.array(self.options.behaviours))
            chosen = wanted.to_numpy(zero_copy_only=False)
            block.left_out[OTHER] = int((kept & ~chosen).sum())
            kept &= chosen
        if not kept.all():
            block.take(np.flatnonzero(kept))
        return block

    @classmethod
    def add_arguments(cls, parser: argparse._ArgumentGroup) -> None:
        """Add the options of event logs."""
        add_arguments(parser, cls.time_range, cls.time_range_name)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """Return the format with the options that the command line gave."""
        return cls(EventOptions.from_arguments(arguments))


_WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}
