"""How many configurations of one model are priced a second, on one core.

recloom bench pim
recloom bench pim --model criteo_full --count 20000 --out pim.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recloom import machine, quiet
from recloom.document import write_text
from recloom.features import DenseFeature, FeatureSchema, SparseFeature
from recloom.loading import instantiate_model
from recloom.plugins import catalog
from recloom.search.lowering import lower
from recloom.search.program import Program
from recloom_pim import constants
from recloom_pim.crossbars import NAMES, Configurations
from recloom_pim.layout import Layout
from recloom_pim.pricing import price

OPTIONS = {
    "rows": (64, 128, 256),
    "columns": (64, 128, 256),
    "cell_bits": (1, 2),
    "dac_bits": (1, 2),
    "adc_bits": (4, 5, 6, 7, 8, 9),
    "adcs": (1, 2),
    "replication": (1, 2, 4, 8, 16),
}


def program_of(name: str) -> Program:
    """Return the work of DLRM, or of a published model of NASRec, for Criteo's features."""
    schema = FeatureSchema(
        tuple(DenseFeature(f"d{i}") for i in range(13)), tuple(SparseFeature(f"c{i}", 100) for i in range(26))
    )
    chosen = "DLRM" if name == "DLRM" else "NASRecNet"
    init_args: dict[str, Any] = {} if name == "DLRM" else {"architecture": name}
    catalog().models.load(chosen)
    return lower(instantiate_model({"class_path": chosen, "init_args": init_args}, schema))


def random_configurations(layout: Layout, count: int, seed: int) -> Configurations:
    """Return random configurations, with random bits in every group."""
    rng = np.random.default_rng(seed)
    shared = {name: rng.choice(OPTIONS[name], count).astype(np.float64) for name in NAMES}
    bits = {
        name: rng.choice((4, 8), (count, len(layout.groups))).astype(np.float64)
        for name in ("weight_bits", "activation_bits")
    }
    return Configurations(**shared, **bits)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="recloom bench pim", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="criteo_small", help="DLRM, or a published NASRec model.")
    parser.add_argument("--count", type=int, default=10_000, help="Configurations priced together.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="Write the figures as JSON.")
    options = parser.parse_args(argv)
    quiet.hush()
    layout = Layout.of(program_of(options.model), by_work=True)
    configurations = random_configurations(layout, options.count, 0)
    k = constants.load()
    price(layout, configurations, k)
    seconds = []
    for _ in range(options.repeats):
        start = time.process_time()
        price(layout, configurations, k)
        seconds.append(time.process_time() - start)
    rate = options.count / statistics.median(seconds)
    found = {
        "model": options.model,
        "works": len(layout.names),
        "matrices": len(layout.static),
        "configurations": options.count,
        "configurations_per_cpu_second": round(rate),
        "machine": machine.line(),
    }
    print(
        f"{options.model}: {len(layout.names)} works, {len(layout.static)} of them matrices, bits of each its own:"
        f" {rate:,.0f} configurations a CPU second ({options.count:,} together, median of {options.repeats})"
    )
    if options.out is not None:
        write_text(options.out, json.dumps(found, indent=1) + "\n")
    return 0
