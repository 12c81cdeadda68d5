"""Evaluators measure how good candidates are; costs price them without data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from recloom.features import FeatureSchema
from recloom.search.objective import Objective
from recloom.search.program import Program
from recloom.search.space import Genotype, SearchSpace

if TYPE_CHECKING:
    from recloom.data.module import BlockDataModule


@dataclass
class SearchContext:
    """What methods and evaluators work with.

    Args:
        space: The search space.
        data: The data.
        schema: Its schema.
        objective: What is minimised.
        costs: The cost models.
        folder: The search's folder; parts keep their files in a folder of their own name there.
        seed: The search's seed.
        say: Called with a line of progress.
    """

    space: SearchSpace
    data: BlockDataModule
    schema: FeatureSchema
    objective: Objective
    costs: Sequence[CostModel]
    folder: Path
    seed: int
    say: Callable[[str], None]

    def price(self, genotype: Genotype) -> dict[str, float]:
        """Return every cost of a candidate."""
        program = self.space.program(genotype, self.schema)
        return {name: value for cost in self.costs for name, value in cost(program, genotype, self).items()}


class CostTable(NamedTuple):
    """A table about costs.

    Args:
        header: Names of the columns.
        rows: Cells.
        caption: What they are.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str


class CostModel(ABC):
    """Prices a candidate without training it: an entry of the slot `costs` of a search."""

    by_program: bool = True
    """Whether the program alone decides: then models that are no candidates (baselines) are priced too."""

    @abstractmethod
    def __call__(self, program: Program, genotype: Genotype, context: SearchContext) -> Mapping[str, float]:
        """Return costs by name, each for one sample."""

    def works(self, program: Program) -> list[CostTable]:
        """Return tables that price each work of a model, for `recloom cost --hardware`; by default none."""
        return []

    def compare(self, models: Mapping[str, tuple[Program, Genotype]], context: SearchContext) -> list[CostTable]:
        """Return tables about the costs of models by name, for the report of a search; by default none."""
        return []


class Evaluator(ABC):
    """Measures the quality of candidates: the slot `evaluator` of a search."""

    measures: tuple[str, ...] = ()
    """Names of the metrics that it always gives; a search refuses an objective that neither they nor costs have."""
    context: SearchContext
    reasons: dict[Genotype, str]
    """Why candidates diverged, by canonical genotype."""
    samples_trained: int = 0
    """Samples that went through training so far, epochs and candidates counted, in this process."""

    def setup(self, context: SearchContext) -> None:
        """Prepare for a search (train a supernet, say), going on where an earlier call was interrupted."""
        self.context = context
        self.reasons = {}

    @abstractmethod
    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Return the metrics of each candidate ("ne", "logloss", "auc", ...); NaN for one that diverged.

        The result depends on the candidate, the data and the search's seed, not on what it is evaluated with.
        """

    def release(self) -> None:  # noqa: B027
        """Give back memory and processes: the search needs no more evaluations. By default there is nothing to do."""
