"""Search spaces: what can be chosen, as a fixed number of integers.

A genotype is a tuple of integers, one a choice: an index into the choice's options. Whatever a space is about, methods
see only this; whatever a method does, a space sees only genotypes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recloom.errors import RecloomError, unknown
from recloom.features import FeatureSchema
from recloom.search.program import Program

if TYPE_CHECKING:
    from recloom.model import RankingModule
    from recloom.search.supernet import Supernet

Genotype = tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """One thing to choose.

    Args:
        name: Its name, unique in the space: "block2.dense_op". Also the name of the study's parameter.
        options: What can be chosen: JSON values (names, widths, booleans).
        ordered: Whether options that are near in the list are alike (widths, depths, bits).
        field: Choices with the same field are chosen together: the bits of a set of connections, say. Empty: its own.
        group: The part of the architecture that it belongs to ("block2").
    """

    name: str
    options: tuple[Any, ...]
    ordered: bool = False
    field: str = ""
    group: str = ""

    @property
    def field_name(self) -> str:
        """The field, by default the choice's own name."""
        return self.field or self.name


class SearchSpace(ABC):
    """A set of architectures: the slot `space` of a search.

    A subclass gives `choices`, `canonical`, `program` and `model_config`; and `sample_field`, if not all combinations
    of the options of a field are valid. A space that offers weight sharing also gives `supernet`.
    """

    @property
    @abstractmethod
    def choices(self) -> Sequence[Choice]:
        """The choices, in the order of a genotype's integers; the same for every instance with the same options."""

    @abstractmethod
    def canonical(self, genotype: Genotype) -> Genotype:
        """Return the representative of all genotypes that stand for the same model: what is dead takes option 0."""

    @abstractmethod
    def program(self, genotype: Genotype, schema: FeatureSchema) -> Program:
        """Return what the model does for a sample, dead parts left out: for costs and hardware models."""

    @abstractmethod
    def model_config(self, genotype: Genotype) -> dict[str, Any]:
        """Return the model as a config of `recloom fit`: {"class_path": ..., "init_args": ...}, without its schema."""

    def build(self, genotype: Genotype, schema: FeatureSchema) -> RankingModule:
        """Return the model, with fresh weights."""
        from recloom.loading import instantiate_model

        return instantiate_model(self.model_config(genotype), schema)

    def supernet(self, schema: FeatureSchema) -> Supernet:
        """Return a network that shares the weights of all models of the space."""
        raise RecloomError(
            f"{type(self).__name__} has no supernet", "Use an evaluator that trains each candidate: FromScratch."
        )

    def sample_field(self, field: str, genotype: Genotype | None, rng: np.random.Generator) -> tuple[int, ...]:
        """Return random options for the choices of `field`, given the others as in `genotype` (None: unknown)."""
        return tuple(int(rng.integers(len(self.choices[place].options))) for place in self.places[field])

    # What methods use

    @cached_property
    def places(self) -> dict[str, tuple[int, ...]]:
        """The places of each field's choices in a genotype."""
        found: dict[str, list[int]] = {}
        for place, choice in enumerate(self.choices):
            found.setdefault(choice.field_name, []).append(place)
        return {field: tuple(places) for field, places in found.items()}

    @cached_property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The fields of each group that can change."""
        found: dict[str, dict[str, None]] = {}
        for choice in self.choices:
            if len(choice.options) > 1:
                found.setdefault(choice.group, {})[choice.field_name] = None
        return {group: tuple(fields) for group, fields in found.items()}

    @property
    def log10_size(self) -> float:
        """Upper bound of the number of genotypes, as its decimal logarithm."""
        return sum(math.log10(len(choice.options)) for choice in self.choices)

    def sample(self, rng: np.random.Generator) -> Genotype:
        """Return a random genotype: every field at random."""
        found = [0] * len(self.choices)
        for field, places in self.places.items():
            for place, option in zip(places, self.sample_field(field, None, rng), strict=True):
                found[place] = option
        return tuple(found)

    def mutate(self, genotype: Genotype, rng: np.random.Generator, count: int = 1) -> Genotype:
        """Return `genotype` after `count` times sampling a random field of a random group anew."""
        names = list(self.groups)
        for _ in range(count):
            fields = self.groups[names[rng.integers(len(names))]]
            genotype = self._with_new(genotype, fields[rng.integers(len(fields))], rng)
        return genotype

    def crossover(self, first: Genotype, second: Genotype, rng: np.random.Generator) -> Genotype:
        """Return a child: each group from one of the two parents."""
        take = {group: bool(rng.integers(2)) for group in self.groups}
        return tuple(
            b if take.get(choice.group, False) else a for choice, a, b in zip(self.choices, first, second, strict=True)
        )

    def neighbours(self, genotype: Genotype) -> Iterator[Genotype]:
        """Yield every genotype that differs in one choice and is valid."""
        for place, choice in enumerate(self.choices):
            for option in range(len(choice.options)):
                if option != genotype[place]:
                    near = (*genotype[:place], option, *genotype[place + 1 :])
                    if self.valid(near):
                        yield near

    def valid(self, genotype: Genotype) -> bool:
        """Return whether every combination of a field's options is one that `sample_field` could give."""
        return all(0 <= option < len(c.options) for option, c in zip(genotype, self.choices, strict=True))

    def repair(self, genotype: Genotype) -> Genotype:
        """Return `genotype` if it is valid, else a valid one near it: the same one every time.

        It starts from a random genotype and takes over each field of `genotype`, or if that is not valid each of the
        field's choices, as long as the result stays valid.
        """
        sizes = [len(choice.options) for choice in self.choices]
        wanted = tuple(min(max(int(o), 0), size - 1) for o, size in zip(genotype, sizes, strict=True))
        if self.valid(wanted):
            return wanted
        found = self.sample(np.random.default_rng(wanted))
        for places in self.places.values():
            for part in (places, *((place,) for place in places)):
                trial = list(found)
                for place in part:
                    trial[place] = wanted[place]
                if self.valid(tuple(trial)):
                    found = tuple(trial)
                    if part is places:
                        break
        return found

    def matters(self, genotype: Genotype) -> tuple[bool, ...]:
        """Return which choices make a difference: methods learn about the options of those alone."""
        model = self.canonical(genotype)
        found = []
        for place, choice in enumerate(self.choices):
            others = (
                (*genotype[:place], option, *genotype[place + 1 :])
                for option in range(len(choice.options))
                if option != genotype[place]
            )
            found.append(any(self.canonical(other) != model for other in others if self.valid(other)))
        return tuple(found)

    def encode(self, genotype: Genotype) -> NDArray[np.float32]:
        """Return the canonical genotype as numbers for predictors: ordered choices 0..1, others one-hot."""
        parts: list[NDArray[np.float32]] = []
        for option, choice in zip(self.canonical(genotype), self.choices, strict=True):
            count = len(choice.options)
            if choice.ordered or count <= 2:
                parts.append(np.array([option / max(count - 1, 1)], np.float32))
            else:
                parts.append(np.eye(count, dtype=np.float32)[option])
        return np.concatenate(parts)

    def to_json(self, genotype: Genotype) -> dict[str, Any]:
        """Return the options by the names of their choices."""
        return {c.name: c.options[option] for c, option in zip(self.choices, genotype, strict=True)}

    def from_json(self, document: dict[str, Any]) -> Genotype:
        """Return the genotype that `to_json` wrote.

        Raises:
            RecloomError: A choice is missing or unknown, or its option is none of its options.
        """
        names = [choice.name for choice in self.choices]
        for name in document:
            if name not in names:
                raise unknown("choice", name, names)
        if missing := [name for name in names if name not in document]:
            raise RecloomError(f"the architecture has no {missing[0]!r}", f"It needs: {', '.join(missing)}")
        found = []
        for choice in self.choices:
            value = document[choice.name]
            options = [list(o) if isinstance(o, tuple) else o for o in choice.options]
            value = list(value) if isinstance(value, tuple) else value
            if value not in options:
                raise RecloomError(f"{choice.name} is {value!r}", f"Its options: {options}")
            found.append(options.index(value))
        genotype = tuple(found)
        if not self.valid(genotype):
            raise RecloomError("the architecture is no valid one of this space", "Compare it with one that was found.")
        return genotype

    def _with_new(self, genotype: Genotype, field: str, rng: np.random.Generator) -> Genotype:
        """Return `genotype` with other options for `field`."""
        places = self.places[field]
        now = tuple(genotype[place] for place in places)
        for _ in range(100):
            fresh = self.sample_field(field, genotype, rng)
            if fresh != now:
                found = list(genotype)
                for place, option in zip(places, fresh, strict=True):
                    found[place] = option
                return tuple(found)
        return genotype  # there is no other
