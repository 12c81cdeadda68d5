"""The self-check: what the model gives for ISAAC's chip, beside what was published."""

from __future__ import annotations

from recloom.search.program import Program
from recloom_pim.constants import Constants
from recloom_pim.crossbars import Configurations, Crossbars
from recloom_pim.layout import Layout
from recloom_pim.pricing import AdcLaw, array_area, price


def peak(constants: Constants, law: AdcLaw = "sar") -> dict[str, float]:
    """Return the peak of ISAAC's chip at 16 bits: throughput (TOPS), power (W), area (mm2), and their ratios.

    A matrix that fills all crossbars is priced, many vectors one after another, so that the pipeline is full. Buffers,
    networks and links have their full power, as in ISAAC's Table I: their use depends on the model.

    Returns:
        throughput (TOPS), power (W), area (mm2), density (GOPS/mm2), efficiency (GOPS/W); priced_power (W): with what
        buffers and networks need for this matrix instead, and without links.
    """
    k = constants
    arrays = int(k.tiles_per_chip * k.arrays_per_tile)
    hardware = Crossbars(weight_bits=16, activation_bits=16)
    across = int(k.arrays_per_tile)
    columns = across * hardware.columns * hardware.cell_bits // hardware.weight_bits
    rows = arrays // across * hardware.rows
    vectors = 100_000
    program = Program()
    program.add("chip", "matmul", rows, columns, vectors)
    layout = Layout.of(program)
    configuration = Configurations.of([hardware], layout)
    found = price(layout, configuration, k, law)
    assert found.arrays[0] == arrays
    time = float(found.interval[0])  # ns
    of_arrays = sum(float(found.energy[name][0]) for name in ("adc", "dac", "array", "shift_add"))
    registers = 1e-3 * vectors * rows * hardware.activation_bits * across * k.input_register_energy
    power = (of_arrays + registers) / time + 1e-3 * (k.tiles_per_chip * k.tile_power + k.link_power)
    tiles = k.tiles_per_chip * (k.arrays_per_tile * float(array_area(configuration, k, law)[0]) + k.tile_area)
    area = 1e-6 * (tiles + k.link_area)
    throughput = 1e-3 * 2 * rows * columns * vectors / time
    return {
        "throughput": throughput,
        "power": power,
        "area": area,
        "density": 1e3 * throughput / area,
        "efficiency": 1e3 * throughput / power,
        "priced_power": float(found.total[0]) / time,
    }
