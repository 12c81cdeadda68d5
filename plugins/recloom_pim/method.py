"""NSGA-II that starts from a model that is known to be good."""

from __future__ import annotations

from typing import Any

import numpy as np

from recloom.errors import RecloomError
from recloom.search.evaluator import SearchContext
from recloom.search.method import History
from recloom.search.methods.evolution import NSGA2
from recloom.search.space import Genotype
from recloom_pim.space import PIMSpace


class NSGA2FromModel(NSGA2):
    """NSGA-II on a PIMSpace whose first generation are variants of one model, on random crossbars.

    Args:
        start: The model's choices by name, as search.json of a search without crossbars has them.
        changes: Most mutations of the model in the first generation.
        population: Candidates a generation.
        crossover: Probability that a child has two parents.
        mutations: Mutations of a child.
    """

    def __init__(
        self,
        start: dict[str, Any],
        changes: int = 6,
        population: int = 32,
        crossover: float = 0.9,
        mutations: int = 1,
    ) -> None:
        super().__init__(population, crossover, mutations)
        self.start, self.changes = start, changes

    def setup(self, context: SearchContext) -> None:
        """Look the model up in the space."""
        super().setup(context)
        if not isinstance(context.space, PIMSpace):
            raise RecloomError("NSGA2FromModel is for a PIMSpace", "Use NSGA2 for other spaces.")
        self._model: Genotype = context.space.space.from_json(self.start)

    def ask(self, history: History, rng: np.random.Generator) -> Genotype:
        """Return a variant of the model at first, then a child."""
        if history.number >= self.population:
            return super().ask(history, rng)
        space = self.space
        assert isinstance(space, PIMSpace)
        model = space.space.mutate(self._model, rng, int(rng.integers(self.changes + 1)))
        return (*model, *space.hardware(space.sample(rng)))
