"""`recloom reproduce nasrec`: what a search by the supernet finds, and how well supernets rank."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

from recloom import plots
from recloom.document import Report
from recloom.errors import RecloomError
from recloom.experiment import Budget, Claim, Experiment, Lab

if TYPE_CHECKING:
    from recloom_nasrec.comparison import Setting

SCOPE: dict[Budget, str] = {
    "small": "300,000 generated clicks a seed, three epochs; models of up to 4 blocks in the small space, a supernet "
    "of 3,000 steps, 200 candidates ranked by it and 5 trained, against 16 random ones trained. It shows whether the "
    "search finds models for planted interactions. It cannot show what real click logs hold.",
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
        "The best of those on the validation rows is compared on the test rows, with the same training for all: with "
        "DLRM, DCN V2, and the best of random candidates trained from scratch (more training than the whole search "
        "used). The same random candidates tell how well supernets rank that were trained in the paper's way and in "
        "two others."
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
        _tell(report, lab, runs)
        return _claims(runs)


def _small() -> Setting:
    from recloom_nasrec.comparison import Setting

    cardinalities = (30, 30, 20, 20, 12, 12, 12, 12, 8, 8)
    world = {
        "cardinalities": cardinalities,
        "multi_hot": {},
        "num_pairs": 4,
        "pair_rank": 1,
        "interaction": 0.8,
        "cross": 0.5,
        "signal": 1.8,
    }
    return Setting("small", 4, (16, 32, 64, 128, 256), (8, 16, 32), (300_000, 60_000, 100_000), world)


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


SETTINGS = {"small": _small, "full": _full}


def _gap(run: dict[str, Any], name: str) -> float:
    """Return how far the test NE is above the best possible, in percent."""
    model = run["models"][name]
    return 100 * (float(model["test"]) / float(model["oracle"]) - 1)


def _kendall(run: dict[str, Any], strategy: str) -> float:
    from scipy import stats

    return float(stats.kendalltau(run["ranked"][strategy], run["scratch"]).statistic)


def _tau_difference(runs: Runs, other: str, draws: int = 2000) -> tuple[float, float, float]:
    """Return by how much the paper's way has the larger Kendall tau in the mean of seeds, and a bootstrap interval.

    Candidates are drawn anew within each seed, the same for both supernets.
    """
    from scipy import stats

    rng = np.random.default_rng(0)

    def once(resample: bool) -> float:
        gaps = []
        for run in runs:
            count = len(run["scratch"])
            rows = rng.integers(count, size=count) if resample else np.arange(count)
            y, a, b = (np.array(v)[rows] for v in (run["scratch"], run["ranked"][PAPER], run["ranked"][other]))
            gaps.append(stats.kendalltau(a, y).statistic - stats.kendalltau(b, y).statistic)
        return float(np.mean(gaps))

    drawn = [once(True) for _ in range(draws)]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return once(False), float(low), float(high)


def _claims(runs: Runs) -> list[Claim]:
    claims = []
    for name in ("DLRM", "DCN V2", "random search"):
        key = name.split()[0].lower()
        gain = statistics.fmean(100 * run["ahead"][name][0] / run["models"]["found"]["test"] for run in runs)
        text = f"the found model has a lower test NE than {name} (how much higher that is, mean of seeds)"
        claims.append(Claim(f"beats-{key}", text, gain, "> 0", "%"))
        least = min(run["ahead"][name][1] for run in runs)
        text = f"the same with every seed: the least lower end of the paired bootstrap intervals against {name}"
        claims.append(Claim(f"beats-{key}-clearly", text, least, "> 0"))
    for other in runs[0]["ranked"]:
        if other != PAPER:
            text = f"{PAPER} training ranks better than {other} (Kendall's tau, difference)"
            key = "single-connection" if "single-connection" in other else "any-operator"
            claims.append(Claim(f"tau-{key}", text, _tau_difference(runs, other)[0], "> 0"))
    return claims


def _tell(report: Report, lab: Lab, runs: Runs) -> None:
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
    taus = [(seed, *(f"{_kendall(run, n):.3f}" for n in names)) for seed, run in zip(lab.seeds, runs, strict=True)]
    count = len(runs[0]["scratch"])
    report.table(("seed", *names), taus, f"Kendall's tau of NE by the supernet and from scratch, {count} candidates.")
    differences = [
        (other, "{:+.3f} [{:+.3f}, {:+.3f}]".format(*_tau_difference(runs, other))) for other in names if other != PAPER
    ]
    report.table(("tau of the paper's way - that of", "mean of seeds, 95% interval"), differences)
    series = {
        name: {f"seed {seed}": (run["ranked"][name], run["scratch"]) for seed, run in zip(lab.seeds, runs, strict=True)}
        for name in names
    }
    report.plot("ranking", plots.scatter(series, ["NE by the supernet"] * len(names), "NE from scratch"))
    report.section("Where time went")
    spent = [
        (seed, search, phase, f"{seconds:.0f}")
        for seed, run in zip(lab.seeds, runs, strict=True)
        for search, phases in run["seconds"].items()
        for phase, seconds in phases.items()
    ]
    report.table(("seed", "search", "part", "seconds"), spent)
