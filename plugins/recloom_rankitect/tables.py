"""Tables and drawings of the experiment's report."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from recloom import plots
from recloom.document import Report
from recloom.features import FeatureSchema
from recloom.search.drawing import draw_program
from recloom.search.lowering import lower
from recloom_rankitect.contest import union
from recloom_rankitect.hand_made import HAND_MADE, best_of, build

Runs = dict[str, list[dict[str, Any]]]
"""The searches of one space: for each method those of the seeds."""


def ratios(runs: Runs, method: str) -> list[float]:
    """Return a method's hypervolume over random search's, for each seed."""
    return [
        ours["hypervolume"] / theirs["hypervolume"] for ours, theirs in zip(runs[method], runs["random"], strict=True)
    ]


def methods(report: Report, space: str, runs: Runs, worst: float) -> None:
    """Tell hypervolumes, anytime curves, fronts and costs of a space's searches."""
    report.section(f"Methods on {space}")
    together = [union([found[seed] for found in runs.values()], space, worst) for seed in range(len(runs["random"]))]
    rows = []
    for method, found in runs.items():
        volumes, over = [run["hypervolume"] for run in found], ratios(runs, method)
        share = statistics.median(
            union([run], space, worst) / whole for run, whole in zip(found, together, strict=True)
        )
        best = statistics.median(min(ne for ne, _ in run["values"]) for run in found)
        candidates = statistics.median(len(run["course"][0]) for run in found)
        samples = statistics.fmean(run["samples"] for run in found)
        rows.append(
            (method, f"{statistics.median(volumes):.4f}", f"{min(volumes):.4f} .. {max(volumes):.4f}",
             f"{statistics.median(over):.3f}", f"{min(over):.3f} .. {max(over):.3f}", f"{share:.3f}", f"{best:.5f}",
             int(candidates), f"{samples / 1e6:.2f}")
        )  # fmt: skip
    header = ("method", "hypervolume", "over seeds", "over random's", "over seeds", "of all methods' front", "best NE",
              "candidates", "million samples")  # fmt: skip
    report.table(
        header, rows,
        "Medians over seeds. Hypervolume of NE and log10 MACs, as a share of the box between the oracle's NE and 1, and"
        " between the least MACs that count and the limit. Samples are those that went through training, supernets and"
        " baselines beside them included; results of candidates that several methods tried are computed once.",
    )  # fmt: skip
    curves = {method: _median_course(found) for method, found in runs.items()}
    report.plot(f"course-{space}", plots.lines({"hypervolume": curves}, "training samples"), "Medians over seeds.")
    points = {m: ([v[1] for v in f[0]["front"]], [v[0] for v in f[0]["front"]]) for m, f in runs.items()}
    report.plot(f"fronts-{space}", plots.scatter({"fronts": points}, ["MACs"], "NE"), "Fronts of the first seed.")


def _median_course(found: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Return the samples of the first seed's candidates, and the median of all seeds' hypervolumes after as many."""
    count = min(len(run["course"][1]) for run in found)
    curve = np.median([run["course"][1][:count] for run in found], axis=0)
    return found[0]["course"][0][:count], curve.tolist()


def challenged(report: Report, rounds: Sequence[dict[str, Any]]) -> list[float]:
    """Tell what was trained on all rows; return for each seed the best found model's test NE over the hand-made's.

    The best are those with the lowest validation NE.
    """
    report.section("Found and hand-made models, trained on all rows")
    ratios, rows = [], []
    for number, models in enumerate(rounds):
        hand = best_of({name: models[name] for name in HAND_MADE})
        found = best_of({name: model for name, model in models.items() if name not in HAND_MADE})
        ratios.append(models[found]["ne"] / models[hand]["ne"])
        for name in sorted(models, key=lambda name: models[name]["ne"]):
            m = models[name]
            gap = f"{100 * (m['ne'] / m['oracle_ne'] - 1):.2f}" if "oracle_ne" in m else ""
            chosen = "best hand-made" if name == hand else "best found" if name == found else ""
            rows.append((number, name, f"{m['ne']:.5f}", f"{m['auc']:.5f}", gap, f"{m['macs']:,.0f}", chosen))
    header = ("seed no.", "model", "test NE", "test AUC", "above the oracle's NE, %", "MACs", "by validation NE")
    report.table(header, rows)
    for number, models in enumerate(rounds):
        name = best_of({name: model for name, model in models.items() if name not in HAND_MADE})
        model = build(models[name]["section"], FeatureSchema.from_dict(models[name]["schema"]))
        report.plot(f"best-{number}", draw_program(lower(model)), f"The best found model of seed no. {number}.")
    return ratios
