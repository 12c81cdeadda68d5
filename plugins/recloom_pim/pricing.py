"""Energy, latency and area of a model on crossbars, for many configurations at once.

A matrix of K x N weights of w bits, applied to V vectors of b-bit values, on crossbars of R rows and C columns with
c-bit cells and d-bit row converters, r times:

    slices of a weight T = ceil(w/c), of a value S = ceil(b/d)
    arrays = r ceil(K/R) ceil(N T / C)          conversions = V S ceil(K/R) N T
    time = (ceil(V/r) S + 6) cycles             a cycle = max(100 ns, C / (converters x 1.28 GS/s))

as in ISAAC (ISCA 2016), whose pipeline has six further stages. A result's time is that of the works it needs, plus its
own; the digital unit of a group does one work after another. Units: pJ, ns, um2 inside; see `Prices` for the results'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from recloom_pim.constants import Constants
from recloom_pim.crossbars import Configurations
from recloom_pim.layout import Floats, Layout

AdcLaw = Literal["sar", "power"]
COMPONENTS = ("adc", "dac", "array", "shift_add", "buffer", "network", "digital", "memory", "write")
_CHUNK = 1024


@dataclass(frozen=True)
class Prices:
    """What H configurations cost, for one sample.

    Args:
        energy: nJ by component, H each; a component's value is H x W with `by_work`.
        latency: From the sample's arrival to its logit, ns, H.
        interval: Between two samples in the pipeline, ns, H: the busiest crossbar or unit decides.
        area: mm2, H.
        arrays: Crossbars, H.
        utilisation: Share of their cells that hold weights, H.
    """

    energy: dict[str, Floats]
    latency: Floats
    interval: Floats
    area: Floats
    arrays: Floats
    utilisation: Floats

    @property
    def total(self) -> Floats:
        """Energy of all components, nJ, H (or H x W)."""
        return np.sum(list(self.energy.values()), axis=0)


def price(
    layout: Layout, configurations: Configurations, constants: Constants, law: AdcLaw = "sar", by_work: bool = False
) -> Prices:
    """Return the costs of a model on each configuration.

    Args:
        layout: The model's work.
        configurations: H configurations.
        constants: Constants.
        law: How converters scale with their bits a: "sar": the table of SAR converters; "power": 2^(a-8) of the 8-bit
            one, energy and area.
        by_work: Whether energies are told for each work.
    """
    count = len(configurations)
    parts = [
        _price(layout, configurations.part(start, start + _CHUNK), constants, law, by_work)
        for start in range(0, count, _CHUNK)
    ]
    if len(parts) == 1:
        return parts[0]
    names = ("latency", "interval", "area", "arrays", "utilisation")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    energy = {name: np.concatenate([part.energy[name] for part in parts]) for name in COMPONENTS}
    return Prices(energy, **joined)


@dataclass(frozen=True)
class _Matrices:
    """The M matrices on H configurations, H x M each; letters as in the module's docstring."""

    T: Floats
    S: Floats
    b: Floats
    down: Floats  # ceil(K / R)
    across: Floats  # ceil(N T / C)
    copies: Floats  # r, where there are several vectors
    arrays: Floats
    cycles: Floats
    cycle: Floats  # H x 1


def _matrices(x: Layout, h: Configurations, k: Constants) -> _Matrices:
    group = x.group[x.static]
    b = h.activation_bits[:, group]
    T = np.ceil(h.weight_bits[:, group] / h.cell_bits[:, None])
    T = np.where(x.written > 0, np.ceil(b / h.cell_bits[:, None]), T)  # an operand that is written is an activation
    S = np.ceil(b / h.dac_bits[:, None])
    down, across = np.ceil(x.rows / h.rows[:, None]), np.ceil(x.columns * T / h.columns[:, None])
    copies = np.clip(h.replication[:, None], 1, np.maximum(x.vectors, 1))
    copies = np.where(x.written > 0, 1, copies)
    exists = (x.rows * x.columns * x.vectors > 0).astype(np.float64)
    cycles = exists * (np.ceil(x.vectors / copies) * S + k.pipeline_cycles)
    cycle = np.maximum(k.read_time, h.columns / (h.adcs * k.adc_rate))[:, None]
    return _Matrices(T, S, b, down, across, copies, exists * x.owned * copies * down * across, cycles, cycle)


def _price(x: Layout, h: Configurations, k: Constants, law: AdcLaw, by_work: bool) -> Prices:
    m = _matrices(x, h, k)
    energy = _energies(x, h, m, k, law)
    if by_work:
        energy = {name: 1e-3 * value for name, value in energy.items()}
    else:
        energy = {name: 1e-3 * value.sum(1) for name, value in energy.items()}
    latency, interval = _times(x, h, m, k)
    arrays = m.arrays.sum(1)
    cells = (m.arrays > 0) * m.copies * x.rows * x.columns * m.T
    capacity = np.maximum(arrays * h.rows * h.columns, 1)
    return Prices(energy, latency, interval, _area(x, h, arrays, k, law), arrays, cells.sum(1) / capacity)


def _energies(x: Layout, h: Configurations, m: _Matrices, k: Constants, law: AdcLaw) -> dict[str, Floats]:
    """Return the energy of each component and work, pJ, H x W."""
    vectors = x.vectors * (x.rows * x.columns > 0)
    reads = vectors * m.S  # H x M
    conversions = reads * m.down * x.columns * m.T
    drives = reads * x.rows * m.across
    cells = reads * x.rows * x.columns * m.T
    dac = (k.dac_energy * 2 ** (h.dac_bits - 1))[:, None]
    passed = x.columns * k.partial_sum_bits * np.maximum(m.down - 1, 0)  # partial sums of arrays one above the other
    taken = x.rows * m.b * np.ceil(m.across / k.arrays_per_unit)
    stored = vectors * (taken + x.columns * m.b + passed)
    moved = vectors * (k.bus_energy * (taken + x.columns * m.b) + k.router_energy * (x.rows * m.b + passed))
    on_crossbars = {
        "adc": conversions * _adc(k, k.adc_energy, h.adc_bits, law)[:, None],
        "dac": drives * dac,
        "array": cells * k.cell_energy + conversions * k.hold_energy,
        "shift_add": conversions * (k.shift_add_energy + k.output_register_energy),
        "buffer": stored * k.buffer_energy + drives * h.dac_bits[:, None] * k.input_register_energy,
        "network": moved,
        "write": x.written * x.rows * x.columns * m.T * k.write_energy,
    }
    found: dict[str, Floats] = {}
    for name in COMPONENTS:
        found[name] = np.zeros((len(h), len(x.names)))
        if name in on_crossbars:
            found[name][:, x.static] = on_crossbars[name]
    found["digital"] += x.macs * k.mac_energy + x.operations * k.elementwise_energy
    found["memory"] += x.values * k.table_bits * (k.memory_energy + k.link_energy)
    return found


def _times(x: Layout, h: Configurations, m: _Matrices, k: Constants) -> tuple[Floats, Floats]:
    """Return the time of the critical path, and the time of what is busy longest; ns, H."""
    own = np.zeros((len(h), len(x.names)))
    pulses = x.written * np.minimum(x.rows, h.rows[:, None]) * k.set_pulse
    own[:, x.static] = m.cycles * m.cycle + pulses
    own += np.ceil((x.macs + x.operations) / k.digital_lanes) / k.digital_clock
    own += np.where(x.values > 0, k.memory_latency + x.values * k.table_bits / k.memory_bandwidth, 0.0)
    ready = np.zeros_like(own)
    free: dict[tuple[str, int], Floats] = {}  # when a shared unit has done what it was given
    busy: dict[tuple[str, int], Floats] = {}
    stream = own.copy()  # what a further sample adds, in a pipeline
    stream[:, x.static] = np.maximum(m.cycles - k.pipeline_cycles, 0) * m.cycle + pulses
    stream -= np.where(x.values > 0, k.memory_latency, 0.0)
    for place, (kind, inputs) in enumerate(zip(x.kinds, x.inputs, strict=True)):
        unit = (kind, int(x.group[place]) if kind == "digital" else x.owner[place])
        start = free.get(unit, np.zeros(len(h)))
        for source in inputs:
            start = np.maximum(start, ready[:, source])
        ready[:, place] = free[unit] = start + own[:, place]
        busy[unit] = busy.get(unit, np.zeros(len(h))) + stream[:, place]
    if not busy:
        return np.zeros(len(h)), np.zeros(len(h))
    return ready.max(1), np.max(list(busy.values()), axis=0)


def _area(x: Layout, h: Configurations, arrays: Floats, k: Constants, law: AdcLaw) -> Floats:
    """Return the area, mm2, H: arrays with what each needs, whole tiles, digital units."""
    array = array_area(h, k, law)
    tiles = np.ceil(arrays / k.arrays_per_tile)
    units = len({int(x.group[place]) for place in np.flatnonzero(x.macs + x.operations)})
    return 1e-6 * (arrays * array + tiles * k.tile_area + units * k.digital_lanes * k.lane_area)


def array_area(h: Configurations, k: Constants, law: AdcLaw) -> Floats:
    """Return the area of a crossbar with its converters and registers, um2, H."""
    return np.asarray(
        h.adcs * _adc(k, k.adc_area, h.adc_bits, law)
        + h.rows * (k.dac_area * 2 ** (h.dac_bits - 1) + k.input_register_area / 128)
        + h.columns * (k.hold_area + k.output_register_area / 128)
        + h.rows * h.columns * k.cell_area
        + k.shift_add_area
    )


def _adc(k: Constants, values: tuple[float, ...], bits: Floats, law: AdcLaw) -> Floats:
    """Return energy or area of converters of so many bits; beyond the table's ends its last ratio goes on."""
    known = np.array(k.adc_resolutions)
    if law == "power":
        return np.asarray(values[int(np.flatnonzero(known == 8)[0])] * 2.0 ** (bits - 8))
    logs = np.log(values)
    inside = np.interp(bits, known, logs)
    below = np.minimum(bits - known[0], 0) * (logs[1] - logs[0])
    above = np.maximum(bits - known[-1], 0) * (logs[-1] - logs[-2])
    return np.exp(inside + below + above)
