"""`recloom bench shadowsync`: step times on shaped links, a straggler, full cores, scaling, the simulator."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from recloom_shadowsync.bench import measures
from recloom_shadowsync.bench.links import permitted
from recloom_shadowsync.simulator import simulate

PARTS = ("links", "straggler", "death", "cores", "scaling")


def main(argv: list[str]) -> int:
    """Measure and print tables; ratios are within one team of processes."""
    parser = argparse.ArgumentParser(prog="recloom bench shadowsync", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each strategy (default: %(default)s)")
    parser.add_argument("--trainers", type=int, default=8, help="trainers on one server (default: %(default)s)")
    options = parser.parse_args(argv)
    parts = options.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; parts are {', '.join(PARTS)}")
    why_not = permitted()
    if why_not and {"links", "straggler", "scaling"} & set(parts):
        print(f"links cannot be shaped here ({why_not}): parts links, straggler and scaling are left out")
        parts = [part for part in parts if part in ("death", "cores")]
    if "links" in parts:
        for mbit in (50.0, 200.0):
            print(f"\n{mbit:.0f} Mbit/s, 0.64 MB of weights, virtual compute 20 ms: step time over no sync's; sync gap")
            ratios = measures.link_ratios(mbit, options.repeats)
            _table([(name, row["ratio"], row["gap"]) for name, row in ratios.items()])
    if "straggler" in parts:
        print("\nrank 1 straggles by 20 ms: rank 0's step over its own without sync")
        _table(list(measures.straggler(options.repeats).items()))
    if "death" in parts:
        print(
            "\nrank 2 of 3 is killed: rank 0's longest step over its median, then and before; time to rebuild, seconds"
        )
        _table(list(measures.death().items()))
    if "cores" in parts:
        print("\nCPU-bound DLRM on a free network: step time over no sync's")
        _table(list(measures.full_cores(options.repeats).items()))
    if "scaling" in parts:
        scaling(options.trainers)
    return 0


def scaling(trainers: int) -> None:
    """Measure and print how trainers scale on one server, and what the simulator says."""
    print(
        f"\none sync server on {measures.SERVER_MBIT:.0f} Mbit/s, virtual compute 20 ms: throughput of one trainer; gap"
    )
    measured = {count: measures.scaling(count) for count in sorted({1, 2, 4, trainers})}
    single = measured[1]["none"]["step"]
    for count, table in measured.items():
        _table([(f"{count} x {name}", count * single / row["step"], row["gap"]) for name, row in table.items()])
    calibration = measures.calibrate(measured[1], measured[2])
    print("\nsimulated, calibrated on one and two trainers: measured, simulated, error")
    rows = measures.simulated(calibration, {count: table for count, table in measured.items() if count > 2})
    for row in rows:
        name = f"{row['trainers']} x {row['strategy']}"
        _table([(f"{name} step, ms", 1e3 * row["step"], 1e3 * row["step simulated"], row["step error"])])  # type: ignore[operator]
        _table([(f"{name} gap", row["gap"], row["gap simulated"], row["gap error"])])
    for count in (64, 256):
        for strategy, algorithm, every in measures.SCALED[1:]:
            told = simulate(calibration, algorithm, count, every or 5)
            _table([(f"{count} x {strategy} {every or ''}", told.speedup, told.gap)])


def _table(rows: Sequence[tuple[Any, ...]]) -> None:
    for name, *values in rows:
        print(f"  {name:<34}" + "".join(f"{value:>10.3f}" for value in values), flush=True)
