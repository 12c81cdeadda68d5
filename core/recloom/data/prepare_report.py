"""What a run of `recloom prepare` did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recloom.data.formats.base import SHOWN, BadRow, RawBlock
from recloom.errors import DataError
from recloom.features import FeatureSchema


@dataclass
class PrepareReport:
    """What was done.

    Args:
        split: The split that was used.
        rows: Rows of each split.
        left_out: Rows of days that the split does not name.
        counts: Of an event log: what was found, by name, see `recloom.data.events`.
        bad_rows: Malformed rows, left out.
        bad: The first few of them.
        cardinalities: Number of ids of each sparse feature.
        seconds: Wall time.
        peak_memory: The process's peak resident memory in bytes.
    """

    split: str
    rows: dict[str, int] = field(default_factory=dict)
    left_out: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    bad_rows: int = 0
    bad: list[BadRow] = field(default_factory=list)
    cardinalities: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory: int = 0
    _sums: dict[str, list[float]] = field(default_factory=dict)  # by split: weights, weighted labels

    def note(self, block: RawBlock, allowed: int) -> None:
        """Count the bad rows of `block`; DataError when there are more than `allowed` by now."""
        self.bad_rows += block.bad_rows
        self.bad = (self.bad + block.bad)[:SHOWN]
        if self.bad_rows <= allowed:
            return
        hint = "Correct the file, or let a number of bad rows be left out with --max-bad-rows N."
        if allowed == 0:
            raise DataError(str(self.bad[0]), hint)
        shown = "".join(f"\n  {row}" for row in self.bad)
        raise DataError(f"more than {allowed:,} bad rows (--max-bad-rows); the first of them:{shown}", hint)

    def count(self, split: str, part: pa.Table, schema: FeatureSchema) -> None:
        """Count the rows of `part`, written to `split`."""
        labels = part[schema.labels[0]].to_numpy().astype(np.float64)
        weights = part[schema.weight].to_numpy().astype(np.float64) if schema.weight else np.ones(len(labels))
        self.count_labels(split, labels, weights)

    def count_labels(self, split: str, labels: NDArray[Any], weights: NDArray[np.float64]) -> None:
        """Count rows of `split` with these labels and weights."""
        self.rows[split] = self.rows.get(split, 0) + len(labels)
        sums = self._sums.setdefault(split, [0.0, 0.0])
        sums[0] += float(weights.sum())
        sums[1] += float((labels * weights).sum())

    def label_mean(self, split: str = "") -> float | None:
        """Return the mean of the (first) label of a split, or of all rows, weighted where rows have weights.

        None: the rows have no labels.
        """
        if not self._sums:
            return None
        chosen = [self._sums[split]] if split else list(self._sums.values())
        return sum(sums[1] for sums in chosen) / max(sum(sums[0] for sums in chosen), 1e-300)
