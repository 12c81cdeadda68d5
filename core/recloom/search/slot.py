"""SlotSpace: models of another space as a part of a given model, such as the item tower of a retrieval model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from recloom.errors import RecloomError
from recloom.features import FeatureSchema
from recloom.retrieval.sides import split_schema
from recloom.search.program import Program
from recloom.search.space import Choice, Genotype, SearchSpace


class SlotSpace(SearchSpace):
    """Models of another space in a slot of a given model; the rest of that model stays as it is.

    Candidates are trained and measured as whole models. Costs are those of the part.

    Args:
        space: The space of the part.
        model: The whole model, as a config has it: `class_path` and `init_args`, without the slot.
        slot: The argument of the model that the part is for: "item_tower".
        side: Whose features the part sees: "user", "item", or all of them.
        outputs: Columns of the part's output, which count in its costs.
    """

    def __init__(
        self,
        space: SearchSpace,
        model: dict[str, Any],
        slot: str,
        side: Literal["user", "item", "all"] = "all",
        outputs: int = 1,
    ) -> None:
        if "class_path" not in model:
            raise RecloomError("SlotSpace: its model has no class_path", "Write it as in a config of `recloom fit`.")
        if slot in model.get("init_args", {}):
            raise RecloomError(f"SlotSpace: its model has {slot!r} already", "Leave it out: it is what is searched.")
        if outputs < 1:
            raise RecloomError(f"SlotSpace: {outputs} outputs", "Give the width of what the part returns.")
        self.space, self.model, self.slot, self.side, self.outputs = space, model, slot, side, outputs

    @property
    def choices(self) -> Sequence[Choice]:
        """The part's choices."""
        return self.space.choices

    def canonical(self, genotype: Genotype) -> Genotype:
        """Return the part's canonical genotype."""
        return self.space.canonical(genotype)

    def program(self, genotype: Genotype, schema: FeatureSchema) -> Program:
        """Return what the part does for a sample."""
        seen = schema if self.side == "all" else split_schema(schema)[self.side == "item"]
        labels = tuple(f"output{column}" for column in range(self.outputs))
        return self.space.program(genotype, dataclasses.replace(seen, labels=labels))

    def model_config(self, genotype: Genotype) -> dict[str, Any]:
        """Return the whole model."""
        found = copy.deepcopy(self.model)
        found.setdefault("init_args", {})[self.slot] = self.space.model_config(genotype)
        return found

    def sample(self, rng: np.random.Generator) -> Genotype:
        """Return a random part."""
        return self.space.sample(rng)

    def sample_field(self, field: str, genotype: Genotype | None, rng: np.random.Generator) -> tuple[int, ...]:
        """Return random options for the choices of `field`."""
        return self.space.sample_field(field, genotype, rng)

    def mutate(self, genotype: Genotype, rng: np.random.Generator, count: int = 1) -> Genotype:
        """Return the part after `count` mutations of its own kind."""
        return self.space.mutate(genotype, rng, count)

    def valid(self, genotype: Genotype) -> bool:
        """Return whether the part is valid."""
        return self.space.valid(genotype)

    def matters(self, genotype: Genotype) -> tuple[bool, ...]:
        """Return which of the part's choices make a difference."""
        return self.space.matters(genotype)
