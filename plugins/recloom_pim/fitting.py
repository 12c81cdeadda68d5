"""Crossbars and bits for one model: what saves most at its NE, and what is most precise within limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import numpy as np

from recloom.model import RankingModule
from recloom.search.evaluators.scratch import FromScratch
from recloom.search.program import Program
from recloom.search.training import measure
from recloom_pim.cost import PIMCost
from recloom_pim.crossbars import Crossbars
from recloom_pim.pricing import Prices

GRID = {
    "rows": (32, 64, 128, 256),
    "columns": (32, 64, 128, 256),
    "cell_bits": (1, 2),
    "dac_bits": (1, 2),
    "replication": (1, 2, 4, 8, 16),
    "weight_bits": (8, 6, 5, 4),
    "activation_bits": (8, 6, 5, 4),
}
BITS = ("weight", "activation")
FEW = 4  # validation batches on which crossbars for one model are compared


def grid(lost: tuple[int, ...]) -> list[Crossbars]:
    """Return crossbars of all combinations, whose converters fall short of losing nothing by so many bits."""
    return [
        replace(h, adc_bits=max(1, h.lossless_adc_bits - bits))
        for rows, columns, cells, dac, copies, w, b in product(*GRID.values())
        for h in [Crossbars(rows, columns, cells, dac, 8, 1, copies, w, b)]
        for bits in lost
    ]


def costs_of(prices: Prices, place: int = 0) -> dict[str, float]:
    """Return energy, latency and area of one configuration."""
    told = {"energy_nj": prices.total, "latency_ns": prices.latency, "area_mm2": prices.area}
    return {name: float(values[place]) for name, values in told.items()}


def precise(program: Program, limits: Mapping[str, float]) -> Crossbars | None:
    """Return the crossbars with the most bits, which lose nothing in conversion, whose costs are within the limits.

    Of those with the same bits the one with the least energy x latency; None if no crossbars are within the limits.
    """
    options = grid((0,))
    prices = PIMCost().prices(program, options)
    within = (prices.total <= limits["energy_nj"]) & (prices.latency <= limits["latency_ns"])
    within &= prices.area <= limits["area_mm2"]
    bits = np.array([(min(h.weight_bits, h.activation_bits), h.weight_bits + h.activation_bits) for h in options])
    order = np.lexsort((prices.total * prices.latency, -bits[:, 1], -bits[:, 0]))
    return next((options[place] for place in order if within[place]), None)


def fitted(
    scratch: FromScratch, program: Program, module: RankingModule, area: float, factor: float = 1.001
) -> dict[str, Any] | None:
    """Choose crossbars for a trained model: least energy x latency within an area, NE at most `factor` times its own.

    For each combination of bits and lost ADC bits the one that saves most is tried, in the order of what it saves, on a
    part of the validation rows. The model keeps what was found.

    Args:
        scratch: Whose validation rows are used.
        program: The model's work.
        module: The model, on crossbars; NE is compared with what it has on them.
        area: Most area, mm2.
        factor: Largest NE, as a multiple.

    Returns:
        The costs, the crossbars, the number of tries; None, and the model as it was, if nothing was found.
    """
    options = grid((0, 1))
    prices = PIMCost().prices(program, options)
    board: Any = module.pim
    before = board.crossbars
    rows = scratch.eval_batches("val")[:FEW]
    bound = factor * measure(module, rows)[0]["ne"]
    seen: set[tuple[int, int, int]] = set()
    for place in np.argsort(prices.total * prices.latency):
        h = options[place]
        key = (h.weight_bits, h.activation_bits, h.lossless_adc_bits - h.adc_bits)
        if prices.area[place] > area or key in seen:
            continue
        seen.add(key)
        board.crossbars = h
        if measure(module, rows)[0]["ne"] <= bound:
            return {"costs": costs_of(prices, int(place)), "crossbars": asdict(h), "tried": len(seen)}
    board.crossbars = before
    return None


def choices_of(crossbars: Crossbars) -> dict[str, int]:
    """Return what crossbars are, by names like those of a PIMSpace's choices."""
    shared = {f"crossbars.{name}": value for name, value in asdict(crossbars).items() if name != "bits"}
    bits = {
        f"{group}.{name}_bits": x for group, pair in crossbars.bits.items() for name, x in zip(BITS, pair, strict=True)
    }
    return {**shared, **bits}


def crossbars_of(choices: Mapping[str, Any]) -> Crossbars:
    """Return the crossbars that `choices_of` told, among other choices."""
    shared = {name[10:]: value for name, value in choices.items() if name.startswith("crossbars.")}
    groups = {name.partition(".")[0] for name in choices if name.endswith("_bits") and name[:10] != "crossbars."}
    bits = {group: [choices[f"{group}.{name}_bits"] for name in BITS] for group in sorted(groups)}
    return Crossbars(**shared, bits=bits)
