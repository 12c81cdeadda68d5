"""`recloom reproduce rankitect`: all search methods on the same ground, and what they find beside hand-made models."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recloom.document import Report
from recloom.experiment import Budget, Claim, Experiment, Lab
from recloom.optim import OptimizerConfig
from recloom.plugins import catalog
from recloom_rankitect import tables
from recloom_rankitect.contest import WORST_NE, Race, race
from recloom_rankitect.hand_made import Challenge, challenge
from recloom_rankitect.random_graphs import random_graphs

METHODS = ("random", "evolution", "predictor", "rl", "oneshot", "dnas")
SPACES = ("BlockSpace", "EngineersSpace")
GRAPHS = 1000
# few rows suffice to tell models apart where the signal is strong and categories have few ids
WORLD = {
    "num_dense": 6,
    "cardinalities": (300, 200, 100, 60, 40, 30, 20, 10),
    "multi_hot": {},
    "num_pairs": 6,
    "signal": 2.0,
    "interaction": 0.6,
}
FAST = OptimizerConfig("Adam", 0.005, {}, "rowwise_adagrad", 0.1, 1e-8, clip_norm=5.0)


@dataclass(frozen=True)
class Setting:
    """The scale of the experiment.

    Args:
        rows: Training, validation and test rows that are generated.
        race: What each search may use.
        challenge: The search that is compared with hand-made models.
        methods: The methods.
        spaces: The spaces.
        batch_size: Rows of a training batch.
        world: Options of SyntheticClicks.
        challenges: For how many of the seeds the latter is done.
        graphs: Random graphs that are built and trained.
    """

    rows: tuple[int, int, int]
    race: Race
    challenge: Challenge
    methods: tuple[str, ...] = METHODS
    spaces: tuple[str, ...] = SPACES
    batch_size: int = 128
    world: Mapping[str, Any] = field(default_factory=dict)
    challenges: int = 3
    graphs: int = GRAPHS


SETTINGS: dict[Budget, Setting] = {
    "small": Setting(
        (128_000, 20_000, 50_000),
        Race(32, 9_600, 6_144, 300, initial=8, explored=48, optimizer=FAST),
        Challenge(96, 25_600, 5_000, 20, retrained=4, optimizer=FAST),
        world=WORLD,
        challenges=1,
        graphs=300,
    ),
    "medium": Setting(
        (256_000, 20_000, 100_000),
        Race(64, 12_800, 8_192, 1000, optimizer=FAST),
        Challenge(320, 51_200, 10_000, retrained=12, optimizer=FAST),
        world=WORLD,
    ),
    "full": Setting(
        (20_000_000, 1_000_000, 1_000_000),
        Race(400, 1_000_000, 200_000, 20_000, initial=32, explored=1000),
        Challenge(1000, 2_000_000, 200_000, 64, 10),
        methods=(*METHODS[:2], "nsga2", *METHODS[2:]),
        batch_size=512,
        challenges=5,
    ),
}
SAMPLE = Setting(
    (0, 0, 0),
    Race(32, 4_800, 1_600, 400, initial=8, explored=64, optimizer=FAST),
    Challenge(48, 4_800, 1_600, 16, optimizer=FAST),
    batch_size=64,
)
"""The small and medium budgets on real logs, given by --data: samples of some thousand rows."""

SCOPE: dict[Budget, str] = {
    "small": "32 candidates a search, each trained on 9,600 generated clicks, 75 steps; against hand-made models 96 "
    "candidates of 25,600 clicks; 300 random graphs. It shows that every method runs at equal compute; which is better "
    "it cannot show, for one seed of so few candidates is mostly luck. With --data as medium.",
    "medium": "Generated clicks whose best possible NE is known; 64 candidates a search, each trained on 12,800 rows: "
    "100 steps; against hand-made models 320 candidates of 51,200 rows. With --seeds 0,1,2,3,4 about an hour of "
    "one core. Shows whether methods find better trade-offs than random search at equal compute when there is little "
    "of it. It can't show what hundreds of candidates on real logs would. With --data 32 candidates a search, each "
    "trained on at most 4,800 rows.",
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
        "samples, supernets' included. Then a search for models of at most half the MACs of the best hand-made one; "
        "what it finds is trained on all rows beside those."
    )
    scope = SCOPE

    def run(self, lab: Lab, report: Report) -> list[Claim]:
        """Measure; return the claims."""
        setting = SETTINGS[lab.budget] if lab.data is None or lab.budget == "full" else SAMPLE
        claims = _space_claims(lab, setting.graphs)
        runs: dict[str, dict[str, list[dict[str, Any]]]] = {space: {} for space in setting.spaces}
        for space in setting.spaces:
            for method in setting.methods:
                runs[space][method] = lab.each_seed(f"{space}-{method}", _race(lab, setting, space, method))
            tables.methods(report, space, runs[space], WORST_NE)
            claims += _method_claims(space, runs[space])
        return claims + _challenge_claims(lab, setting, report)


def data_of(setting: Setting, seed: int, folder: Path | None, batch_size: int | None = None) -> Any:
    """Return the data of a seed: generated, or those in `folder`."""
    modules = catalog().datamodules
    size = batch_size or setting.batch_size
    if folder is not None:
        real: Callable[..., Any] = modules.load("ParquetClicks")
        return real(folder, batch_size=size, num_workers=0, seed=seed)
    generated: Callable[..., Any] = modules.load("SyntheticClicks")
    train, val, test = setting.rows
    return generated(train, val, test, size, num_workers=0, seed=seed, **setting.world)


def _race(lab: Lab, setting: Setting, space: str, method: str) -> Callable[[int], dict[str, Any]]:
    def measure(seed: int) -> dict[str, Any]:
        place = lab.out / "searches" / lab.fingerprint
        data = data_of(setting, seed, lab.data)
        memory = place / f"{space}-seed{seed}.json"
        folder = place / f"{space}-{method}-seed{seed}"
        return race(setting.race, space, method, seed, data, folder, memory, WORST_NE)

    return measure


def _space_claims(lab: Lab, graphs: int) -> list[Claim]:
    found = lab.once("random-graphs", lambda: random_graphs(graphs, 30))
    text = "random graphs of up to 30 nodes that run, train and survive canonicalisation"
    return [
        Claim("graphs", text, found["good"], f">= {graphs}"),
        Claim("sampling", "time to sample a valid graph", found["sample_ms"], "< 1", unit="ms"),
    ]


def _method_claims(space: str, runs: dict[str, list[dict[str, Any]]]) -> list[Claim]:
    """Return a claim for each method: that it beats random search."""
    claims = []
    for method in runs:
        if method != "random":
            ratio = statistics.median(tables.ratios(runs, method))
            text = f"{method} beats random search on {space} at equal compute (ratio of hypervolume, median of seeds)"
            claims.append(Claim(f"{space.removesuffix('Space').lower()}-{method}", text, ratio, "> 1"))
    return claims


def _challenge_claims(lab: Lab, setting: Setting, report: Report) -> list[Claim]:
    """Search for models of half the MACs of the best hand-made one; return the claim on their NE."""

    def measure(seed: int) -> dict[str, Any]:
        folder = lab.out / "searches" / lab.fingerprint / f"challenge-seed{seed}"
        return challenge(
            setting.challenge, data_of(setting, seed, lab.data, 2 * setting.batch_size), seed, folder, WORST_NE
        )

    seeds = lab.seeds[: setting.challenges]
    rounds = [lab.once(f"challenge-seed{seed}", lambda seed=seed: measure(seed)) for seed in seeds]  # type: ignore[misc]
    ratios = tables.challenged(report, rounds)
    text = "the best found model of at most half the MACs of the best hand-made one, over its test NE (median of seeds)"
    return [Claim("half-the-flops", text, statistics.median(ratios), "<= 1")]
