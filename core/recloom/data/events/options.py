"""How events become samples with histories: the options, as a value and on the command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, Self

from recloom.errors import RecloomError

TimeUnit = Literal["s", "ms", "us"]
UNITS: dict[TimeUnit, int] = {"s": 1, "ms": 1_000, "us": 1_000_000}
_NEGATIVES = ("none", "uniform", "popularity")


@dataclass(frozen=True)
class EventOptions:
    """How events become samples with histories.

    Args:
        history: Longest history, in steps.
        min_history: Events with less history are no candidates.
        windows_per_user: Candidates of a user: the number, drawn by the seed; 0 for all; -1 for the last one.
        negatives: How negatives are drawn: "uniform" among the items of the log, or by their "popularity".
        num_negatives: Negatives of a positive.
        behaviours: Only events with these behaviours count; () for all.
        time_range: Only events from the first to the second time, in seconds, both included; None for all.
        time_unit: Of times that are numbers.
        user_feature: Whether the user's id is a feature.
    """

    history: int = 20
    min_history: int = 1
    windows_per_user: int = 0
    negatives: Literal["none", "uniform", "popularity"] = "none"
    num_negatives: int = 0
    behaviours: tuple[str, ...] = ()
    time_range: tuple[int, int] | None = None
    time_unit: TimeUnit = "s"
    user_feature: bool = True

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """Return what the command line gave."""
        kind, number = arguments.negatives
        return cls(
            history=arguments.history,
            min_history=arguments.min_history,
            windows_per_user=arguments.windows_per_user,
            negatives=kind,
            num_negatives=number,
            behaviours=arguments.behaviours,
            time_range=arguments.time_range,
            time_unit=arguments.time_unit,
            user_feature=not arguments.no_user,
        )


def add_arguments(parser: argparse._ArgumentGroup, time_range: tuple[int, int] | None, name: str) -> None:
    """Add the options of event logs; `time_range` is the format's own, which is called `name`."""
    parser.add_argument("--history", type=_at_least(1), default=20, metavar="N", help="longest history (default: 20)")
    parser.add_argument(
        "--min-history", type=_at_least(0), default=1, metavar="N", help="events with less are no rows (default: 1)"
    )
    parser.add_argument(
        "--windows-per-user", type=_windows, default=0, metavar="N|all|last", help="rows of a user (default: all)"
    )
    parser.add_argument(
        "--negatives",
        type=_negatives,
        default=("none", 0),
        metavar="none|uniform:K|popularity:K",
        help="rows with another item and the label 0, K a positive (default: none; see also "
        "ParquetClicks' in_batch_negatives)",
    )
    parser.add_argument("--behaviours", type=_names, default=(), metavar="A,B", help="use only events of these")
    parser.add_argument(
        "--time-range",
        type=_range,
        default=time_range,
        metavar="FROM,TO",
        help=f"use only these dates or times; none: all (default: {name})",
    )
    parser.add_argument("--time-unit", choices=tuple(UNITS), default="s", help="of times that are numbers")
    parser.add_argument("--no-user", action="store_true", help="leave out the feature of the user's id")


def parse_time_range(text: str) -> tuple[int, int] | None:
    """Read "FROM,TO": dates (TO's day included), ISO 8601 times or unix seconds, UTC unless they say otherwise."""
    if text == "none":
        return None
    first, _, last = text.partition(",")
    try:
        found = _seconds(first), _seconds(last, end=True)
    except ValueError as error:
        hint = "Write FROM,TO as dates, times or unix seconds (2017-11-25,2017-12-03), or none."
        raise RecloomError(f"--time-range {text}: {error}", hint) from error
    if found[0] > found[1]:
        raise RecloomError(f"--time-range {text}: it ends before it begins", "Write the earlier time first.")
    return found


def _seconds(text: str, end: bool = False) -> int:
    """Return the seconds of a time; of a date, those of its first second, or with `end` its last."""
    text = text.strip()
    if text.removeprefix("-").isdigit():
        return int(text)
    time = datetime.fromisoformat(text)
    if end and len(text) <= len("2017-11-25"):
        time += timedelta(days=1, seconds=-1)
    return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp())


def _range(text: str) -> tuple[int, int] | None:
    try:
        return parse_time_range(text)
    except RecloomError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _windows(text: str) -> int:
    return {"all": 0, "last": -1}[text] if text in ("all", "last") else _at_least(1)(text)


def _negatives(text: str) -> tuple[str, int]:
    kind, _, number = text.partition(":")
    if kind not in _NEGATIVES or (kind == "none") != (not number):
        raise argparse.ArgumentTypeError(f"{text!r} is none of none, uniform:K and popularity:K")
    return kind, _at_least(1)(number) if number else 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


class _at_least:
    """Reads an integer that is not smaller than `least`."""

    def __init__(self, least: int) -> None:
        self.least = least

    def __call__(self, text: str) -> int:
        if not text.removeprefix("-").isdigit() or int(text) < self.least:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least {self.least}")
        return int(text)
