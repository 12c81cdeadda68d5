"""The constants of the cost model, from constants.yaml: each with its unit and its source."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from recloom.errors import DataError, unknown

SEEN = ("table", "code", "assumed")


@dataclass(frozen=True)
class Constants:
    """Values by name; units and sources are in constants.yaml, and `table` reads them."""

    adc_resolutions: tuple[float, ...]
    adc_energy: tuple[float, ...]
    adc_area: tuple[float, ...]
    adc_rate: float
    read_time: float
    pipeline_cycles: float
    cell_energy: float
    cell_area: float
    dac_energy: float
    dac_area: float
    hold_energy: float
    hold_area: float
    shift_add_energy: float
    shift_add_area: float
    input_register_energy: float
    input_register_area: float
    output_register_energy: float
    output_register_area: float
    buffer_energy: float
    bus_energy: float
    router_energy: float
    partial_sum_bits: float
    arrays_per_unit: float
    units_per_tile: float
    tile_area: float
    tile_power: float
    tiles_per_chip: float
    link_power: float
    link_area: float
    digital_lanes: float
    digital_clock: float
    mac_energy: float
    elementwise_energy: float
    lane_area: float
    memory_energy: float
    link_energy: float
    memory_latency: float
    memory_bandwidth: float
    table_bits: float
    set_voltage: float
    set_pulse: float
    resistance_on: float
    resistance_off: float
    published_throughput: float
    published_density: float
    published_efficiency: float

    @property
    def arrays_per_tile(self) -> float:
        """Arrays of a tile."""
        return self.arrays_per_unit * self.units_per_tile

    @property
    def write_energy(self) -> float:
        """Energy of writing a cell, pJ: V^2 t of the mean conductance."""
        mean = (1 / self.resistance_on + 1 / self.resistance_off) / 2
        return 1e3 * self.set_voltage**2 * mean * self.set_pulse  # V^2 / ohm x ns = nJ


@functools.cache
def load(path: str | None = None) -> Constants:
    """Return the constants of a YAML file like constants.yaml; by default those.

    Raises:
        DataError: A constant is missing, unknown, or has no value, unit, source or no word in `seen`.
    """
    entries = table(path)
    known = [field.name for field in fields(Constants)]
    where = path or "constants.yaml"
    for name in entries:
        if name not in known:
            raise unknown(f"{where}: constant", name, known)
    for name in known:
        if name not in entries:
            raise DataError(f"{where} has no {name}", "Start from the plugin's constants.yaml and change values.")
    values: dict[str, Any] = {name: entry["value"] for name, entry in entries.items()}
    values = {name: tuple(v) if isinstance(v, list) else float(v) for name, v in values.items()}
    return Constants(**values)


@functools.cache
def table(path: str | None = None) -> dict[str, dict[str, Any]]:
    """Return every constant with its value, unit, source, and how it is known."""
    text = Path(path).read_text() if path else resources.files("recloom_pim").joinpath("constants.yaml").read_text()
    entries: dict[str, dict[str, Any]] = yaml.safe_load(text)
    for name, entry in entries.items():
        missing = {"value", "unit", "source", "seen"} - set(entry)
        if missing or entry["seen"] not in SEEN:
            raise DataError(
                f"{path or 'constants.yaml'}: {name}: {', '.join(sorted(missing)) or 'seen'} is missing or unknown",
                f"A constant has a value, a unit, a source, and seen: {', '.join(SEEN)}.",
            )
    return entries
