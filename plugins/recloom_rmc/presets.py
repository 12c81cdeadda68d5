"""RMC1, RMC2 and RMC3: sizes of DLRM, each with its source, and scaled down without changing what binds.

Two kinds of source. DeepRecSys (harvard-acc/DeepRecSys, commit 1383176, models/configs/dlrm_rm*.json) gives numbers.
The paper (arXiv 1906.03109, Table 1, as transcribed in a public fork of DeepRecSys) gives ranges relative to
undisclosed units; `from_ranges` puts units in, which are ours. Nobody outside of Meta knows the production models.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

from recloom.errors import RecloomError, unknown
from recloom.features import DenseFeature, FeatureSchema, SparseFeature

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Preset:
    """A DLRM whose vectors are concatenated.

    Args:
        name: Its name.
        source: Where the numbers are from.
        tables: Number of tables.
        rows: Rows of each.
        width: Width of the embeddings, D.
        lookups: Ids of a bag.
        dense: Dense features of a sample.
        bottom: Hidden widths of the bottom MLP; a last layer of width D is added.
        top: Hidden widths of the top MLP; the logit is added.
    """

    name: str
    source: str
    tables: int
    rows: int
    width: int
    lookups: int
    dense: int
    bottom: tuple[int, ...]
    top: tuple[int, ...]

    @property
    def flops(self) -> int:
        """Floating-point operations of the MLPs a sample, two a multiply-accumulate."""
        bottom = [self.dense, *self.bottom, self.width]
        top = [(self.tables + 1) * self.width, *self.top, 1]
        return sum(2 * a * b for widths in (bottom, top) for a, b in itertools.pairwise(widths))

    @property
    def gathered_bytes(self) -> int:
        """Bytes of table rows read a sample."""
        return self.tables * self.lookups * self.width * FLOAT

    @property
    def table_bytes(self) -> int:
        """Bytes of all tables."""
        return self.tables * self.rows * self.width * FLOAT

    @property
    def intensity(self) -> float:
        """Floating-point operations a gathered byte."""
        return self.flops / self.gathered_bytes

    def scaled(self, rows: float = 1.0, work: float = 1.0) -> Preset:
        """Return a smaller (or larger) workload of the same floating-point operations a gathered byte.

        Args:
            rows: Factor of the tables' rows: memory, and what caches hold; neither FLOPs nor bytes a sample.
            work: Factor of the work a sample: of the ids a bag, and, through the hidden widths, of the FLOPs. Whole
                widths and bags cannot follow exactly: `intensity` is within 5% or it is refused.
        """
        if rows <= 0 or work <= 0:
            raise RecloomError(f"scales are positive, not rows={rows}, work={work}", "1 leaves a workload as it is.")
        fewer = dataclasses.replace(self, rows=max(1, round(self.rows * rows)))
        if work == 1:
            return fewer
        lookups = max(1, round(self.lookups * work))
        target = self.flops * lookups / self.lookups
        low, high = 0.0, 2.0 * max(1.0, work)
        for _ in range(50):
            middle = (low + high) / 2
            below = _widths(fewer, middle).flops < target
            low, high = (middle, high) if below else (low, middle)
        candidates = [_widths(fewer, factor) for factor in (low, high)]
        best = dataclasses.replace(min(candidates, key=lambda c: abs(c.flops - target)), lookups=lookups)
        if abs(best.intensity / self.intensity - 1) > 0.05:
            raise RecloomError(
                f"{self.name} cannot do {work:g} of its work at the same FLOPs a byte: "
                f"{best.intensity:.2f} at best instead of {self.intensity:.2f}",
                "Its fixed layers are too large for that: take a larger `work`.",
            )
        return best

    def schema(self) -> FeatureSchema:
        """Return the features: dense ones, and bags of at most `lookups` ids."""
        return FeatureSchema(
            dense=tuple(DenseFeature(f"d{i}") for i in range(self.dense)),
            sparse=tuple(SparseFeature(f"c{i}", self.rows, max_length=self.lookups) for i in range(self.tables)),
            info={"preset": self.name, "source": self.source},
        )

    def model_section(self) -> dict[str, Any]:
        """Return the `model` of a config file."""
        options = {"embedding_dim": self.width, "dense_arch": list(self.bottom), "over_arch": list(self.top)}
        return {"class_path": "DLRM", "init_args": {**options, "interaction": {"class_path": "ConcatInteraction"}}}

    def build(self, seed: int = 0) -> Any:
        """Return the framework's DLRM of this size, with random weights, in eval mode."""
        import torch

        from recloom.plugins import catalog

        options: dict[str, Any] = self.model_section()["init_args"]
        options["interaction"] = catalog().interactions.load("ConcatInteraction")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return catalog().models.load("DLRM")(self.schema().to_dict(), **options).eval()


def _widths(preset: Preset, factor: float) -> Preset:
    """Return the preset with all hidden widths times `factor`."""

    def times(widths: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(max(1, round(width * factor)) for width in widths)

    return dataclasses.replace(preset, bottom=times(preset.bottom), top=times(preset.top))


_JSON = "DeepRecSys models/configs/{}.json at 1383176"
PRESETS = {
    preset.name: preset
    for preset in (
        Preset("rmc1", _JSON.format("dlrm_rm1"), 8, 4_000_000, 32, 80, 128, (64,), (256, 64)),
        Preset("rmc2", _JSON.format("dlrm_rm2"), 32, 500_000, 64, 120, 256, (128,), (128, 64)),
        Preset("rmc3", _JSON.format("dlrm_rm3"), 10, 2_000_000, 32, 20, 2560, (1024, 256), (512, 256)),
        Preset(
            "rmc1-example", "arXiv 1906.03109, worked example of section 5.1", 5, 100_000, 32, 80, 128, (64,), (128, 32)
        ),
    )
}


def preset(name: str) -> Preset:
    """Return the preset `name`; RecloomError suggests the nearest."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]


@dataclass(frozen=True)
class Ranges:
    """A row of the paper's Table 1, in units of RMC1's third FC layer, RMC1's tables and rows, and RMC3's ids a bag."""

    bottom: tuple[int, int, int]
    top: tuple[int, int]
    tables: tuple[int, int]
    rows: tuple[int, int]
    lookups: int


RANGES = {
    "rmc1": Ranges((8, 4, 1), (4, 2), (1, 3), (1, 180), 4),
    "rmc2": Ranges((8, 4, 1), (4, 2), (8, 12), (1, 180), 4),
    "rmc3": Ranges((80, 8, 4), (4, 2), (1, 3), (1, 180), 1),
}


@dataclass(frozen=True)
class Units:
    """What 1x stands for. The paper does not say; these agree with DeepRecSys where it can be compared.

    Args:
        fc: Width of RMC1's third FC layer.
        tables: Tables of the smallest RMC1.
        rows: Rows of the smallest table.
        width: Width of the embeddings.
        lookups: Ids a bag in RMC3.
    """

    fc: int = 32
    tables: int = 4
    rows: int = 100_000
    width: int = 32
    lookups: int = 20


def from_ranges(name: str, place: float = 0.5, units: Units | None = None) -> Preset:
    """Return the model at `place` (0 the smallest, 1 the largest) of the paper's ranges.

    The paper's three bottom layers are followed by DLRM's layer of width D, its two top layers by the logit. Table 1
    gives ids a bag for user features; for ranked posts it has N times as many, and here N is 1.
    """
    if name not in RANGES:
        raise unknown("model of the paper", name, RANGES)
    if not 0 <= place <= 1:
        raise RecloomError(f"place is {place}", "It lies between 0, the smallest, and 1, the largest.")
    unit, ranges = units or Units(), RANGES[name]

    def between(ends: tuple[int, int]) -> float:
        return ends[0] + place * (ends[1] - ends[0])

    bottom = tuple(unit.fc * factor for factor in ranges.bottom)
    return Preset(
        name=f"{name}-at-{place:g}",
        source="arXiv 1906.03109, Table 1 (second-hand), with units of ours",
        tables=round(unit.tables * between(ranges.tables)),
        rows=round(unit.rows * between(ranges.rows)),
        width=unit.width,
        lookups=unit.lookups * ranges.lookups,
        dense=bottom[0],
        bottom=bottom[1:] if bottom[-1] != unit.width else bottom[1:-1],
        top=tuple(unit.fc * factor for factor in ranges.top),
    )
