"""Which candidates of a study are the best, and how the best so far is told in a line."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recloom.search.method import Observation
from recloom.search.pareto import hypervolume, ranks, reference_point
from recloom.search.study import Study


def ranked(study: Study) -> list[Observation]:
    """Return the candidates worth retraining, best first, each model once.

    With one minimised value they are sorted by it. With several, the front's members come first, by the hypervolume
    that is lost without them, then those of the next front.
    """
    good: dict[tuple[int, ...], Observation] = {}
    for observation in study.observations():
        if observation.measured and observation.feasible:
            good.setdefault(study.space.canonical(observation.genotype), observation)
    found = list(good.values())
    if len(study.objective.minimize) == 1 or not found:
        return sorted(found, key=lambda o: (o.values, o.number))
    return [found[place] for place in by_contribution(np.array([o.values for o in found]))]


def by_contribution(values: NDArray[np.float64]) -> list[int]:
    """Return the places of N x M points: by front, within a front by the hypervolume lost without the point."""
    front = ranks(values)
    low, high = values.min(0), values.max(0)
    scaled = (values - low) / np.where(high > low, high - low, 1.0)
    corner = reference_point(scaled)
    lost = np.zeros(len(values))
    for rank in range(int(front.max()) + 1):
        members = np.flatnonzero(front == rank)
        total = hypervolume(scaled[members], corner)
        for place in members:
            lost[place] = total - hypervolume(scaled[members[members != place]], corner)
    return [int(place) for place in np.lexsort((-lost, front))]


def best_line(study: Study) -> str:
    """Return the best so far in a line: the best value, or the front's size and its least values."""
    names = study.objective.minimize
    if len(names) > 1:
        front = study.front()
        least = ", ".join(f"{n} {min(o.values[i] for o in front):.5g}" for i, n in enumerate(names)) if front else ""
        return f"front of {len(front)}: least {least}" if front else ""
    best = study.best()
    return f"best {names[0]} {best.values[0]:.5f} (trial {best.number})" if best else ""
