"""Search methods: given what was tried, say what to try next.

All that a method knows comes from the study's history, so a search that was killed goes on as if it had not been: a
method may keep state between calls only as a cache of what it computed from the history.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from recloom.search.objective import Objective
from recloom.search.space import Genotype, SearchSpace

if TYPE_CHECKING:
    from recloom.search.evaluator import SearchContext


@dataclass(frozen=True)
class Observation:
    """A finished trial.

    Args:
        number: Its number in the search: 0, 1, ... in the order in which candidates were asked for. The number that
            Optuna shows is larger after trials whose worker died.
        genotype: What was tried.
        values: What is minimised; infinite if the candidate diverged.
        excess: For each limit by how much it was exceeded; see `Objective.excess`.
        metrics: Everything that was measured, and the costs.
        evaluated: False if it was not, for its costs alone are above a limit; `values` are infinite then.
    """

    number: int
    genotype: Genotype
    values: tuple[float, ...]
    excess: tuple[float, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    evaluated: bool = True

    @property
    def measured(self) -> bool:
        """Whether all that is minimised is a finite number: what predictors may learn from."""
        return all(math.isfinite(value) for value in self.values)

    @property
    def diverged(self) -> bool:
        """Whether it was evaluated, and its quality could not be measured."""
        return self.evaluated and not self.measured

    @property
    def violation(self) -> float:
        """By how much limits are exceeded, all together; 0 if they are kept."""
        return sum(max(excess, 0.0) for excess in self.excess)

    @property
    def feasible(self) -> bool:
        """Whether every limit was kept."""
        return all(excess <= 0 for excess in self.excess)

    @property
    def rank(self) -> tuple[float, ...]:
        """A key by which one-objective methods sort: feasible ones first, diverged ones last."""
        return (float(not self.measured), self.violation, *self.values)


@dataclass(frozen=True)
class History:
    """What is known when a method is asked.

    Args:
        finished: Finished trials, by number.
        running: Genotypes that are being tried now, by this worker or others; those asked for together with this one
            count as running, whatever became of them in the meantime.
        number: The number of the trial that is asked for.
    """

    finished: Sequence[Observation] = ()
    running: Sequence[Genotype] = ()
    number: int = 0


class SearchMethod(ABC):
    """Proposes candidates: the slot `method` of a search.

    A proposal that was tried before, or whose costs are above a limit, is not evaluated: the study asks again, up to
    `redraws` times, with another rng. A method that learns from such proposals sets `redraws` to 0: then it sees one
    above a limit as an observation that was not evaluated, and what was tried before with its metrics.
    """

    redraws: ClassVar[int] = 1000

    space: SearchSpace
    objective: Objective
    seed: int
    samples_trained: int = 0
    """Samples that went through training so far in this process, for the method's own networks."""

    def setup(self, context: SearchContext) -> None:
        """Prepare for a search; called once, before `ask`. Overriders call it too."""
        self.space = context.space
        self.objective = context.objective
        self.seed = context.seed

    @abstractmethod
    def ask(self, history: History, rng: np.random.Generator) -> Genotype:
        """Return the next candidate; `rng` depends on the search's seed, the trial's number and the try alone."""
