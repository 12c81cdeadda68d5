"""Regularized evolution and NSGA-II."""

from __future__ import annotations

import numpy as np

from recloom.errors import RecloomError
from recloom.search.method import History, Observation, SearchMethod
from recloom.search.methods.random import best_first
from recloom.search.pareto import crowding, ranks, select
from recloom.search.space import Genotype

CHILD_TRIES = 20  # how often a child that was tried before is mutated further


class RegularizedEvolution(SearchMethod):
    """Regularized (aging) evolution (Real et al. 2019): the best of a random sample of the youngest is mutated.

    The children of a generation are made of what had finished of the generations before it. With several things to
    minimise, the best is chosen by front and crowding. NASRec's published settings: population 128, sample 64,
    children 8, generations 240, mutations 5, shared_parent true.

    Args:
        population: How many random candidates are tried first, and how many of the youngest can be parents.
        sample: How many of them compete to be a parent.
        children: Candidates a generation: so many are added before they can be parents, and the oldest drop out.
        mutations: Mutations of a child: all along, or if `generations` is given at the start, falling to 1.
        generations: Generations over which mutations fall: (generations - g) // (generations // mutations) + 1 in
            generation g, so that generation 0 has one more. 0: they stay.
        shared_parent: Whether all children of a generation have the same parent.
        crossover: Probability that a child has two parents.
    """

    def __init__(
        self,
        population: int = 64,
        sample: int = 16,
        children: int = 8,
        mutations: int = 1,
        generations: int = 0,
        shared_parent: bool = False,
        crossover: float = 0.0,
    ) -> None:
        if min(population, sample, children, mutations) < 1 or sample > population:
            raise RecloomError(
                f"evolution with population {population}, sample {sample}, children {children}, mutations {mutations}",
                "All are 1 or more, and the sample is no larger than the population.",
            )
        self.population, self.sample, self.children = population, sample, children
        self.mutations, self.generations = mutations, generations
        self.shared_parent, self.crossover = shared_parent, crossover

    def ask(self, history: History, rng: np.random.Generator) -> Genotype:
        """Return a random candidate at first, then a child."""
        generation = (history.number - self.population) // self.children
        born = self.population + generation * self.children  # numbers below it are of earlier generations
        pool = [o for o in history.finished if o.number < born][-self.population :]
        if generation < 0 or not pool:
            return self.space.sample(rng)
        chooser = np.random.default_rng([self.seed, generation]) if self.shared_parent else rng
        child = self._parent(pool, chooser)
        if self.crossover and rng.random() < self.crossover:
            child = self.space.crossover(child, self._parent(pool, rng), rng)
        return mutated_until_new(self, child, history, rng, self._mutations(generation))

    def _mutations(self, generation: int) -> int:
        if self.mutations == 1 or not self.generations:
            return self.mutations
        step = max(self.generations // self.mutations, 1)
        return max(self.generations - generation, 0) // step + 1

    def _parent(self, pool: list[Observation], rng: np.random.Generator) -> Genotype:
        places = rng.choice(len(pool), min(self.sample, len(pool)), replace=False)
        rivals = [pool[place] for place in places]
        return rivals[best_first(rivals)[0]].genotype


class NSGA2(SearchMethod):
    """NSGA-II (Deb et al. 2002), its parents the best of all that was tried, by front and crowding.

    Children are made by the space's own crossover and mutation, so that they are valid. They are a function of what
    had finished of earlier generations, so that workers need not wait for one another.

    Args:
        population: Candidates a generation; the first is random.
        crossover: Probability that a child has two parents.
        mutations: Mutations of a child.
    """

    def __init__(self, population: int = 32, crossover: float = 0.9, mutations: int = 1) -> None:
        if population < 2:
            raise RecloomError(f"NSGA-II with a population of {population}", "Give 2 or more.")
        self.population, self.crossover, self.mutations = population, crossover, mutations
        self._elite: tuple[tuple[int, int], list[tuple[Observation, int, float]]] = ((-1, -1), [])

    def ask(self, history: History, rng: np.random.Generator) -> Genotype:
        """Return a random candidate at first, then a child."""
        generation = history.number // self.population
        pool = [o for o in history.finished if o.number < generation * self.population]
        if generation == 0 or not pool:
            return self.space.sample(rng)
        elite = self._selected(generation, pool)
        child = self._parent(elite, rng)
        if rng.random() < self.crossover:
            child = self.space.crossover(child, self._parent(elite, rng), rng)
        return mutated_until_new(self, child, history, rng, self.mutations)

    def _selected(self, generation: int, pool: list[Observation]) -> list[tuple[Observation, int, float]]:
        """Return the elite with rank and crowding; kept as long as nothing changes."""
        key = (generation, len(pool))
        if self._elite[0] != key:
            values, violation = np.array([o.values for o in pool]), np.array([o.violation for o in pool])
            chosen = select(values, self.population, violation)
            front = ranks(values[chosen], violation[chosen])
            distance = np.zeros(len(chosen))
            for rank in range(int(front.max()) + 1):
                distance[front == rank] = crowding(values[chosen][front == rank])
            self._elite = key, [(pool[p], int(r), float(d)) for p, r, d in zip(chosen, front, distance, strict=True)]
        return self._elite[1]

    def _parent(self, elite: list[tuple[Observation, int, float]], rng: np.random.Generator) -> Genotype:
        rivals = [elite[rng.integers(len(elite))] for _ in range(2)]
        return min(rivals, key=lambda rival: (rival[1], -rival[2]))[0].genotype


def mutated_until_new(
    method: SearchMethod, child: Genotype, history: History, rng: np.random.Generator, count: int
) -> Genotype:
    """Return `child` mutated `count` times, and again if its model is tried already."""
    tried = {o.genotype for o in history.finished} | set(history.running)
    for _ in range(CHILD_TRIES):
        child = method.space.mutate(child, rng, count)
        if child not in tried and method.space.canonical(child) not in tried:
            break
    return child
