"""PIMCost: what a model costs on crossbars, for searches and for `recloom cost --hardware`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from recloom.errors import unknown
from recloom.search.evaluator import CostModel, CostTable, SearchContext
from recloom.search.program import Program
from recloom.search.space import Genotype
from recloom_pim import constants
from recloom_pim.crossbars import Configurations, Crossbars
from recloom_pim.layout import Dynamic, Layout
from recloom_pim.pricing import COMPONENTS, AdcLaw, Prices, price

DYNAMIC, ADC_LAWS = ("digital", "crossbar"), ("sar", "power")
NAMES = ("energy_nj", "latency_ns", "area_mm2", "arrays", "utilisation")


class PIMCost(CostModel):
    """Energy, latency and area on ReRAM crossbars, in the manner of ISAAC (ISCA 2016).

    Costs: `energy_nj`, `latency_ns` and `interval_ns` (between samples, in the pipeline), `area_mm2`, `arrays`
    (crossbars), `utilisation` (share of their cells that hold weights). A candidate of a PIMSpace is priced on its
    own crossbars, and as the naive mapping on `crossbars`: `naive_energy_nj` and so on. Other models are priced on
    `crossbars` alone. Embedding tables are in memory off the chip: their rows' transfer is priced, their area is not.

    Args:
        crossbars: The naive mapping: by default ISAAC's crossbars, 8 bits everywhere.
        dynamic: Where products of two computed operands (dot products, attention) are computed: "digital", in
            multipliers; "crossbar": one operand is written to crossbars for each sample.
        adc_law: How converters scale with their bits a: "sar": a table of scaled SAR converters; "power": 2^(a-8).
        constants: A YAML file of constants; unset: the plugin's constants.yaml, each with its source.
    """

    def __init__(
        self,
        crossbars: Crossbars | None = None,
        dynamic: Dynamic = "digital",
        adc_law: AdcLaw = "sar",
        constants: str | None = None,
    ) -> None:
        if dynamic not in DYNAMIC:
            raise unknown("PIMCost: dynamic", dynamic, DYNAMIC)
        if adc_law not in ADC_LAWS:
            raise unknown("PIMCost: adc_law", adc_law, ADC_LAWS)
        self.crossbars = crossbars or Crossbars()
        self.dynamic: Dynamic = dynamic
        self.adc_law: AdcLaw = adc_law
        self.constants = _load(constants)

    def __call__(self, program: Program, genotype: Genotype, context: SearchContext) -> Mapping[str, float]:
        """Return the costs."""
        own = _own_crossbars(genotype, context)
        prices = self.prices(program, [self.crossbars] if own is None else [own, self.crossbars])
        found = _told(prices, 0)
        return found if own is None else found | {f"naive_{name}": v for name, v in _told(prices, 1).items()}

    def prices(self, program: Program, crossbars: Sequence[Crossbars], by_work: bool = False) -> Prices:
        """Return the costs of a model on each of several configurations."""
        layout = Layout.of(program, self.dynamic)
        return price(layout, Configurations.of(crossbars, layout), self.constants, self.adc_law, by_work)

    def works(self, program: Program) -> list[CostTable]:
        """Return what each work of a model costs on `crossbars`, and what the whole does."""
        layout = Layout.of(program, self.dynamic)
        each = self.prices(program, [self.crossbars], by_work=True)
        whole = self.prices(program, [self.crossbars])
        used = [name for name in COMPONENTS if whole.energy[name][0] > 0]
        rows: list[Sequence[Any]] = []
        for place, work in enumerate(program.works):
            alone = self.prices(Program([replace(work, inputs=(), weights_of=-1)]), [self.crossbars])
            shares = [float(each.energy[name][0, place]) for name in used]
            arrays = int(alone.arrays[0]) if work.weights_of < 0 else 0
            sizes = (str(arrays) if arrays else "", _figure(float(alone.latency[0])))
            rows.append((work.name, layout.kinds[place], *sizes, *map(_figure, shares), _figure(sum(shares))))
        total = [float(whole.energy[name][0]) for name in used]
        sizes = (str(int(whole.arrays[0])), _figure(float(whole.latency[0])))
        rows.append(("total", "", *sizes, *map(_figure, total), _figure(sum(total))))
        words = ", ".join(f"{name} {_figure(value)}" for name, value in _told(whole, 0).items())
        caption = f"For one sample, on {_describe(self.crossbars)}; energy in nJ. {words}."
        return [CostTable(("work", "becomes", "crossbars", "ns", *used, "nJ"), rows, caption)]

    def compare(self, models: Mapping[str, tuple[Program, Genotype]], context: SearchContext) -> list[CostTable]:
        """Return the energy of models by component, beside that of the naive mapping, and ratios of the two."""
        parts: list[Sequence[Any]] = []
        gains: list[Sequence[Any]] = []
        for name, (program, genotype) in models.items():
            own = _own_crossbars(genotype, context)
            prices = self.prices(program, [self.crossbars] if own is None else [own, self.crossbars])
            for place, label in enumerate(["naive"] if own is None else ["own", "naive"]):
                shares = [float(prices.energy[component][place]) for component in COMPONENTS]
                parts.append((name, label, *map(_figure, shares), _figure(sum(shares))))
            if own is not None:
                pairs = [(_told(prices, 1)[key], _told(prices, 0)[key]) for key in NAMES[:3]]
                gains.append((name, _describe(own), *(f"{naive / mine:.2f}" for naive, mine in pairs)))
        caption = f"Energy by component, nJ a sample. Naive: the same model on {_describe(self.crossbars)}."
        found = [CostTable(("model", "mapping", *COMPONENTS, "all"), parts, caption)]
        if gains:
            header = ("model", "own crossbars", "energy", "latency", "area")
            found.append(CostTable(header, gains, "How many times more the naive mapping of the same model needs."))
        return found


def _own_crossbars(genotype: Genotype, context: SearchContext) -> Crossbars | None:
    from recloom_pim.space import PIMSpace

    return context.space.crossbars(genotype) if genotype and isinstance(context.space, PIMSpace) else None


def _told(prices: Prices, place: int) -> dict[str, float]:
    return {
        "energy_nj": float(prices.total[place]),
        "latency_ns": float(prices.latency[place]),
        "area_mm2": float(prices.area[place]),
        "arrays": float(prices.arrays[place]),
        "utilisation": float(prices.utilisation[place]),
        "interval_ns": float(prices.interval[place]),
    }


def _describe(crossbars: Crossbars) -> str:
    h = crossbars
    bits = np.array([h.of(group) for group in h.bits] or [(h.weight_bits, h.activation_bits)])
    weight, activation = (f"{x:.1f}".removesuffix(".0") for x in bits.mean(0))
    return (
        f"{h.rows} x {h.columns}, {h.cell_bits}-bit cells, {h.dac_bits}-bit DACs, {h.adc_bits}-bit ADCs,"
        f" x{h.replication}, weights {weight} bits, activations {activation} bits"
    )


def _figure(value: float) -> str:
    return f"{value:.4g}"


def _load(path: str | None) -> constants.Constants:
    return constants.load(path)
