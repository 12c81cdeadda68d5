"""What both spaces have in common: genotypes stand for graphs, which are models, programs and paths of a supernet."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from recloom.features import FeatureSchema
from recloom.optim import OptimizerConfig
from recloom.search.block import Weight
from recloom.search.program import Program
from recloom.search.space import Genotype, SearchSpace
from recloom.search.supernet import Supernet
from recloom_rankitect.graph import Graph
from recloom_rankitect.plan import Limits, Plan, Stem, lower, plan, stem_of

SupernetFactory = Callable[[SearchSpace, dict[str, Any]], Supernet]


class ComposedSpace(SearchSpace):
    """A space of graphs of blocks.

    Args:
        embedding_dim: Width of embeddings and tokens, D.
        limits: How large results may get.
        optimizer: Optimizers and learning rates of candidates; unset: those of GraphModel.
        supernet: The network that shares the weights of all candidates; unset: GraphSupernet.
    """

    def __init__(
        self, embedding_dim: int, limits: Limits, optimizer: OptimizerConfig | None, supernet: SupernetFactory | None
    ) -> None:
        self.embedding_dim, self.limits, self.optimizer = embedding_dim, limits, optimizer
        self._supernet = supernet

    @abstractmethod
    def graph(self, genotype: Genotype) -> Graph:
        """Return what a genotype stands for, dead nodes too."""

    @abstractmethod
    def weights(self, stem: Stem) -> Iterator[tuple[str, dict[str, Weight]]]:
        """Yield slots with weights as large as any step there needs them; a slot may come several times."""

    def gated(self, groups: Sequence[str]) -> list[int]:
        """Return the places of the choices of `groups`."""
        return [place for group in groups for place in self._by_group.get(group, ())]

    @cached_property
    def _by_group(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, list[int]] = {}
        for place, choice in enumerate(self.choices):
            found.setdefault(choice.group, []).append(place)
        return {group: tuple(places) for group, places in found.items()}

    def plan(self, genotype: Genotype, stem: Stem) -> Plan:
        """Return the steps of a candidate, without dead ones."""
        return plan(self.graph(genotype).pruned(), stem, self.limits)

    def program(self, genotype: Genotype, schema: FeatureSchema) -> Program:
        """Return what the candidate does for a sample."""
        stem = stem_of(schema, self.embedding_dim)
        return lower(self.plan(genotype, stem), stem, schema)

    def supernet(self, schema: FeatureSchema) -> Supernet:
        """Return the network that shares the weights of all candidates."""
        from recloom_rankitect.supernet import GraphSupernet

        return (self._supernet or GraphSupernet)(self, schema.to_dict())

    def options(self) -> dict[str, Any]:
        """Return the arguments that candidates of both spaces have."""
        found: dict[str, Any] = {
            "embedding_dim": self.embedding_dim,
            "max_features": self.limits.features,
            "max_tokens": self.limits.tokens,
        }
        if self.optimizer is not None:
            found["optimizer"] = dataclasses.asdict(self.optimizer)
        return found
