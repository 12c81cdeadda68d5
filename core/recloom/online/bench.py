"""Latency of a model under load: latency curves, the highest rate that holds a p99 target, engines, co-location.

    recloom bench serve --config configs/rmc/rmc1.yaml
    recloom bench serve --config configs/rmc/rmc1.yaml --sizes lognormal:165:0.8 --engines eager bf16 onnx
    recloom bench serve --config configs/rmc/rmc1.yaml configs/rmc/rmc3.yaml --replicas 2    # side by side

Requests arrive in an open loop: exponential gaps on a schedule that is fixed before the run; latency counts from the
scheduled arrival. `unbatched` is the eager engine that serves each request by itself. Intervals are 95%: of percentiles
by a block bootstrap over the run, of rates by Student's t over repeats. Weights are random: they do not change speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recloom.document import Report
from recloom.online.bench_options import parse

if TYPE_CHECKING:
    from recloom.online.lab import Bound, Policy, Served
    from recloom.online.latency import Estimate
    from recloom.online.load import Sizes

LOADS = (0.3, 0.6, 0.9)
"""Rates of the latency curve, relative to the highest that holds the target."""


def main(argv: list[str]) -> int:
    """Measure, print tables, write a report; return 0."""
    options = parse(argv, __doc__ or "")
    import torch

    from recloom import machine, quiet

    quiet.hush()
    torch.set_num_threads(options.threads)
    report = Report("Serving", f"{', '.join(str(path) for path in options.config)}; {machine.line()}")
    report.facts(
        {
            "clock": options.clock,
            "rows of a request": options.sizes,
            "target": f"p99 of {options.target:g} ms",
            "a run": f"at least {options.requests} requests and {options.seconds:g} s",
            "repeats": options.repeats,
            "threads": options.threads,
        }
    )
    results: dict[str, Any] = {"machine": machine.line(), "options": {k: str(v) for k, v in vars(options).items()}}
    if len(options.config) == 1:
        results["engines"] = _engines(options, report)
    if options.replicas > 1 or len(options.config) > 1 or options.workers > 1:
        results["colocation"] = _colocation(options, report)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "serve.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    report.facts(machine.versions())
    print(report.markdown().split("\n## ", 1)[-1])
    print(f"report: {report.save(options.out)}")
    return 0


def measure_bound(
    engine: Any, pool: Any, policy: Policy, sizes: Sizes, options: Any, start: float
) -> tuple[Bound, Callable[[float, int], Served]]:
    """Return the highest rate that holds the target, and the function that runs at a rate.

    Args:
        engine: The engine.
        pool: Rows of the requests.
        policy: Dynamic batching.
        sizes: Rows a request.
        options: requests and seconds (a run, at least), repeats, target (ms), clock.
        start: The first rate tried.
    """
    from recloom.online.lab import CpuClock, Queue, WallClock, highest_rate, serve
    from recloom.online.load import poisson

    target = options.target / 1000

    def run(rate: float, seed: int) -> Served:
        queue = Queue(poisson(rate, count_of(rate, options), sizes, seed), policy)
        return serve(engine, pool, queue, CpuClock() if options.clock == "cpu" else WallClock(), target)

    bound = highest_rate(lambda rate, seed: run(rate, seed).holds(target), start, options.repeats)
    return bound, run


def count_of(rate: float, options: Any) -> int:
    """Return the requests of a run: enough for a 99th percentile, and as many as come in `seconds`."""
    return max(int(options.requests), int(rate * options.seconds))


def _engines(options: argparse.Namespace, report: Report) -> list[dict[str, Any]]:
    from recloom import plots
    from recloom.online import engines
    from recloom.online.lab import Policy
    from recloom.online.load import Sizes
    from recloom.online.replicas import Service, load

    sizes = Sizes.parse(options.sizes)
    module, pool = load(Service(options.config[0], rows=options.rows, fresh=options.fresh))
    batched = Policy(options.max_batch, options.max_wait / 1000)
    found: list[dict[str, Any]] = []
    panels: dict[str, Any] = {"p50, ms": {}, "p99, ms": {}}
    for name, engine_name, policy in [
        ("unbatched", "eager", Policy(0)),
        *((name, name, batched) for name in options.engines),
    ]:
        engine = engines.build(module, engine_name)
        difference = engines.largest_difference(engine, module)
        bound, run = measure_bound(engine, pool, policy, sizes, options, found[-1]["rate"] if found else 100.0)
        rate, points = bound.estimate, []
        for load_ in LOADS if rate.value > 0 else ():
            served = run(load_ * rate.value, 1000)
            points.append(_point(load_ * rate.value, served))
        found.append(
            {
                "name": name,
                "max_abs_diff": difference,
                "rate": rate.value,
                "interval": [rate.low, rate.high],
                "rates": bound.rates,
                "points": points,
            }
        )
        print(f"{name}: {rate} requests/s", flush=True)
        for title, key in (("p50, ms", "p50"), ("p99, ms", "p99")):
            panels[title][name] = ([p["rate"] for p in points], [p[key][0] for p in points])
    _tell_engines(report, found, sizes)
    report.plot("latency", plots.lines(panels, "requests a second", log_x=True), "Latency by rate, each engine's own")
    return found


def _tell_engines(report: Report, found: list[dict[str, Any]], sizes: Sizes) -> None:
    report.section("Highest rate that holds the target")
    base = found[0]["rate"]
    rows = [
        (
            item["name"],
            _interval(item["rate"], *item["interval"]),
            f"{item['rate'] * sizes.mean:,.0f}",
            item["rate"] / base if base else float("nan"),
            f"{item['max_abs_diff']:.1e}",
        )
        for item in found
    ]
    report.table(("engine", "requests/s", "rows/s", "x unbatched", "max abs diff"), rows)
    report.section("Latency by rate")
    header = ("engine", "requests/s", "p50 ms", "p95 ms", "p99 ms", "rows a batch")
    rows = [
        (item["name"], p["rate"], *(_interval(*p[q]) for q in ("p50", "p95", "p99")), p["rows_a_batch"])
        for item in found
        for p in item["points"]
    ]
    report.table(header, rows, "Of 30, 60 and 90% of each engine's highest rate.")


def _point(rate: float, served: Served) -> dict[str, Any]:
    """Return a point of a latency curve, in milliseconds."""

    def milliseconds(e: Estimate) -> list[float]:
        return [1000 * e.value, 1000 * e.low, 1000 * e.high]

    p50, p95, p99 = map(milliseconds, served.percentiles())
    return {
        "rate": rate,
        "p50": p50,
        "p95": p95,
        "p99": p99,
        "rows_a_batch": served.rows / max(served.batches, 1),
        "finished": served.finished,
    }


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:,.3g} [{low:,.3g}, {high:,.3g}]" if value < 1000 else f"{value:,.0f} [{low:,.0f}, {high:,.0f}]"


def _colocation(options: argparse.Namespace, report: Report) -> list[dict[str, Any]]:
    """Measure services alone and side by side, at their own highest rate each."""
    from recloom.online.lab import Policy
    from recloom.online.load import Sizes
    from recloom.online.replicas import Service

    policy = Policy(options.max_batch, options.max_wait / 1000)
    sizes = Sizes.parse(options.sizes)
    one = [
        Service(path, options.engines[0], policy, options.workers, options.threads, options.rows, options.fresh)
        for path in options.config
    ]
    fleets = [[service] for service in one]
    if len(one) > 1:
        fleets.append(one)
    fleets += [one * count for count in range(2, options.replicas + 1)]
    found = [colocated(services, sizes, options) for services in fleets]
    report.section("Side by side")
    rows = [
        (
            " + ".join(Path(service["config"]).stem for service in item["services"]),
            _interval(item["rate"], *item["interval"]),
            _interval(item["rate"] * len(item["services"]), *(e * len(item["services"]) for e in item["interval"])),
        )
        for item in found
    ]
    report.table(("services", "requests/s each", "together"), rows, "All at one rate that holds the target for each.")
    return found


def colocated(services: list[Any], sizes: Sizes, options: Any) -> dict[str, Any]:
    """Return the highest common rate at which every one of the services holds the target, side by side."""
    from recloom.online.lab import highest_rate
    from recloom.online.load import poisson
    from recloom.online.replicas import Fleet

    target = options.target / 1000
    with Fleet(services) as fleet:

        def holds(rate: float, seed: int) -> bool:
            schedules = [
                poisson(rate, count_of(rate, options), sizes, 1000 * seed + number) for number in range(len(services))
            ]
            return all(served.holds(target) for served in fleet.run(schedules, target))

        bound = highest_rate(holds, 100.0, options.repeats, halvings=4)
    rate = bound.estimate
    names = [{**dataclasses.asdict(service), "config": str(service.config)} for service in services]
    print(f"{len(services)} side by side: {rate} requests/s each", flush=True)
    return {"services": names, "rate": rate.value, "interval": [rate.low, rate.high], "rates": bound.rates}
