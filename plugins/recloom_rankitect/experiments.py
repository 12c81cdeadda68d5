"""`recloom reproduce rankitect`: all search methods on the same ground, and what they find beside hand-made models."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recloom import plots
from recloom.document import Report
from recloom.experiment import Budget, Claim, Experiment, Lab
from recloom.plugins import catalog
from recloom_rankitect.contest import HAND_MADE, Race, race, random_graphs, retrain

METHODS = ("random", "evolution", "nsga2", "predictor", "rl", "oneshot", "dnas")
SPACES = ("BlockSpace", "EngineersSpace")
GRAPHS = 1000


@dataclass(frozen=True)
class Setting:
    """The scale of the experiment.

    Args:
        rows: Training, validation and test rows that are generated.
        race: What each search may use.
        methods: The methods.
        spaces: The spaces.
        retrained: How many of the best candidates of all searches are retrained.
    """

    rows: tuple[int, int, int]
    race: Race
    methods: tuple[str, ...] = METHODS
    spaces: tuple[str, ...] = SPACES
    retrained: int = 6


SETTINGS: dict[Budget, Setting] = {
    "small": Setting((300_000, 50_000, 100_000), Race(trials=48, rows=30_000, eval_rows=30_000, steps=400)),
    "full": Setting(
        (20_000_000, 1_000_000, 1_000_000), Race(trials=400, rows=1_000_000, eval_rows=200_000, steps=20_000)
    ),
}
SCOPE: dict[Budget, str] = {
    "small": "Generated clicks whose best possible NE is known; 48 candidates a search, each trained on 30,000 rows. "
    "Shows whether methods find better trade-offs than random search at equal compute. It can't show what hundreds of "
    "candidates on real logs would.",
    "full": "400 candidates a search, each trained on a million rows; with --data, of real logs. Days on two cores.",
}


class RankitectExperiment(Experiment):
    """Random, evolutionary, predictor-based, reinforcement, one-shot and differentiable search at equal compute."""

    paper = (
        "Wen et al. 2023, Rankitect: Ranking Architecture Search Battling World-class Engineers at Meta Scale, "
        "arXiv 2311.08430"
    )
    summary = (
        "Searches for NE and multiply-accumulates in both spaces, by every method with the same number of training "
        "samples, supernets' included. Then the best of all searches are trained on all rows beside hand-made models."
    )
    scope = SCOPE

    def run(self, lab: Lab, report: Report) -> list[Claim]:
        """Measure; return the claims."""
        setting = SETTINGS[lab.budget]
        claims = _space_claims(lab)
        runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for space in setting.spaces:
            runs[space] = {}
            for method in setting.methods:
                key = f"{space}-{method}"

                def measure(seed: int, space: str = space, method: str = method) -> dict[str, Any]:
                    folder = lab.out / "searches" / f"{space}-{method}-seed{seed}"
                    return race(setting.race, space, method, seed, data_of(setting, seed, lab.data), folder)

                runs[space][method] = lab.each_seed(key, measure)
            claims += _method_claims(space, runs[space], report)
        claims += _best_claims(lab, setting, runs, report)
        return claims


def data_of(setting: Setting, seed: int, folder: Path | None) -> Any:
    """Return the data of a seed: generated, or those in `folder`."""
    modules = catalog().datamodules
    if folder is not None:
        real: Callable[..., Any] = modules.load("ParquetClicks")
        return real(folder, batch_size=512, seed=seed)
    generated: Callable[..., Any] = modules.load("SyntheticClicks")
    train, val, test = setting.rows
    return generated(train, val, test, 512, num_workers=0, seed=seed)


def _space_claims(lab: Lab) -> list[Claim]:
    found = lab.once("random-graphs", lambda: random_graphs(GRAPHS, 30))
    return [
        Claim(
            "graphs",
            "random graphs of up to 30 nodes that run, train and survive canonicalisation",
            found["good"],
            f">= {GRAPHS}",
        ),
        Claim("sampling", "time to sample a valid graph", found["sample_ms"], "< 1", unit="ms"),
    ]


def _method_claims(space: str, runs: dict[str, list[dict[str, Any]]], report: Report) -> list[Claim]:
    """Tell the hypervolumes of a space's searches; return a claim for each method."""
    report.section(f"Methods on {space}")
    seeds = range(len(runs["random"]))
    volumes = {method: [run["hypervolume"] for run in found] for method, found in runs.items()}
    rows = []
    for method, found in runs.items():
        samples = statistics.fmean(run["samples"] for run in found)
        finite = [min(ne for ne, _ in run["values"]) for run in found]
        cells = (
            statistics.median(volumes[method]),
            min(volumes[method]),
            max(volumes[method]),
            statistics.median(finite),
        )
        rows.append((method, *(f"{cell:.5f}" for cell in cells), len(found[0]["values"]), f"{samples / 1e6:.2f}"))
    header = ("method", "hypervolume, median", "least", "largest", "best NE, median", "candidates", "million samples")
    report.table(header, rows, "Of NE below 1 and MACs below the limit, as a share of the box; over seeds.")
    curves = {method: (found[0]["course"][0], found[0]["course"][1]) for method, found in runs.items()}
    report.plot(f"course-{space}", plots.lines({"hypervolume": curves}, "training samples"), "Seed 0.")
    points = {m: ([v[1] for v in f[0]["front"]], [v[0] for v in f[0]["front"]]) for m, f in runs.items()}
    report.plot(f"fronts-{space}", plots.scatter({"fronts": points}, ["MACs"], "NE"), "Fronts of seed 0.")
    claims = []
    for method in runs:
        if method != "random":
            ratio = statistics.median(volumes[method][s] / volumes["random"][s] for s in seeds)
            text = f"{method} beats random search on {space} at equal compute (ratio of hypervolume, median of seeds)"
            claims.append(Claim(f"{space.removesuffix('Space').lower()}-{method}", text, ratio, "> 1"))
    return claims


def _best_claims(
    lab: Lab, setting: Setting, runs: dict[str, dict[str, list[dict[str, Any]]]], report: Report
) -> list[Claim]:
    """Retrain the best candidates and the hand-made models; return the claim on NE at half the MACs."""
    seed = lab.seeds[0]
    place = list(lab.seeds).index(seed)

    def measure() -> dict[str, Any]:
        sections = [s for found in runs.values() for run in found.values() for s in run[place]["best"]]
        return retrain(sections, setting.retrained, data_of(setting, seed, lab.data), seed)

    found = lab.once(f"retrained-seed{seed}", measure)
    hand = {name: found[name] for name in HAND_MADE}
    best_hand = min(hand, key=lambda name: hand[name]["val_ne"])
    half = {n: m for n, m in found.items() if n not in hand and m["macs"] <= hand[best_hand]["macs"] / 2}
    report.section("Found and hand-made models, trained on all rows")
    order = sorted(found, key=lambda name: found[name]["ne"])
    rows = [(n, f"{found[n]['ne']:.5f}", f"{found[n]['auc']:.5f}", f"{found[n]['macs']:,.0f}") for n in order]
    report.table(
        ("model", "test NE", "test AUC", "MACs"), rows, f"The oracle's NE: {found[order[0]]['oracle_ne']:.5f}."
    )
    if not half:
        report.text(f"No candidate has at most half the MACs of {best_hand}.")
        return []
    best = min(half, key=lambda name: half[name]["val_ne"])
    text = f"the best found model of at most half the MACs of {best_hand}, the best hand-made one (ratio of test NE)"
    return [Claim("half-the-flops", text, half[best]["ne"] / hand[best_hand]["ne"], "<= 1")]
