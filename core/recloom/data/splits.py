"""Which rows train, which validate, which test: by chance, user, time or day, or as the DLRM reference does."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recloom.data.hashing import uniform
from recloom.errors import DataError

SPLITS = ("train", "val", "test")
_DAY = 86_400
_HINT = (
    "Write random:0.8,0.1,0.1 (train, val, test), time:0.8,0.1,0.1, days:0-5,6 (train on days 0 to 5, val on 6), "
    "users:0.8,0.1,0.1 (event logs: no user in two of them), "
    "reference (the DLRM reference's split of the Criteo logs) or none (everything is train)."
)


class TimeCounts:
    """How many rows each time has; coarser than a second only where a log has millions of distinct seconds."""

    def __init__(self, limit: int = 2_000_000) -> None:
        self._limit = limit
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._waiting = 0
        self.resolution = 1

    def add(self, times: NDArray[np.int64]) -> None:
        """Count n times in seconds."""
        self._parts.append(np.unique(times // self.resolution, return_counts=True))
        self._waiting += len(self._parts[-1][0])
        if self._waiting > 2 * self._limit:
            while len(self.result()[0]) > self._limit:
                self._parts = [(times // 2, counts) for times, counts in self._parts]
                self.resolution *= 2
            self._waiting = 0

    def result(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the distinct times in order, in units of `resolution` seconds, and how many rows each has."""
        if not self._parts:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        times, place = np.unique(np.concatenate([part[0] for part in self._parts]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([part[1] for part in self._parts])).astype(np.int64)
        self._parts = [(times, counts)]
        return times, counts


@dataclass
class Totals:
    """What a first pass found out.

    Args:
        rows: Lines of data in each input file, in order.
        times: Counts of the rows' times; None for a log without times.
    """

    rows: list[int] = field(default_factory=list)
    times: TimeCounts | None = None


@dataclass(frozen=True)
class Split:
    """A rule that assigns rows to splits; make one with `parse_split`.

    Args:
        kind: Which rule.
        fractions: Shares of train, val and test, for random, users and time.
        days: First and last day of train, val and test, for days.
        seed: For random and users.
    """

    kind: Literal["random", "users", "time", "days", "reference", "none"]
    fractions: tuple[float, ...] = ()
    days: tuple[tuple[int, int], ...] = ()
    seed: int = 0

    @property
    def needs_rows(self) -> bool:
        """Whether `bounds` needs the number of rows (a first pass over the log)."""
        return self.kind in ("time", "reference")

    @property
    def needs_times(self) -> bool:
        """Whether `bounds` needs the distribution of times, where the log has times."""
        return self.kind in ("time", "days")

    def bounds(self, totals: Totals) -> Assigner:
        """Return the rule with its bounds computed from `totals`.

        Raises:
            DataError: The log cannot be split like that: too few distinct times, or days without times.
        """
        if self.kind in ("random", "users"):
            return Assigner(self, cuts=np.cumsum(self.fractions)[:-1])
        if self.kind == "days":
            return Assigner(self, origin=self._first_day(totals))
        if self.kind == "reference":
            return Assigner(self, cuts=np.array(_reference_cuts(totals.rows)))
        if self.kind == "time" and totals.times is not None:
            return Assigner(self, cuts=self._time_cuts(totals.times))
        total = sum(totals.rows)
        return Assigner(self, cuts=np.round(np.cumsum(self.fractions)[:-1] * total))

    def _first_day(self, totals: Totals) -> int | None:
        if totals.times is not None:
            times, _ = totals.times.result()
            return int(times[0]) * totals.times.resolution // _DAY if len(times) else 0
        if len(totals.rows) < 2:
            raise DataError("--split days: this log has no times and is one file", "Give one input file for each day.")
        return None

    def _time_cuts(self, counts: TimeCounts) -> NDArray[np.float64]:
        times, rows = counts.result()
        share = np.cumsum(rows) / max(rows.sum(), 1)
        last = [int(np.argmin(np.abs(share - cut))) for cut in np.cumsum(self.fractions)[:-1]] if len(rows) else []
        if len({*last, len(times) - 1}) < len(self.fractions):
            raise DataError(
                f"--split time: {len(times)} distinct times cannot be cut into {len(self.fractions)} such parts",
                "Rows of the same time stay together. Use --split random:0.8,0.1,0.1 instead.",
            )
        return np.asarray((times[last] + 1) * float(counts.resolution), dtype=np.float64)


@dataclass(frozen=True)
class Assigner:
    """A split with its bounds: assigns rows.

    Args:
        split: The rule.
        cuts: Lower bounds of val and of test.
        origin: The day (since 1970) that counts as day 0; None when a file is a day.
    """

    split: Split
    cuts: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    origin: int | None = None

    def __call__(self, rows: NDArray[np.int64], file: int, times: NDArray[np.int64] | None) -> NDArray[np.int8]:
        """Return, for n rows at positions `rows` of all input, an index into SPLITS, or -1 for a row to leave out.

        Args:
            rows: Positions counted over all files, bad rows included: independent of how the log is cut into blocks;
                for users, the keys of the rows' users.
            file: Index of their file.
            times: Their times in seconds, or None.
        """
        kind = self.split.kind
        if kind in ("random", "users"):
            return np.searchsorted(self.cuts, uniform(rows, self.split.seed), side="right").astype(np.int8)
        if kind == "days":
            days = np.full(len(rows), file) if self.origin is None or times is None else times // _DAY - self.origin
            found = np.full(len(rows), -1, np.int8)
            for index, (first, last) in enumerate(self.split.days):
                found[(days >= first) & (days <= last)] = index
            return found
        if kind == "reference":  # the last day: first half test, second half val
            return np.array([0, 2, 1], np.int8)[np.searchsorted(self.cuts, rows, side="right")]
        order = rows if times is None else times
        return np.searchsorted(self.cuts, order, side="right").astype(np.int8)


def _reference_cuts(rows: list[int]) -> list[int]:
    """Return the first row of the last day and of its second half (facebookresearch/dlrm, dlrm_data_pytorch.py).

    One file is the Kaggle log: 7 days of equal length, the first ones a row longer. Several are a day each.
    """
    total = sum(rows)
    last_day = rows[-1] if len(rows) > 1 else total // 7
    return [total - last_day, total - last_day + (last_day + 1) // 2]


def parse_split(text: str, seed: int = 0) -> Split:
    """Read a split as the command line writes it; DataError says what is wrong."""
    kind, _, values = text.partition(":")
    try:
        if kind in ("reference", "none") and not values:
            return Split("reference" if kind == "reference" else "none", seed=seed)
        parts = values.split(",")
        if not 1 <= len(parts) <= 3:
            raise ValueError(f"{len(parts)} parts")
        if kind == "days":
            spans = [part.partition("-") for part in parts]
            days = tuple((int(first), int(last or first)) for first, _, last in spans)
            if any(first > last for first, last in days) or len(days) > len(set().union(*({d} for d in days))):
                raise ValueError("days in the wrong order")
            return Split("days", days=days, seed=seed)
        if kind in ("random", "users", "time"):
            fractions = tuple(float(part) for part in parts)
            if any(fraction <= 0 for fraction in fractions) or not math.isclose(sum(fractions), 1.0, abs_tol=1e-6):
                raise ValueError("the shares do not sum to 1")
            names: dict[str, Literal["random", "users", "time"]] = {"random": "random", "users": "users"}
            return Split(names.get(kind, "time"), fractions=fractions, seed=seed)
    except ValueError as error:
        raise DataError(f"--split {text}: {error}", _HINT) from error
    raise DataError(f"--split {text}: there is no such split", _HINT)
