"""Random search, and search among neighbours."""

from __future__ import annotations

import numpy as np

from recloom.search.method import History, Observation, SearchMethod
from recloom.search.pareto import select
from recloom.search.space import Genotype


class RandomSearch(SearchMethod):
    """Every candidate at random; none twice."""

    def ask(self, history: History, rng: np.random.Generator) -> Genotype:
        """Return a random candidate."""
        return self.space.sample(rng)


class LocalSearch(SearchMethod):
    """Neighbours of the best candidate, and when all were tried, of the next best one.

    Args:
        initial: How many random candidates are tried first.
    """

    def __init__(self, initial: int = 16) -> None:
        self.initial = initial

    def ask(self, history: History, rng: np.random.Generator) -> Genotype:
        """Return a random neighbour, not tried before, of the best candidate that has one."""
        good = [o for o in history.finished if o.measured]
        if history.number < self.initial or not good:
            return self.space.sample(rng)
        tried = {self.space.canonical(g) for g in [*(o.genotype for o in history.finished), *history.running]}
        for place in best_first(good):
            near = list(self.space.neighbours(good[place].genotype))
            for choice in rng.permutation(len(near)):
                if self.space.canonical(near[choice]) not in tried:
                    return near[choice]
        return self.space.sample(rng)


def best_first(observations: list[Observation]) -> list[int]:
    """Return places in order: by value, or by front and crowding if there are several values; above limits last."""
    if len(observations[0].values) == 1:
        return sorted(range(len(observations)), key=lambda place: observations[place].rank)
    values = np.array([o.values for o in observations])
    return [int(p) for p in select(values, len(values), [o.violation for o in observations])]
