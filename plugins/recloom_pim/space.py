"""PIMSpace: any space of models, times crossbars, times the bits of each block."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recloom.errors import RecloomError
from recloom.features import DenseFeature, FeatureSchema, SparseFeature
from recloom.search.program import Program
from recloom.search.space import Choice, Genotype, SearchSpace
from recloom.search.supernet import Supernet
from recloom_pim.crossbars import Crossbars
from recloom_pim.quantise import Device

REST = "rest"  # what is in none of the space's groups: the last layer
_PROBE = FeatureSchema(
    tuple(DenseFeature(f"d{i}") for i in range(13)), tuple(SparseFeature(f"c{i}", 8) for i in range(26))
)


class PIMSpace(SearchSpace):
    """Models of another space, each on crossbars of its own.

    To the other space's choices come the crossbars' (group "crossbars") and, for each of its groups, the bits of
    weights and activations. A group without matrices takes the first bits: they decide nothing.

    Args:
        space: The space of models: NASRecSpace, or any other.
        rows: Rows of a crossbar to choose from.
        columns: Columns of a crossbar.
        cell_bits: Bits of a cell.
        dac_bits: Bits that a row is driven with at once.
        adc_lost: By how many bits the columns' converters fall short of losing nothing. (Bits themselves would make
            most combinations with rows, cells and DACs useless: noise above the signal, or bits of no use.)
        replication: Copies of crossbars through which a sample sends several vectors.
        weight_bits: Bits of a block's weights.
        activation_bits: Bits of a block's activations.
        device: Imperfections of cells and converters, which candidates are trained and measured with.
        exact_steps: Optimizer steps in full precision at the start of a candidate's training.
        supernet_exact_steps: The same of the supernet's training.
    """

    def __init__(
        self,
        space: SearchSpace,
        rows: tuple[int, ...] = (64, 128, 256),
        columns: tuple[int, ...] = (64, 128, 256),
        cell_bits: tuple[int, ...] = (1, 2),
        dac_bits: tuple[int, ...] = (1, 2),
        adc_lost: tuple[int, ...] = (0, 1, 2),
        replication: tuple[int, ...] = (1, 2, 4, 8, 16),
        weight_bits: tuple[int, ...] = (4, 8),
        activation_bits: tuple[int, ...] = (4, 8),
        device: Device | None = None,
        exact_steps: int = 0,
        supernet_exact_steps: int = 0,
    ) -> None:
        if isinstance(space, PIMSpace):
            raise RecloomError("PIMSpace: its space is a PIMSpace", "Give it a space of models: NASRecSpace, ...")
        self.space = space
        self.shared = {
            "rows": rows,
            "columns": columns,
            "cell_bits": cell_bits,
            "dac_bits": dac_bits,
            "adc_lost": adc_lost,
            "replication": replication,
        }
        self.each = {"weight_bits": weight_bits, "activation_bits": activation_bits}
        for name, options in {**self.shared, **self.each}.items():
            least = {"weight_bits": 2, "adc_lost": 0}.get(name, 1)
            if not options or min(options) < least:
                raise RecloomError(f"PIMSpace: {name} is {list(options)}", f"Give numbers of at least {least}.")
        self.device = device or Device()
        self.exact_steps, self.supernet_exact_steps = exact_steps, supernet_exact_steps
        self._known: dict[Genotype, frozenset[str]] = {}

    @cached_property
    def choices(self) -> Sequence[Choice]:
        """The other space's choices, the crossbars', and the bits of each group."""
        found = list(self.space.choices)
        for name, options in self.shared.items():
            found.append(Choice(f"crossbars.{name}", tuple(sorted(options)), True, group="crossbars"))
        for group in self.precisions:
            for name, options in self.each.items():
                home = group if group != REST else "crossbars"
                found.append(Choice(f"{group}.{name}", tuple(sorted(options)), True, group=home))
        return found

    @cached_property
    def precisions(self) -> tuple[str, ...]:
        """The groups that have bits of their own."""
        return (*dict.fromkeys(choice.group for choice in self.space.choices if choice.group), REST)

    @cached_property
    def split(self) -> int:
        """The number of the other space's choices."""
        return len(self.space.choices)

    def model(self, genotype: Genotype) -> Genotype:
        """Return the other space's part of a genotype."""
        return genotype[: self.split]

    def hardware(self, genotype: Genotype) -> Genotype:
        """Return the other part of a genotype."""
        return genotype[self.split :]

    def crossbars(self, genotype: Genotype) -> Crossbars:
        """Return the crossbars of a genotype, or of the `hardware` of one."""
        own = genotype[-(len(self.choices) - self.split) :]
        values = [c.options[option] for c, option in zip(self.choices[self.split :], own, strict=True)]
        shared, bits = values[: len(self.shared)], values[len(self.shared) :]
        pairs = {group: (bits[2 * place], bits[2 * place + 1]) for place, group in enumerate(self.precisions)}
        weight, activation = pairs.pop(REST)
        named = dict(zip(self.shared, shared, strict=True))
        lost = named.pop("adc_lost")
        found = Crossbars(**named, weight_bits=weight, activation_bits=activation, bits=pairs)
        return dataclasses.replace(found, adc_bits=max(1, found.lossless_adc_bits - lost))

    def sample_field(self, field: str, genotype: Genotype | None, rng: np.random.Generator) -> tuple[int, ...]:
        """Return random options; of the other space's fields as it samples them."""
        if field in self.space.places:
            return self.space.sample_field(field, None if genotype is None else self.model(genotype), rng)
        return super().sample_field(field, genotype, rng)

    def valid(self, genotype: Genotype) -> bool:
        """Return whether the model is valid, and each option exists."""
        return super().valid(genotype) and self.space.valid(self.model(genotype))

    @property
    def log10_size(self) -> float:
        """Decimal logarithm of the number of genotypes."""
        return self.space.log10_size + sum(float(np.log10(len(c.options))) for c in self.choices[self.split :])

    def canonical(self, genotype: Genotype) -> Genotype:
        """Return the canonical model, with the first bits for groups that have no matrix."""
        model = self.space.canonical(self.model(genotype))
        live = self._live(model)
        own = list(self.hardware(genotype))
        for place, group in enumerate(self.precisions):
            if group != REST and group not in live:
                start = len(self.shared) + len(self.each) * place
                own[start : start + len(self.each)] = [0] * len(self.each)
        return (*model, *own)

    def program(self, genotype: Genotype, schema: FeatureSchema) -> Program:
        """Return what the model does for a sample: the canonical one, whose blocks the bits belong to."""
        return self.space.program(self.space.canonical(self.model(genotype)), schema)

    def model_config(self, genotype: Genotype) -> dict[str, Any]:
        """Return the model as an OnCrossbars; of the canonical genotype: bits of what is dead say nothing."""
        genotype = self.canonical(genotype)
        crossbars = dataclasses.asdict(self.crossbars(genotype))
        crossbars["bits"] = {group: list(pair) for group, pair in crossbars["bits"].items()}
        init_args = {
            "model": self.space.model_config(self.model(genotype)),
            "crossbars": crossbars,
            "device": dataclasses.asdict(self.device),
            "exact_steps": self.exact_steps,
        }
        return {"class_path": "recloom_pim.model.OnCrossbars", "init_args": init_args}

    def supernet(self, schema: FeatureSchema) -> Supernet:
        """Return the other space's supernet, with the crossbars and bits drawn anew in every step."""
        from recloom_pim.supernet import PIMSupernet

        return PIMSupernet(self, schema.to_dict())

    def encode(self, genotype: Genotype) -> NDArray[np.float32]:
        """Return the other space's encoding, and the crossbars and bits as numbers 0..1."""
        canonical = self.canonical(genotype)
        own = [
            option / max(len(choice.options) - 1, 1)
            for option, choice in zip(self.hardware(canonical), self.choices[self.split :], strict=True)
        ]
        return np.concatenate([self.space.encode(self.model(genotype)), np.array(own, np.float32)])

    def _live(self, model: Genotype) -> frozenset[str]:
        """Return the groups that have products, for a canonical model."""
        if model not in self._known:
            works = self.space.program(model, _PROBE).works
            self._known[model] = frozenset(work.group for work in works if work.kind in ("matmul", "dynamic"))
        return self._known[model]
