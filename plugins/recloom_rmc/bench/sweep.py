"""RMC1, RMC2 and RMC3: operator breakdown, batch sweep, rooflines, the gather beside FBGEMM, locality.

    recloom bench rmc                                 # an eighth of the tables' rows
    recloom bench rmc --presets rmc1 --rows 1 --threads 1 --rounds 9
    recloom bench rmc --clock cpu                     # one thread, on a machine that others use too

Every request has fresh, uniformly drawn ids. Beside each time stand two floors: `FC floor`, the MLPs' FLOPs at the
rate of a 1024-squared fp32 product, and `gather floor`, the gathered rows at the time of a random row anywhere in the
same tables, both measured in the same run on the same threads. (A gather goes table by table: where a single table fits
into a cache it can be below that floor.) The larger one binds; `x floor` is the time over their sum,
for they do not overlap on a thread. Contenders of the gather take turns, round by round; ratios are medians over
rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recloom.document import Report
from recloom.linear import for_inference
from recloom_rmc import traces
from recloom_rmc.bench import breakdown, gather, machine
from recloom_rmc.bench.tables import CACHES, tell
from recloom_rmc.presets import PRESETS, Preset, preset

__all__ = ["CACHES", "locality", "main", "measure", "requests", "tell"]


def requests(sizes: Preset, batch: int, count: int, seed: int = 0) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return `count` batches of (dense, ids, offsets): uniform ids, none of them used twice on purpose."""
    generator = torch.Generator().manual_seed(seed)
    bags = sizes.tables * batch
    offsets = torch.arange(0, bags * sizes.lookups + 1, sizes.lookups)
    return [
        (
            torch.randn(batch, sizes.dense, generator=generator),
            torch.randint(sizes.rows, (bags * sizes.lookups,), generator=generator),
            offsets,
        )
        for _ in range(count)
    ]


def median_seconds(function: Callable[[Any], object], items: list[Any], clock: Callable[[], float]) -> float:
    """Return the median seconds of a call, over the items."""
    times = []
    for item in items:
        start = clock()
        function(item)
        times.append(clock() - start)
    return statistics.median(times)


def measure(sizes: Preset, batches: list[int], rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Return the breakdown, the batch sweep with its floors, and the gather's contenders of one preset."""
    model = for_inference(sizes.build())  # as it is served
    peak = machine.matrix_peak(clock)
    row = machine.random_row_seconds(model.sparse_arch.weight.detach(), clock)
    rows: list[dict[str, Any]] = []

    def forward(item: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        with torch.inference_mode():
            return model(*item)

    for batch in batches:
        count = count_for(sizes, batch)
        items = requests(sizes, batch, count + 2, seed=batch)
        for item in items[:2]:
            forward(item)
        seconds = median_seconds(forward, items[2:], clock)
        shares = breakdown.breakdown(model, requests(sizes, batch, min(20, max(8, count)), seed=batch + 1))
        floors = {"FC": sizes.flops * batch / peak, "gather": sizes.tables * sizes.lookups * batch * row}
        rows.append(
            {
                "batch": batch,
                "milliseconds": 1000 * seconds,
                "samples_per_second": batch / seconds,
                "shares": shares,
                "floors_ms": {name: 1000 * floor for name, floor in floors.items()},
                "binds": max(floors, key=lambda name: floors[name]),
                "x_floor": seconds / sum(floors.values()),
            }
        )
    return {
        "preset": sizes.name,
        "rows": sizes.rows,
        "matrix_peak": peak,
        "random_row_ns": 1e9 * row,
        "sweep": rows,
        "fc_of_peak": fc_of_peak(model, sizes, 256, clock),
        "gather": gather.compare(model.sparse_arch, sizes, 64, rounds, clock, row),
        "locality": locality(model.sparse_arch, sizes, 64, clock),
    }


def count_for(sizes: Preset, batch: int) -> int:
    """Return how many batches to time: at least 5, at most 200, some 100 MB of gathered rows."""
    return min(200, max(5, int(1e8 / (sizes.gathered_bytes * batch + 1e5))))


def fc_of_peak(model: Any, sizes: Preset, batch: int, clock: Callable[[], float], turns: int = 25) -> float:
    """Return the best rate of both MLPs at `batch` over the best rate of a large product, taken turn by turn.

    On a core that others use, too, the rate of one and the same product halves from one moment to the next, so
    that the ratio within a turn is chance; each one's best of all turns is what the machine allows it.
    """
    run = breakdown.parts(model)
    dense, vectors = torch.randn(batch, sizes.dense), torch.randn(batch, (sizes.tables + 1) * sizes.width)
    run(dense, vectors)
    peaks, rates = [], []
    for _ in range(turns):
        peaks.append(machine.matrix_peak(clock, calls=3))
        rates.append(sizes.flops * batch / machine.best(lambda: run(dense, vectors), clock, 7))
    return max(rates) / max(peaks)


def locality(tables: Any, sizes: Preset, batch: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """Return nanoseconds a lookup and the hit curve of traces over the same tables: cold, warm, replayed."""
    per_table = batch * sizes.lookups
    offsets = torch.arange(0, sizes.tables * per_table + 1, sizes.lookups)
    flush = torch.empty(96 << 20, dtype=torch.float32)  # 384 MB: what the last-level cache holds goes out
    found = []

    def lookup(ids: Tensor) -> Tensor:
        with torch.inference_mode():
            return tables(ids, offsets)

    for name, draw in TRACES.items():
        drawn = [torch.cat([draw(per_table, sizes.rows, 97 * r + t) for t in range(sizes.tables)]) for r in range(4)]
        cold = []
        for ids in drawn:
            flush.zero_()
            cold.append(median_seconds(lookup, [ids], clock))
        for ids in drawn:
            lookup(ids)
        fresh = median_seconds(lookup, drawn, clock)
        replay = median_seconds(lookup, [drawn[0]] * 6, clock)
        count = sizes.tables * per_table
        trace = draw(20_000, sizes.rows, 5).numpy()
        distances = traces.stack_distances(trace)
        found.append(
            {
                "trace": name,
                "unique": traces.unique_of(trace),
                "hits": dict(zip(CACHES, traces.hit_curve(distances, CACHES), strict=True)),
                "cold_ns": 1e9 * statistics.median(cold) / count,
                "warm_ns": 1e9 * fresh / count,
                "replayed_ns": 1e9 * replay / count,
            }
        )
    return found


def _distances(count: int, rows: int, seed: int) -> Tensor:
    return torch.from_numpy(traces.of_distances(traces.draw_distances(count, 500, 1.0, 0.1, seed), rows, seed))


TRACES: dict[str, Callable[[int, int, int], Tensor]] = {
    "uniform": lambda count, rows, seed: torch.from_numpy(traces.uniform(count, rows, seed)),
    "Zipf 1.05": lambda count, rows, seed: torch.from_numpy(traces.zipf(count, rows, 1.05, seed)),
    "half unique": lambda count, rows, seed: torch.from_numpy(
        traces.unique_share(count, rows, min(0.5, rows / count), seed)  # a small table has not so many
    ),
    "distances near 500": _distances,
}


def main(argv: list[str]) -> int:
    """Measure, print the tables, write the report; return 0."""
    from recloom import machine as facts

    parser = argparse.ArgumentParser(
        prog="recloom bench rmc", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", default=["rmc1", "rmc2", "rmc3"], choices=list(PRESETS))
    parser.add_argument("--rows", type=float, default=1 / 8, help="factor of the tables' rows (1: 3.8 GiB)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=list(machine.CLOCKS), default="wall")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-rmc"), metavar="DIR", help="report and JSON")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    clock = machine.CLOCKS[options.clock]
    report = Report("RMC workloads", facts.line())
    report.text(f"{options.threads} thread(s), {options.clock} clock. {machine.counters()[1]}")
    results = [
        measure(preset(name).scaled(options.rows), options.batches, options.rounds, clock) for name in options.presets
    ]
    tell(report, results)
    report.facts(facts.versions())
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "rmc.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(report.markdown())
    print(f"report: {report.save(options.out)}")
    return 0
