"""Bayesian search with a neural predictor: what may be best of many candidates that cost nothing to score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from recloom.errors import RecloomError
from recloom.search.evaluator import SearchContext
from recloom.search.method import History, Observation, SearchMethod
from recloom.search.methods.ensemble import RankingEnsemble, pairs_of
from recloom.search.methods.random import best_first
from recloom.search.space import Genotype
from recloom.search.transfer import Earlier, earlier_trials

Array = NDArray[np.float64]


class Predictor(SearchMethod):
    """Neural-predictor search (Wen et al. 2020; White et al. 2021): an ensemble of networks learns to rank candidates.

    The loss is over pairs (which of two is better), so that the scale of what is minimised does not matter, and trials
    of earlier searches on other data can take part. One that diverged is worse than all that were measured, by no
    known amount. Each proposal is what one member of the ensemble, drawn at random (Thompson sampling), finds best of
    random candidates and mutations of the best; members differ where little is known. With several things to minimise,
    those that are costs are known exactly, the others have an ensemble each, and a proposal minimises a randomly
    weighted Chebyshev distance of ranks (ParEGO, Knowles 2006).

    Args:
        initial: Random candidates at first (none, if trials of earlier searches are more).
        pool: Candidates that are scored for a proposal; half are random, half are mutations of the best.
        parents: How many of the best are mutated.
        members: Networks of an ensemble.
        hidden: Hidden units of each.
        steps: Training steps, anew every `refit` candidates.
        refit: See there.
        warm_start: Folders of earlier searches, whose trials are learned from, too.
    """

    def __init__(
        self,
        initial: int = 24,
        pool: int = 256,
        parents: int = 16,
        members: int = 4,
        hidden: int = 32,
        steps: int = 100,
        refit: int = 4,
        warm_start: Sequence[str] = (),
    ) -> None:
        if min(initial, pool, parents, members, hidden, steps, refit) < 1:
            raise RecloomError("a predictor's numbers are 1 or more", "See --help.")
        self.initial, self.pool, self.parents, self.warm_start = initial, pool, parents, tuple(warm_start)
        self.members, self.hidden, self.steps, self.refit = members, hidden, steps, refit

    def setup(self, context: SearchContext) -> None:
        """Read the trials of earlier searches."""
        super().setup(context)
        self._context = context
        self._earlier = [earlier_trials(folder, self.space, self.objective) for folder in self.warm_start]
        self._fitted: tuple[tuple[int, int], list[RankingEnsemble | None]] = ((-1, -1), [])
        self._features: dict[Genotype, Array] = {}
        self._costs: dict[Genotype, dict[str, float]] = {}

    def ask(self, history: History, rng: np.random.Generator) -> Genotype:
        """Return a random candidate at first, then what a member of the ensemble finds best."""
        known = [o for o in history.finished if o.evaluated]
        earlier = sum(map(len, self._earlier))
        if history.number < self.initial - earlier or len(known) + earlier < 2:
            return self.space.sample(rng)
        with torch.random.fork_rng(devices=[]):
            last = history.number // self.refit * self.refit
            models = self._fit([o for o in known if o.number < last] or known)
        found = self._candidates(known, {o.genotype for o in known} | set(history.running), rng)
        scores = [self._values(index, model, found, rng) for index, model in enumerate(models)]
        if len(scores) == 1:
            return found[int(np.argmin(scores[0]))]
        ranks = np.stack([rankdata(s, "average") / len(found) for s in scores])
        weighted = rng.dirichlet(np.ones(len(ranks)))[:, None] * ranks
        return found[int(np.argmin(weighted.max(0) + 0.05 * weighted.sum(0)))]

    def _fit(self, known: list[Observation]) -> list[RankingEnsemble | None]:
        """Return an ensemble for each value; None for a cost. They are kept as long as nothing changes."""
        key = (len(known), known[-1].number if known else -1)
        if self._fitted[0] != key:
            everything: list[Observation | Earlier] = [*known]
            group = [0] * len(known)
            for number, trials in enumerate(self._earlier, start=1):
                everything += trials
                group += [number] * len(trials)
            features = np.stack([self.features(o.genotype) for o in everything])
            values = np.array([o.values for o in everything])
            diverged = ~np.isfinite(values).all(1)
            models: list[RankingEnsemble | None] = []
            for index in range(values.shape[1]):
                if self._is_cost(index):
                    models.append(None)
                    continue
                ensemble = RankingEnsemble(self.members, self.hidden, self.steps)
                ensemble.fit(features, pairs_of(values[:, index], diverged, np.array(group)), self.seed + len(known))
                models.append(ensemble)
            self._fitted = (key, models)
        return self._fitted[1]

    def _candidates(self, known: list[Observation], tried: set[Genotype], rng: np.random.Generator) -> list[Genotype]:
        """Return different models that were not tried and whose costs keep the limits; at least one."""
        best = [known[place].genotype for place in best_first(known)[: self.parents]] if known else []
        tried = {self.space.canonical(genotype) for genotype in tried}
        found: dict[Genotype, None] = {}
        for number in range(4 * self.pool):
            if number % 2 and best:
                parent = best[rng.integers(len(best))]
                new = self.space.mutate(parent, rng, int(rng.integers(1, 4)))
            else:
                new = self.space.sample(rng)
            model = self.space.canonical(new)
            if model not in tried and self.objective.allows(self.costs(model)):
                found[model] = None
            if len(found) == self.pool:
                break
        return list(found) or [self.space.sample(rng)]

    def _values(
        self, index: int, model: RankingEnsemble | None, found: list[Genotype], rng: np.random.Generator
    ) -> Array:
        if model is None:
            return np.array([self.costs(genotype)[self.objective.minimize[index]] for genotype in found])
        return model.scores(np.stack([self.features(genotype) for genotype in found]))[rng.integers(self.members)]

    def _is_cost(self, index: int) -> bool:
        example = self.space.canonical(self.space.sample(np.random.default_rng(0)))
        return self.objective.minimize[index] in self.costs(example) and not (index == 0 and self.objective.penalties)

    def features(self, genotype: Genotype) -> Array:
        """Return what the networks see: the space's encoding, and the logarithms of costs."""
        model = self.space.canonical(genotype)
        if model not in self._features:
            costs = np.log1p(np.maximum(list(self.costs(model).values()), 0.0))
            self._features[model] = np.concatenate([self.space.encode(model).astype(np.float64), costs])
        return self._features[model]

    def costs(self, model: Genotype) -> dict[str, float]:
        """Return the costs that the program alone decides: others would have to be measured."""
        if model not in self._costs:
            context = self._context
            program = self.space.program(model, context.schema)
            costs = [cost(program, model, context) for cost in context.costs if cost.by_program]
            self._costs[model] = {name: float(value) for found in costs for name, value in found.items()}
        return self._costs[model]
