"""Searches under one budget of training samples: what the experiment measures."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recloom.document import write_text
from recloom.optim import OptimizerConfig
from recloom.plugins import catalog
from recloom.search.costs import AnalyticCost
from recloom.search.evaluator import Evaluator, SearchContext
from recloom.search.evaluators.scratch import FromScratch
from recloom.search.evaluators.supernet import SupernetEvaluator
from recloom.search.evaluators.together import Together
from recloom.search.method import Observation, SearchMethod
from recloom.search.objective import Objective
from recloom.search.pareto import hypervolume, hypervolume_curve, non_dominated
from recloom.search.run import Search
from recloom.search.space import Genotype
from recloom_rankitect.costs import LogMACs

WORST_NE = 1.0  # of a model that knows only the base rate; what is no better counts as diverged
BOUNDS = {"BlockSpace": (1_000, 150_000), "EngineersSpace": (5_000, 150_000)}  # MACs: below they make no difference
SIZES: dict[str, dict[str, Any]] = {
    "BlockSpace": {},
    "EngineersSpace": {"layers": 3, "tokens": (2, 4, 8), "ranks": (1, 2, 4), "widths": (16, 32, 64, 128)},
}


@dataclass(frozen=True)
class Race:
    """What every search may use.

    Args:
        trials: Candidates of a method without a supernet; one with a supernet has fewer, by what that was trained on.
        rows: Training rows of a candidate.
        eval_rows: Validation rows of a candidate.
        steps: Steps of a supernet.
        batch: Candidates asked for, and trained, together.
        initial: Random candidates at first, of methods that learn.
        explored: Candidates that one-shot search ranks by its supernet.
        optimizer: Of candidates.
    """

    trials: int
    rows: int
    eval_rows: int
    steps: int
    batch: int = 8
    initial: int = 16
    explored: int = 96
    optimizer: OptimizerConfig | None = None


class Remembered(Evaluator):
    """Another evaluator's results, kept in a file: methods that try the same candidate have the same result.

    Args:
        inner: The evaluator.
        path: The file.
    """

    def __init__(self, inner: Evaluator, path: Path) -> None:
        self.inner, self.path, self.measures = inner, path, inner.measures

    def setup(self, context: SearchContext) -> None:
        """Read what is known."""
        super().setup(context)
        self.inner.setup(context)
        self.known: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Measure those that are not known."""
        new = [genotype for genotype in genotypes if _key(genotype) not in self.known]
        if new:
            for genotype, metrics in zip(new, self.inner.evaluate(new), strict=True):
                self.known[_key(genotype)] = [metrics, self.inner.reasons.get(genotype, "")]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(self.known))
        found = [self.known[_key(genotype)] for genotype in genotypes]
        self.reasons.update({g: reason for g, (_, reason) in zip(genotypes, found, strict=True) if reason})
        return [metrics for metrics, _ in found]

    def release(self) -> None:
        """Forget the rows in memory."""
        self.inner.release()


def _key(genotype: Genotype) -> str:
    return ",".join(map(str, genotype))


def race(
    setting: Race, space: str, method: str, seed: int, data: Any, folder: Path, memory: Path, worst: float
) -> dict[str, Any]:
    """Run one search; return its candidates' [NE, MACs], its hypervolume and course, and its front.

    Args:
        setting: What it may use.
        space: Name of the space.
        method: Name of the method.
        seed: Seed of the search.
        data: The data.
        folder: The search's folder.
        memory: The file of results that searches of one space, seed and data share.
        worst: The NE from which on a candidate counts as diverged, and the NE of the hypervolume's corner.
    """
    found, reserved = _method(setting, method, data.batch_size)
    trials = max(setting.batch, setting.trials - -(-reserved // setting.rows))
    floor, limit = BOUNDS[space]
    objective = Objective(("ne", "log_macs"), {}, {"macs": float(limit)})
    scratch = FromScratch(
        setting.rows, setting.eval_rows, optimizer=setting.optimizer, ne_bound=worst, trainer={"accelerator": "auto"}
    )
    evaluator = Remembered(Together(setting.batch, scratch), memory)
    start = time.process_time()
    search = Search(
        catalog().search_spaces.load(space)(**SIZES[space]), data, found, evaluator, objective,
        [AnalyticCost(), LogMACs(floor)], trials=trials, batch=setting.batch, seed=seed, retrain=0,
    )  # fmt: skip
    run = search.run(folder, progress=False, finish=False)
    evaluator.release()
    seen = run.study.observations()
    samples = reserved + setting.rows * np.arange(1, len(seen) + 1)
    good = [o for o in seen if o.measured]
    volumes = course(seen, (worst, math.log10(limit)), math.log10(floor))
    front = non_dominated(np.array([o.values for o in good]).reshape(-1, 2))
    return {
        "values": [[o.values[0], o.metrics["macs"]] for o in good],
        "hypervolume": volumes[-1],
        "course": [samples.tolist(), volumes],
        "front": sorted([o.values[0], o.metrics["macs"]] for o, best in zip(good, front, strict=True) if best),
        "samples": float(samples[-1]),
        "cpu_seconds": time.process_time() - start,
    }


def course(seen: Sequence[Observation], corner: tuple[float, float], floor: float) -> list[float]:
    """Return the hypervolume of NE and log MACs after each candidate, as a share of the box up to the corner.

    The box begins at the oracle's NE, or at 0 where there is none, and at the floor of log MACs.
    """
    points = np.array([o.values if o.measured else (np.inf, np.inf) for o in seen])
    best = next((o.metrics["oracle_ne"] for o in seen if "oracle_ne" in o.metrics), 0.0)
    box = (corner[0] - best) * (corner[1] - floor)
    found: list[float] = (hypervolume_curve(points, corner) / box).tolist()
    return found


def union(runs: Sequence[dict[str, Any]], space: str, worst: float) -> float:
    """Return the hypervolume, in NE times log10 MACs, of the front of several searches together."""
    floor, limit = BOUNDS[space]
    points = [(ne, math.log10(max(macs, floor))) for run in runs for ne, macs in run["values"]]
    return hypervolume(np.array(points), [worst, math.log10(limit)])


def _method(setting: Race, name: str, batch_size: int) -> tuple[SearchMethod, int]:
    """Return a method, and how many samples its supernet takes."""
    kind = catalog().search_methods.load(name)
    first = setting.initial
    if name not in ("oneshot", "dnas"):
        options = {
            "evolution": {"population": first, "sample": max(1, first // 3), "children": setting.batch},
            "nsga2": {"population": first},
            "predictor": {"initial": first},
            "rl": {"initial": first},
        }
        return kind(**options.get(name, {})), 0
    evaluator = SupernetEvaluator(setting.steps, finetune_steps=20, eval_rows=setting.eval_rows)
    if name == "dnas":
        return kind(evaluator), setting.steps * batch_size
    # the co-trained baseline sees every batch, too
    return kind(evaluator, explored=setting.explored), 2 * setting.steps * batch_size
