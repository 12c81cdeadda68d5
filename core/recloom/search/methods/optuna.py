"""Optuna's samplers as methods: TPE and Gaussian processes."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from recloom.search.evaluator import SearchContext
from recloom.search.method import History, Observation, SearchMethod
from recloom.search.space import Genotype
from recloom.search.storage import quiet
from recloom.search.trials import distributions


class OptunaMethod(SearchMethod):
    """A sampler of Optuna, asked about a copy of the history in memory: so it is a function of the history, too.

    What it proposes is repaired where the options of a field do not go together. It learns from candidates above a
    limit, which are not evaluated.
    """

    redraws: ClassVar[int] = 0

    def setup(self, context: SearchContext) -> None:
        """Prepare for a search."""
        super().setup(context)
        self._distributions = distributions(self.space)
        self._storage = InMemoryStorage()
        with quiet():
            self._study = optuna.create_study(
                storage=self._storage, directions=["minimize"] * len(self.objective.minimize)
            )
        self._added: set[int] = set()

    @abstractmethod
    def sampler(self, seed: int) -> BaseSampler:
        """Return the sampler."""

    def ask(self, history: History, rng: np.random.Generator) -> Genotype:
        """Return the sampler's proposal, or a random candidate where it has none yet."""
        with quiet():
            self._sync(history)
            sampler = self.sampler(int(rng.integers(2**31)))
            guests = [
                create_trial(state=TrialState.RUNNING, params=self._params(g), distributions=self._distributions)
                for g in history.running
            ]
            first = len(self._storage.get_all_trials(self._id, deepcopy=False))
            self._study.add_trials(guests)
            self._study.ask()
            trials = self._storage.get_all_trials(self._id, deepcopy=False)
            wide = {name: d for name, d in self._distributions.items() if not d.single()}
            found = sampler.sample_relative(self._study, trials[-1], wide)
            for trial in trials[first:]:
                self._study.tell(trial.number, state=TrialState.FAIL)
        if not found:
            return self.space.sample(rng)
        return tuple(int(found.get(choice.name, 0)) for choice in self.space.choices)

    @property
    def _id(self) -> int:
        return self._storage.get_study_id_from_name(self._study.study_name)

    def _sync(self, history: History) -> None:
        """Add what has finished since the last call."""
        for o in history.finished:
            if o.number not in self._added:
                self._added.add(o.number)
                self._study.add_trial(self._trial(o))

    def _trial(self, o: Observation) -> FrozenTrial:
        limits = dict(zip(self.objective.limits, o.excess, strict=True))
        return create_trial(
            values=o.values, params=self._params(o.genotype), distributions=self._distributions, constraints=limits
        )

    def _params(self, genotype: Genotype) -> dict[str, int]:
        return {choice.name: option for choice, option in zip(self.space.choices, genotype, strict=True)}


class TPE(OptunaMethod):
    """Tree-structured Parzen estimator, of all choices jointly, for one or several things to minimise.

    Args:
        startup: How many random candidates are tried first.
        candidates: How many candidates each proposal is the best of.
    """

    def __init__(self, startup: int = 16, candidates: int = 24) -> None:
        self.startup, self.candidates = startup, candidates

    def sampler(self, seed: int) -> BaseSampler:
        """Return the sampler."""
        return TPESampler(n_startup_trials=self.startup, n_ei_candidates=self.candidates, multivariate=True, seed=seed)


class GP(OptunaMethod):
    """Bayesian optimisation by Gaussian processes, for up to some hundreds of candidates.

    Args:
        startup: How many random candidates are tried first.
    """

    def __init__(self, startup: int = 16) -> None:
        self.startup = startup

    def sampler(self, seed: int) -> BaseSampler:
        """Return the sampler."""
        return GPSampler(n_startup_trials=self.startup, seed=seed)
