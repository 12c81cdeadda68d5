"""Configurations of crossbars: one, or many as arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from recloom.errors import RecloomError
from recloom_pim.layout import Floats, Layout

_LEAST = {"rows": 1, "columns": 1, "cell_bits": 1, "dac_bits": 1, "adc_bits": 1, "adcs": 1, "replication": 1}


@dataclass(frozen=True)
class Crossbars:
    """A configuration of crossbars, and the precision of the layers on them. By default ISAAC's, with 8-bit layers.

    Args:
        rows: Rows of a crossbar.
        columns: Columns of a crossbar.
        cell_bits: Bits of a cell.
        dac_bits: Bits that a converter drives a row with at once.
        adc_bits: Bits of the converters at the columns.
        adcs: Converters of a crossbar.
        replication: Copies of the crossbars of layers through which a sample sends several vectors.
        weight_bits: Bits of weights.
        activation_bits: Bits of activations.
        bits: [weight bits, activation bits] of groups (blocks) that have others.
    """

    rows: int = 128
    columns: int = 128
    cell_bits: int = 2
    dac_bits: int = 1
    adc_bits: int = 8
    adcs: int = 1
    replication: int = 1
    weight_bits: int = 8
    activation_bits: int = 8
    bits: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = {**_LEAST, "weight_bits": 2, "activation_bits": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise RecloomError(f"crossbars: {name} is {getattr(self, name)}", f"It must be at least {bound}.")
        for group, pair in self.bits.items():
            if len(pair) != 2 or pair[0] < 2 or pair[1] < 1:
                raise RecloomError(
                    f"crossbars: bits of {group!r} are {list(pair)}", "Two numbers: [weight bits, activation bits]."
                )

    def of(self, group: str) -> tuple[int, int]:
        """Return the weight bits and activation bits of a group."""
        weight, activation = self.bits.get(group, (self.weight_bits, self.activation_bits))
        return weight, activation

    @property
    def lossless_adc_bits(self) -> int:
        """Bits with which converters lose nothing, given that no column is more than half full (ISAAC's encoding)."""
        return math.ceil(math.log2(self.rows * (2**self.cell_bits - 1) * (2**self.dac_bits - 1) / 2 + 1))


NAMES = tuple(f.name for f in fields(Crossbars) if f.name in _LEAST)


@dataclass(frozen=True)
class Configurations:
    """H configurations, and their precisions in G groups.

    Args:
        rows: Rows of a crossbar, H; the following are too, and mean what they do in `Crossbars`.
        columns: Columns.
        cell_bits: Bits of a cell.
        dac_bits: Bits of a row's converter.
        adc_bits: Bits of a column's converter.
        adcs: Converters of a crossbar.
        replication: Copies.
        weight_bits: H x G.
        activation_bits: H x G.
    """

    rows: Floats
    columns: Floats
    cell_bits: Floats
    dac_bits: Floats
    adc_bits: Floats
    adcs: Floats
    replication: Floats
    weight_bits: Floats
    activation_bits: Floats

    @classmethod
    def of(cls, hardware: Sequence[Crossbars], layout: Layout) -> Configurations:
        """Return the configurations as arrays, for the groups of a layout."""
        bits = np.array([[h.of(group) for group in layout.groups] for h in hardware], np.float64)
        bits = bits.reshape(len(hardware), len(layout.groups), 2)
        shared = {name: np.array([getattr(h, name) for h in hardware], np.float64) for name in NAMES}
        return cls(**shared, weight_bits=bits[:, :, 0], activation_bits=bits[:, :, 1])

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, start: int, stop: int) -> Configurations:
        """Return configurations start .. stop - 1."""
        return Configurations(**{f.name: getattr(self, f.name)[start:stop] for f in fields(self)})
