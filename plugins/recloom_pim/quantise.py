"""Products on crossbars as a network feels them: quantised operands, converters that round and clip, imperfect cells.

A weight of w bits is stored as ISAAC stores it: offset by 2^(w-1), in ceil(w/c) cells of c bits. A vector of
activations is mapped to 0 .. 2^b - 1 by its own least and greatest value, and driven onto the rows d bits at a time.
Every sum of a column over at most R rows passes a converter of a bits. Gradients pass every rounding unchanged
(straight-through).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from recloom.errors import RecloomError, unknown
from recloom_pim.crossbars import Crossbars

_TINY = 1e-12


@dataclass(frozen=True)
class Precision:
    """What decides about one product, of a configuration and of a layer's group.

    Args:
        rows: Rows of a crossbar, R.
        cell_bits: Bits of a cell, c.
        dac_bits: Bits of a row's converter, d.
        adc_bits: Bits of a column's converter, a.
        weight_bits: Bits of a weight, w.
        activation_bits: Bits of an activation, b.
    """

    rows: int
    cell_bits: int
    dac_bits: int
    adc_bits: int
    weight_bits: int
    activation_bits: int

    @classmethod
    def of(cls, crossbars: Crossbars, group: str) -> Precision:
        """Return the precision of a group's products."""
        weight, activation = crossbars.of(group)
        shared = (crossbars.rows, crossbars.cell_bits, crossbars.dac_bits, crossbars.adc_bits)
        return cls(*shared, weight, activation)

    @property
    def slices(self) -> int:
        """Cells of a weight, T."""
        return -(-self.weight_bits // self.cell_bits)

    @property
    def steps(self) -> int:
        """Slices of an activation, S."""
        return -(-self.activation_bits // self.dac_bits)

    def adc_step(self, rows: int, adc_range: float = 1.0) -> float:
        """Return what one step of a converter stands for, for sums over `rows` rows; 1 loses nothing.

        Half of the largest sum is the full scale: columns that are more than half full are stored inverted (ISAAC,
        section V). `adc_range` is the share of the full scale that the converter covers.
        """
        full = rows * (2**self.cell_bits - 1) * (2**self.dac_bits - 1) / 2
        return max(1.0, adc_range * full / 2**self.adc_bits)

    def conversion_error(self, rows: int) -> float:
        """Return the standard deviation of a product's error by conversion, for one group of `rows` rows.

        A conversion's error is that of rounding integers to multiples of a step, of variance (step^2 - 1) / 12; those
        of a product's slices add up with their weights.
        """
        weights = sum(4 ** (self.cell_bits * t) for t in range(self.slices))
        inputs = sum(4 ** (self.dac_bits * s) for s in range(self.steps))
        return math.sqrt((self.adc_step(rows) ** 2 - 1) / 12 * weights * inputs)


@dataclass(frozen=True)
class Device:
    """Imperfections of cells and converters.

    Args:
        variation: Standard deviation of a cell's conductance, as a share of it (MNSIM's default: 0.05).
        stuck_off: Share of cells that always read 0.
        stuck_on: Share of cells that always read their greatest value.
        converters: "noise": the errors of all conversions of a product are drawn at once, with their variance.
            "sliced": every conversion is computed, rounded and clipped: some 16 times the work.
        adc_range: Share of a column's full scale that converters cover; sums beyond are clipped. Below 1 for "sliced".
        draws: Chips over which validation rows are divided, so that their loss is the expected one.
        seed: Seed of the chips.
    """

    variation: float = 0.05
    stuck_off: float = 0.0
    stuck_on: float = 0.0
    converters: Literal["noise", "sliced"] = "noise"
    adc_range: float = 1.0
    draws: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.converters not in ("noise", "sliced"):
            raise unknown("converters", self.converters, ("noise", "sliced"))
        if self.adc_range != 1 and self.converters != "sliced":
            raise RecloomError("device: an adc_range below 1 clips, which needs every conversion", "converters: sliced")
        if self.draws < 1 or not 0 <= self.stuck_off + self.stuck_on <= 1 or self.variation < 0:
            raise RecloomError("device: shares are between 0 and 1, and draws at least 1", "See --help.")

    @property
    def perfect(self) -> bool:
        """Whether every chip is the same."""
        return not (self.variation or self.stuck_off or self.stuck_on)


def straight_through(x: Tensor, y: Tensor) -> Tensor:
    """Return y, with the gradient of x."""
    return x + (y - x).detach()


def quantised_weight(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return integers -2^(bits-1) + 1 .. 2^(bits-1) - 1 (as floats), and the scale that makes weights of them."""
    scale = weight.detach().abs().amax().clamp_min(_TINY) / (2 ** (bits - 1) - 1)
    exact = weight / scale
    return straight_through(exact, exact.round()), scale


def quantised_vectors(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return integers 0 .. 2^bits - 1 of each vector (last dimension), their scale and their offset, ... x 1 each."""
    low = x.detach().amin(-1, keepdim=True).clamp_max(0)
    high = x.detach().amax(-1, keepdim=True).clamp_min(0)
    scale = ((high - low) / (2**bits - 1)).clamp_min(_TINY)
    exact = (x - low) / scale
    return straight_through(exact, exact.round()), scale, low


def digits(values: Tensor, bits: int, count: int) -> list[Tensor]:
    """Return `count` digits of `bits` bits of integers, least first."""
    return [torch.div(values, 2 ** (bits * place), rounding_mode="floor") % 2**bits for place in range(count)]


def cell_errors(q: Tensor, p: Precision, device: Device, generator: torch.Generator | None = None) -> Tensor:
    """Return by how much weights read from cells differ from the integers q, in their units.

    Variation is Gaussian in each cell; a weight's cells add up to a Gaussian, which is drawn at once.
    """
    cells = digits(q + 2 ** (p.weight_bits - 1), p.cell_bits, p.slices)
    error = torch.zeros_like(q)
    top = 2**p.cell_bits - 1
    for place, cell in enumerate(cells if device.stuck_off or device.stuck_on else ()):
        luck = torch.rand(q.shape, generator=generator, device=q.device)
        stuck = torch.where(luck < device.stuck_off, 0.0, cell)
        cells[place] = torch.where(luck > 1 - device.stuck_on, float(top), stuck)
        error += 2 ** (p.cell_bits * place) * (cells[place] - cell)
    if device.variation:
        square = sum(4 ** (p.cell_bits * place) * cell**2 for place, cell in enumerate(cells))
        draw = torch.randn(q.shape, generator=generator, device=q.device)
        error += device.variation * torch.as_tensor(square).sqrt() * draw
    return error


def product(x: Tensor, q: Tensor, p: Precision, generator: torch.Generator | None = None) -> Tensor:
    """Return B x N sums of integers x, B x K, and q, N x K, with the errors of all their conversions."""
    exact = x @ q.t()
    rows = min(p.rows, q.shape[1])
    error = p.conversion_error(rows) * math.sqrt(-(-q.shape[1] // rows))
    if not error:
        return exact
    return exact + error * torch.randn(exact.shape, generator=generator, device=x.device)


def sliced_product(x: Tensor, q: Tensor, p: Precision, adc_range: float = 1.0) -> Tensor:
    """Return what `product` does, every conversion by itself: of a slice of weights, of inputs, and of R rows."""
    rows = min(p.rows, q.shape[1])
    step, top = p.adc_step(rows, adc_range), 2**p.cell_bits - 1
    full = rows * top * (2**p.dac_bits - 1) / 2
    most = min(step * (2**p.adc_bits - 1), adc_range * full) if step > 1 else adc_range * full
    out = torch.zeros(x.shape[0], q.shape[0], device=x.device)
    for start in range(0, q.shape[1], rows):
        here, stored = x[:, start : start + rows], q[:, start : start + rows] + 2 ** (p.weight_bits - 1)
        for t, cells in enumerate(digits(stored, p.cell_bits, p.slices)):
            inverted = cells.sum(1) > top * rows / 2  # N: stored inverted
            cells = torch.where(inverted[:, None], top - cells, cells)
            for s, driven in enumerate(digits(here, p.dac_bits, p.steps)):
                read = ((driven @ cells.t()) / step).round().mul(step).clamp(max=most)
                read = torch.where(inverted, top * driven.sum(1, keepdim=True) - read, read)
                out += 2 ** (p.cell_bits * t + p.dac_bits * s) * read
        out -= 2 ** (p.weight_bits - 1) * here.sum(1, keepdim=True)
    return out


def crossbar_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    p: Precision,
    device: Device | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return ... x N of ... x K activations, N x K weights and N biases, as crossbars compute it.

    Args:
        x: Activations.
        weight: Weights.
        bias: Added after conversion, in full precision.
        p: The precision.
        device: Imperfections; None: operands are quantised, and nothing else.
        generator: Draws a chip's cells; None: a new chip, from torch's own generator.
    """
    flat = x.reshape(-1, x.shape[-1])
    ideal, scale = quantised_weight(weight, p.weight_bits)
    vectors, step, low = quantised_vectors(flat, p.activation_bits)
    if device is None:
        sums = vectors @ ideal.t()
    else:
        errors = None if device.perfect else cell_errors(ideal.detach(), p, device, generator)
        if device.converters == "sliced":
            exact = sliced_product(vectors.detach(), ideal.detach(), p, device.adc_range)
            sums = straight_through(vectors @ ideal.t(), exact)
            sums = sums if errors is None else sums + vectors @ errors.t()  # they pass converters unrounded
        else:
            sums = product(vectors, ideal if errors is None else ideal + errors, p, generator)
    found = (sums * step + low * ideal.sum(1)) * scale
    found = found if bias is None else found + bias
    return found.view(*x.shape[:-1], weight.shape[0])
