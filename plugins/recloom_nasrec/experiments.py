"""`recloom reproduce nasrec`: what a search by the supernet finds, and how well supernets rank."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from recloom import plots
from recloom.document import Report
from recloom.errors import RecloomError
from recloom.experiment import Budget, Claim, Experiment, Lab

if TYPE_CHECKING:
    from recloom.search.compare import Difference
    from recloom_nasrec.comparison import Setting

SCOPE: dict[Budget, str] = {
    "small": "60,000 generated clicks a seed, three epochs; the same space and world as medium, a supernet of 2,000 "
    "steps, 48 candidates ranked by it and 3 trained, against 6 random ones trained. It shows that every part runs "
    "and, where models differ by percents, which is better. It cannot show how well supernets rank: six candidates "
    "say next to nothing of that.",
    "medium": "200,000 generated clicks a seed, three epochs; models of up to 4 blocks in the small space and of at "
    "most 6,000 multiply-accumulates, a supernet of 4,000 steps, 120 candidates ranked by it and 5 trained, against 12 "
    "random ones trained, and DLRM and DCN V2 in three shapes each, all under the same limit. It shows whether the "
    "search finds small models for planted interactions. It cannot show what real click logs hold.",
    "full": "4 million generated clicks a seed; the full space of 7 blocks at its published widths, a supernet of "
    "20,000 steps, 2,048 candidates ranked and 15 trained, as published: days on two cores.",
}
Runs = list[dict[str, Any]]
PAPER = "single-operator any-connection"


class NASRecExperiment(Experiment):
    """A search by the supernet beside DLRM, DCN V2 and random search; three ways to train the supernet."""

    paper = (
        "Zhang et al. 2022, NASRec: Weight Sharing Neural Architecture Search for Recommender Systems, arXiv 2207.07187"
    )
    summary = (
        "Evolution ranks candidates by a supernet with the last layer fine-tuned; the best are trained from scratch. "
        "The best of those on the validation rows is compared on the test rows, with the same training for all and "
        "under the same limit on multiply-accumulates: with "
        "DLRM, DCN V2, and the best of random candidates trained from scratch, which take more training samples than "
        "the supernet and the retraining together. The same random candidates tell how well supernets rank that were "
        "trained in the paper's way and in two others."
    )
    scope = SCOPE

    def run(self, lab: Lab, report: Report) -> list[Claim]:
        """Measure with every seed; return the claims."""
        if lab.data is not None:
            raise RecloomError(
                "reproduce nasrec measures on generated clicks, whose best possible NE is known", "Leave out --data."
            )
        from recloom_nasrec.comparison import compare

        setting = SETTINGS[lab.budget]()
        folder = lab.out / "searches" / lab.fingerprint
        runs = lab.each_seed("search", lambda seed: compare(setting, seed, folder / f"seed{seed}"))
        gaps = _gaps(runs)
        _tell(report, lab, runs, gaps)
        return _claims(runs, gaps)


def _medium() -> Setting:
    from recloom_nasrec.comparison import Setting

    cardinalities = (12, 12, 12, 12, 8, 8, 8, 8)
    world = {
        "cardinalities": cardinalities,
        "multi_hot": {},
        "num_pairs": 3,
        "pair_rank": 1,
        "interaction": 0.8,
        "cross": 0.4,
        "signal": 1.8,
    }
    widths, rows = (8, 16, 32, 64), (200_000, 60_000, 300_000)
    searched: dict[str, Any] = {"steps": 4000, "trials": 120, "retrain": 5, "candidates": 12, "limit": 6000}
    return Setting("small", 4, widths, (2, 4, 8), rows, world, **searched)


def _small() -> Setting:
    rows = (60_000, 30_000, 60_000)
    return replace(_medium(), rows=rows, steps=2000, trials=48, finetune_steps=50, retrain=3, candidates=6)


def _full() -> Setting:
    from recloom_nasrec.comparison import Setting

    widths = (16, 32, 64, 128, 256, 512, 768, 1024)
    rows, world = (4_000_000, 400_000, 400_000), {"interaction": 0.8, "cross": 0.5, "signal": 1.8}
    searched: dict[str, Any] = {
        "steps": 20_000,
        "warmup_steps": 8_000,
        "trials": 2048,
        "finetune_steps": 500,
        "retrain": 15,
    }
    return Setting("full", 7, widths, (16, 32, 48, 64), rows, world, 1, candidates=48, **searched)


SETTINGS = {"small": _small, "medium": _medium, "full": _full}


def _gap(run: dict[str, Any], name: str) -> float:
    """Return how far the test NE is above the best possible, in percent."""
    model = run["models"][name]
    return 100 * (float(model["test"]) / float(model["oracle"]) - 1)


def _gaps(runs: Runs) -> dict[str, Difference]:
    """Return by how much the paper's training ranks better than each other, in Kendall's tau."""
    from recloom.search.ranking import kendall_gap

    ranked = {name: [run["ranked"][name] for run in runs] for name in runs[0]["ranked"]}
    scratch = [run["scratch"] for run in runs]
    return {name: kendall_gap(ranked[PAPER], ours, scratch) for name, ours in ranked.items() if name != PAPER}


def _claims(runs: Runs, gaps: Mapping[str, Difference]) -> list[Claim]:
    claims = []
    for name in ("DLRM", "DCN V2", "random search"):
        key = name.split()[0].lower()
        gain = statistics.fmean(100 * run["ahead"][name][0] / run["models"]["found"]["test"] for run in runs)
        text = f"the found model has a lower test NE than {name} (how much higher that is, mean of seeds)"
        claims.append(Claim(f"beats-{key}", text, gain, "> 0", "%"))
        least = min(run["ahead"][name][1] for run in runs)
        text = f"the same with every seed: the least lower end of the paired bootstrap intervals against {name}"
        claims.append(Claim(f"beats-{key}-clearly", text, least, "> 0"))
    for other, gap in gaps.items():
        text = f"{PAPER} training ranks better than {other} (Kendall's tau, difference)"
        key = "single-connection" if "single-connection" in other else "any-operator"
        claims.append(Claim(f"tau-{key}", text, gap.mean, "> 0"))
    return claims


def _tell(report: Report, lab: Lab, runs: Runs, gaps: Mapping[str, Difference]) -> None:
    from recloom.search.ranking import correlations

    report.section("Models")
    rows: list[tuple[Any, ...]] = []
    for seed, run in zip(lab.seeds, runs, strict=True):
        for name, model in run["models"].items():
            ahead = "{:+.5f} [{:+.5f}, {:+.5f}]".format(*run["ahead"][name]) if name in run["ahead"] else ""
            shown = (f"{model['val']:.5f}", f"{model['test']:.5f}", f"{_gap(run, name):.2f}", f"{model['macs']:,.0f}")
            rows.append((seed, name, *shown, ahead))
    header = ("seed", "model", "val NE", "test NE", "above the best possible, %", "MACs", "test NE - found's")
    report.table(header, rows, "With 95% intervals of a paired bootstrap over test rows.")
    report.section("Ranking")
    names = list(runs[0]["ranked"])
    taus = []
    for seed, run in zip(lab.seeds, runs, strict=True):
        each = (correlations(run["ranked"][name], run["scratch"], seed)["Kendall"] for name in names)
        taus.append((seed, *(f"{c.mean:.3f} [{c.low:.3f}, {c.high:.3f}]" for c in each)))
    count = len(runs[0]["scratch"])
    report.table(("seed", *names), taus, f"Kendall's tau of NE by the supernet and from scratch, {count} candidates.")
    differences = [(other, f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]") for other, gap in gaps.items()]
    report.table(("tau of the paper's way - that of", "mean of seeds, 95% interval"), differences)
    series = {
        name: {f"seed {seed}": (run["ranked"][name], run["scratch"]) for seed, run in zip(lab.seeds, runs, strict=True)}
        for name in names
    }
    report.plot("ranking", plots.scatter(series, ["NE by the supernet"] * len(names), "NE from scratch"))
    report.section("What the searches took")
    spent = [
        (seed, search, phase, f"{seconds:.0f}", f"{samples:,}")
        for seed, run in zip(lab.seeds, runs, strict=True)
        for search, phases in run["spent"].items()
        for phase, (seconds, samples) in phases.items()
    ]
    told = "Samples: those that whole networks were trained on, once for each pass. Ranking trains last layers alone."
    report.table(("seed", "search", "part", "seconds", "samples"), spent, told)
