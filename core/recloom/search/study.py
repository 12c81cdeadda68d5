"""The study: every candidate that was tried, in a storage that many workers share and that survives all of them.

Candidates have numbers 0, 1, ...; a method's proposal for a number is a function of what had finished when that number,
or the batch that it belongs to, was begun. So one worker that is killed at any point and started again does what it
would have done. A number whose worker died is tried again, as a new trial of the storage.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from optuna.trial import TrialState

from recloom.search import trials as records
from recloom.search.ledger import Ledger, copied
from recloom.search.method import History, Observation, SearchMethod
from recloom.search.objective import Objective
from recloom.search.pareto import non_dominated
from recloom.search.proposal import propose
from recloom.search.space import Genotype, SearchSpace

UNKNOWN_EXCESS = 1e9  # of a limit on a metric that is no number


@dataclass(frozen=True)
class Asked:
    """A candidate to evaluate.

    Args:
        number: Its number in the search.
        genotype: The candidate, in canonical form.
        seed: A seed for its evaluation: a function of the search's seed and the candidate.
        costs: Its costs.
        trial: Optuna's number of its trial.
        started: When it was asked for, on the monotonic clock.
    """

    number: int
    genotype: Genotype
    seed: int
    costs: Mapping[str, float]
    trial: int
    started: float = field(default_factory=time.monotonic, compare=False)


class Study:
    """Opens or resumes a study; a context manager that lets others have its unfinished candidates at the end.

    Args:
        space: The search space.
        objective: What is minimised.
        method: The method, set up.
        storage: An SQLite file, or a database URL.
        seed: Seed of the search.
        name: The study's name in the storage.
        trials: How many candidates are tried in all; None: no end.
        price: Gives the costs of a candidate in canonical form, for limits on them; by default there are none.
        grace: Seconds without a sign of life after which a worker on another machine counts as dead.

    Raises:
        RecloomError: The storage cannot be opened, or its study is about another space or objective.
    """

    def __init__(
        self,
        space: SearchSpace,
        objective: Objective,
        method: SearchMethod,
        storage: str | Path,
        seed: int = 0,
        name: str = "search",
        trials: int | None = None,
        price: Callable[[Genotype], Mapping[str, float]] | None = None,
        grace: float = 300.0,
    ) -> None:
        self.space, self.objective, self.method = space, objective, method
        self.seed, self.name, self.trials = seed, name, trials
        self.price: Callable[[Genotype], Mapping[str, float]] = price or (lambda genotype: {})
        self._ledger = Ledger(storage, name, space, objective, grace)
        self._models: dict[Genotype, int] = {}  # the first number of each model, by canonical form
        self._seen: set[int] = set()

    # What was tried

    def observations(self) -> list[Observation]:
        """Return the finished candidates, by number."""
        self._ledger.read()
        return [r.observation for _, r in sorted(self._ledger.slots.items()) if r.observation is not None]

    def failures(self) -> dict[int, str]:
        """Return the errors of candidates that could not be evaluated, by number."""
        self._ledger.read()
        return {n: r.error for n, r in sorted(self._ledger.slots.items()) if r.final and r.observation is None}

    def best(self) -> Observation | None:
        """Return the best candidate by the first value, among those that were measured and keep all limits."""
        good = [o for o in self.observations() if o.measured and o.feasible]
        return min(good, key=lambda o: (o.values, o.number), default=None)

    def front(self) -> list[Observation]:
        """Return the candidates that none beats in every value, among those that were measured and keep all limits."""
        good = [o for o in self.observations() if o.measured and o.feasible]
        keep = non_dominated(np.array([o.values for o in good]).reshape(len(good), len(self.objective.minimize)))
        return [o for o, stays in zip(good, keep, strict=True) if stays]

    @property
    def done(self) -> bool:
        """Whether every candidate has been tried."""
        self._ledger.read()
        final = sum(record.final for number, record in self._ledger.slots.items() if self._within(number))
        return self.trials is not None and final >= self.trials

    # Asking and telling

    def ask(self) -> Asked | None:
        """Return the next candidate to evaluate, or None if there is nothing to do now; see `ask_many`."""
        found = self.ask_many(1)
        return found[0] if found else None

    def ask_many(self, count: int) -> list[Asked]:
        """Return up to `count` candidates to evaluate together; none if there is nothing to do now.

        What dead workers left comes first, and alone, for what follows may depend on it. Fewer than `count` come at
        the end, and where some need no evaluation. After an empty list look at `done`: other workers may still be
        busy, and if they die, what they leave is to be asked for.

        Raises:
            RecloomError: Almost nothing of the space keeps the limits on costs.
        """
        found: list[Asked] = []
        with self._ledger.lock:
            self._ledger.read()
            self._ledger.bury()
            self._ledger.settle()
            for record in self._ledger.orphans()[:count]:
                self._place(record.number, record.batch, record.genotype, found)
            while len(found) < count:
                number, batch = self._next(count)
                if not self._within(number) or (found and number == batch[0]):
                    break  # the end; or all of a batch that was left unfinished
                self._place(number, batch, self._propose(number, batch[0]), found)
        return found

    def tell(self, asked: Asked, metrics: Mapping[str, float], reason: str = "") -> bool:
        """Store what was measured (costs are added), and why it diverged if it did.

        Returns False if another worker has taken the candidate over.

        Raises:
            RecloomError: A metric of the objective is missing.
        """
        together = {**asked.costs, "seconds": time.monotonic() - asked.started, **metrics}
        values, excess = self.objective.values(together), self.objective.excess(together)
        excess = tuple(e if math.isfinite(e) else UNKNOWN_EXCESS for e in excess)
        new = {name: v for name, v in together.items() if name not in asked.costs or v != asked.costs[name]}
        attributes: dict[str, Any] = records.written(new)
        if not all(map(math.isfinite, values)):
            attributes[records.DIVERGED] = reason or True
        kept = self._ledger.finish(asked.trial, TrialState.COMPLETE, attributes, values, excess)
        self._ledger.read()
        self._ledger.settle()
        return kept

    def fail(self, asked: Asked, reason: str) -> bool:
        """Store that the candidate cannot be evaluated; it is not tried again. Returns as `tell` does."""
        kept = self._ledger.finish(asked.trial, TrialState.FAIL, {records.ERROR: reason[:2000] or "failed"})
        self._ledger.read()
        self._ledger.settle()
        return kept

    def close(self) -> None:
        """Let others have what this worker has not finished."""
        self._ledger.close()

    def __enter__(self) -> Study:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _within(self, number: int) -> bool:
        return self.trials is None or number < self.trials

    def _next(self, count: int) -> tuple[int, tuple[int, int]]:
        """Return the next number, and its batch: one that was left unfinished, or a new one."""
        last = self._ledger.last()
        if last is None or last.number < 0:
            return 0, (0, count)
        number = last.number + 1
        start, size = last.batch
        unfinished = number < start + size and (last.worker == self._ledger.worker.name or self._ledger.gone(last))
        return number, last.batch if unfinished else (number, count)

    def _propose(self, number: int, start: int) -> Genotype:
        """Return the method's proposal, made of what had finished when the batch that begins with `start` was begun."""
        known = self._known()
        before = [record for n, record in sorted(self._ledger.slots.items()) if n < number]
        history = History(
            [r.observation for r in before if r.observation is not None and r.number < start],
            [r.genotype for r in before if not r.final or r.number >= start],
            number,
        )
        return propose(self.method, history, self.seed, known, self.price)

    def _place(self, number: int, batch: tuple[int, int], genotype: Genotype, found: list[Asked]) -> None:
        """Add the trial of a candidate; append it to `found` if it is to be evaluated."""
        canonical = self.space.canonical(genotype)
        first = self._known().get(canonical, number)
        if first != number:
            slot = self._ledger.slots.get(first)
            if slot is not None and slot.observation is not None:
                source = slot.observation
                self._ledger.add(number, batch, genotype, copied(source), source.values, source.excess)
            else:
                self._ledger.add(number, batch, genotype, {records.COPY: first})
                self._ledger.settle()
            return
        costs = dict(self.price(canonical))
        attributes = {records.METHOD: type(self.method).__name__, **records.written(costs)}
        if not self.objective.allows(costs):
            attributes[records.INFEASIBLE] = True
            values = (math.inf,) * len(self.objective.minimize)
            limits = self.objective.limits
            excess = self.objective.excess({name: costs.get(name, limit) for name, limit in limits.items()})
            self._ledger.add(number, batch, genotype, attributes, values, excess)
            return
        trial = self._ledger.add(number, batch, genotype, attributes)
        if trial is not None:
            found.append(Asked(number, canonical, self._seed_of(canonical), costs, trial))

    def _known(self) -> dict[Genotype, int]:
        """Return the first number of each model that was proposed."""
        for number in sorted(self._ledger.slots.keys() - self._seen):
            self._seen.add(number)
            self._models.setdefault(self.space.canonical(self._ledger.slots[number].genotype), number)
        return self._models

    def _seed_of(self, canonical: Genotype) -> int:
        return int(np.random.SeedSequence([self.seed, *canonical]).generate_state(1)[0])
