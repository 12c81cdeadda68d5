"""A paper's claims: what was measured of each, and the range that makes it hold. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_ONE_SIDED = re.compile(rf"\s*(>=|<=|>|<)\s*{_NUMBER}\s*")
_RANGE = re.compile(rf"\s*{_NUMBER}\s*\.\.\s*{_NUMBER}\s*")


@dataclass(frozen=True)
class Target:
    """A range that a measured number must lie in.

    Args:
        text: ">= 1.0", "<= 1.015", "> 0", "< 0", or "0.9 .. 1.1" (both ends included).
    """

    text: str

    def __post_init__(self) -> None:
        if not (_ONE_SIDED.fullmatch(self.text) or _RANGE.fullmatch(self.text)):
            raise ValueError(f"target {self.text!r} is neither a comparison ('>= 1.0') nor a range ('0.9 .. 1.1')")

    def holds(self, measured: float) -> bool:
        """Return whether `measured` lies in the range; a NaN lies in none."""
        if match := _ONE_SIDED.fullmatch(self.text):
            bound = float(match[2])
            return {
                ">=": measured >= bound,
                "<=": measured <= bound,
                ">": measured > bound,
                "<": measured < bound,
            }[match[1]]
        low, high = (float(end) for end in self.text.split(".."))
        return low <= measured <= high


@dataclass(frozen=True)
class Claim:
    """One statement of a paper, with what was measured of it in this run.

    Args:
        id: Short and stable, by which reports and tests refer to it.
        claim: The statement in one sentence.
        measured: The number measured in this run.
        target: The range that makes the claim hold (see `Target`).
        unit: Unit of `measured`, `paper` and `target`; "" for a ratio.
        paper: The published figure, or None if there is none to compare with.
    """

    id: str
    claim: str
    measured: float
    target: str
    unit: str = ""
    paper: float | None = None

    def __post_init__(self) -> None:
        Target(self.target)

    @property
    def holds(self) -> bool:
        """Whether `measured` meets `target`."""
        return Target(self.target).holds(self.measured)


CLAIM_HEADER = ("claim", "paper", "measured", "target", "unit", "holds")


def claim_table(rows: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return the rows of claims.json as cells under `CLAIM_HEADER`."""
    return [
        (f"{row['id']}: {row['claim']}", *(row[name] for name in CLAIM_HEADER[1:-1]), "yes" if row["holds"] else "NO")
        for row in rows
    ]
