"""The plots of a search's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recloom import plots
from recloom.search.method import Observation
from recloom.search.pareto import hypervolume_curve, non_dominated, reference_point

if TYPE_CHECKING:
    from recloom.search.run import SearchRun


def trajectory(run: SearchRun, good: Sequence[Observation]) -> str:
    """Draw the best value so far of each thing that is minimised, and with several the hypervolume so far."""
    names = list(run.context.objective.minimize)
    numbers = [o.number for o in good]
    values = np.array([o.values for o in good])
    feasible = np.array([o.feasible for o in good])
    best = np.minimum.accumulate(np.where(feasible[:, None], values, np.inf), axis=0)
    known = np.isfinite(best[:, 0])
    panels: dict[str, plots.Series] = {}
    if len(names) > 1:
        low, high = values.min(0), values.max(0)
        scaled = (values - low) / np.where(high > low, high - low, 1.0)
        corner = reference_point(scaled)
        curve = hypervolume_curve(np.where(feasible[:, None], scaled, np.inf), corner) / corner.prod()
        panels["hypervolume"] = {"hypervolume": (numbers, curve.tolist())}
    for place, name in enumerate(names):
        steps = [n for n, k in zip(numbers, known, strict=True) if k]
        panels[f"least {name}"] = {name: (steps, best[known, place].tolist())}
    return plots.lines(panels, "trial")


def fronts(run: SearchRun, good: Sequence[Observation]) -> str | None:
    """Draw all trials and the front, the first minimised metric against each other one, or against each cost."""
    names = list(run.context.objective.minimize)
    others = names[1:] or cost_names(run)
    panels: dict[str, plots.Series] = {}
    stairs = {}
    for other in others:
        points = np.array([[o.metrics[other], o.metrics[names[0]]] for o in good if _has(o, other, names[0])])
        if len(points) == 0 or np.ptp(points[:, 0]) == 0:
            continue
        title = f"{names[0]} and {other}"
        panels[title] = {"trials": (points[:, 0].tolist(), points[:, 1].tolist())}
        front = points[non_dominated(points)]
        front = front[np.argsort(front[:, 0])]
        stairs[title] = (front[:, 0].tolist(), front[:, 1].tolist())
    if not panels:
        return None
    labels = [title.split(" and ")[1] for title in panels]
    return plots.scatter(panels, labels, names[0], steps=stairs)


def cost_names(run: SearchRun) -> list[str]:
    """Return the names of the costs, in the order of the cost models."""
    best = run.study.best()
    return list(run.context.price(run.context.space.canonical(best.genotype))) if best else []


def labels(run: SearchRun, stage: str) -> NDArray[np.float32]:
    """Return the labels of the rows that models were measured on."""
    return np.concatenate([batch.labels.numpy() for batch in run.scratch.eval_batches(stage)])


def _has(observation: Observation, *names: str) -> bool:
    return all(np.isfinite(observation.metrics.get(name, np.nan)) for name in names)
