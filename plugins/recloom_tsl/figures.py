"""What the experiment shows of runs: means, spreads, intervals, and the cost of encoders."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import numpy as np

from recloom.document import Report
from recloom.experiment import Lab

Runs = dict[str, list[dict[str, Any]]]


def tell_cost(lab: Lab, report: Report) -> None:
    """Measure the encoders' cost against the length of the history."""
    from recloom_tsl.cost import LENGTHS, Cost, cost_table, growth

    rows = [Cost(*row) for row in lab.once("cost", lambda: [dataclasses.astuple(row) for row in cost_table()])]
    names = list(dict.fromkeys(row.encoder for row in rows))
    report.section("Cost against the length of the history")
    report.text("A training step (forward and backward) of the encoder alone, a sample; batch 64, steps of width 32.")
    header = ("encoder", *(f"L = {length}" for length in LENGTHS))
    for caption, column in (
        ("Median time in microseconds.", [round(row.microseconds, 1) for row in rows]),
        (
            "Thousands of floating-point operations of matrix products and attention.",
            [round(row.flops / 1e3) for row in rows],
        ),
        ("Peak memory in KiB.", [round(row.peak_bytes / 1024) for row in rows]),
    ):
        pairs = list(zip(rows, column, strict=True))
        report.table(header, [(n, *(v for row, v in pairs if row.encoder == n)) for n in names], caption)
    powers = {name: round(growth(rows, name), 2) for name in names}
    report.facts(powers, ("encoder", f"time grows as L to the power of (from {LENGTHS[-2]} to {LENGTHS[-1]})"))


def mean(runs: list[dict[str, Any]], key: str) -> float:
    """Return the mean of a figure over runs."""
    return statistics.fmean(run[key] for run in runs)


def auc(runs: list[dict[str, Any]]) -> str:
    """Return the mean AUC, with the standard deviation where there are several runs."""
    values = [run["auc"] for run in runs]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def over_oracle(runs: list[dict[str, Any]]) -> str:
    """Return the mean ratio of the NE to that of the true probabilities."""
    return f"{statistics.fmean(run['ne'] / run['oracle_ne'] for run in runs):.3f}"


def interval(differences: Any) -> str:
    """Return the mean and the 95% interval of resampled differences."""
    low, high = np.quantile(differences, (0.025, 0.975))
    return f"{differences.mean():+.2f} [{low:+.2f}, {high:+.2f}]"
