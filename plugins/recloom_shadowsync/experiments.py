"""`recloom reproduce shadowsync`: quality and throughput of shadow against fixed rate, scaling, parallelism."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any

from recloom.document import Report
from recloom.experiment import Budget, Claim, Experiment, Lab


@dataclass(frozen=True)
class Setting:
    """Sizes of one budget.

    Args:
        rows: Training rows where quality is measured.
        trainers: Numbers of trainers on one sync server.
        turns: Turns that strategies take on shaped links and on full cores.
        steps: Steps of a trainer on one sync server.
    """

    rows: int
    trainers: tuple[int, ...] = (1, 2, 4, 8)
    turns: int = 3
    steps: int = 400


SETTINGS: dict[Budget, Setting] = {
    "small": Setting(200_000, turns=2, steps=200),
    "medium": Setting(600_000),
    "full": Setting(2_000_000, (1, 2, 4, 8, 16)),
}
SCOPE: dict[Budget, str] = {
    "small": "As medium with 200,000 clicks for quality, where trainings of one setting differ by more than the 0.1% "
    "in question, so that claims of NE say little; two turns on each link, and half the steps on the sync server.",
    "medium": "Two ranks and 600,000 generated clicks a seed for quality, steps of 10 ms; virtual compute (steps sleep "
    "20 ms) on shaped links for throughput, up to 8 trainers and one sync server. It shows what waiting for the "
    "network costs, not what 20 cores a trainer do.",
    "full": "2 million clicks a seed, up to 16 trainers: hours on two cores. The paper's clusters are not in reach.",
}
BEST, SHARED = "shadow MA, sharded tables", "shadow MA, shared tables"


class ShadowSyncExperiment(Experiment):
    """Synchronisation in the background beside the same algorithms on the main thread, and none."""

    paper = (
        "Zheng et al. 2020, ShadowSync: Performing Synchronization in the Background for Highly Scalable Distributed "
        "Training, arXiv 2003.03477"
    )
    summary = (
        "Test NE of a DLRM under DDP, shadow and fixed-rate strategies, no synchronisation and overwriting, at equal "
        "examples. Step times on shaped links, with a straggler, with full cores. Throughput of trainers on one "
        "limited sync server, with the simulator beside it and then beyond it. Example-level parallelism."
    )
    scope = SCOPE
    processors = 2

    def run(self, lab: Lab, report: Report) -> list[Claim]:
        """Measure everything; return the claims."""
        from recloom_shadowsync.bench.links import permitted

        claims = _quality(lab, report)
        claims += _cores(lab, report)
        if why := permitted():
            report.section("Shaped links")
            report.text(f"Not measured: {why}.")
            return claims
        return claims + _links(lab, report) + _scaling(lab, report)


def _quality(lab: Lab, report: Report) -> list[Claim]:
    from recloom_shadowsync.bench import measures

    runs = lab.each_seed("quality", lambda seed: measures.quality(seed, SETTINGS[lab.budget].rows))
    ddp = [run["ddp"]["ne"] for run in runs]
    relative: dict[str, list[float]] = {
        name: [100 * (run[name]["ne"] / base - 1) for run, base in zip(runs, ddp, strict=True)] for name in runs[0]
    }
    report.section("Quality at equal examples")
    rows = [
        (
            name,
            round(statistics.fmean(run[name]["ne"] for run in runs), 5),
            ", ".join(f"{value:+.3f}" for value in relative[name]),
            round(statistics.fmean(relative[name]), 3),
            round(statistics.fmean(run[name]["gap"] for run in runs), 1),
            round(statistics.fmean(run[name]["staleness"] for run in runs), 1),
        )
        for name in runs[0]
    ]
    header = ("strategy", "test NE", "against DDP by seed, %", "mean, %", "sync gap", "staleness, steps")
    report.table(header, rows, "Lower is better.")
    mean = {name: statistics.fmean(values) for name, values in relative.items()}
    slow = "overwrite, 10 Mbit/s"
    over = [
        Claim(
            "ne-overwrite",
            "overwriting what was learnt meanwhile is visibly worse, where a round lasts many steps (10 Mbit/s)",
            mean[slow],
            ">= 0.5",
            "%",
        )
    ]
    return (over if slow in mean else []) + [
        Claim("ne", "the paper's setting, sharded tables: NE within 0.1% of DDP's", mean[BEST], "<= 0.1", "%"),
        Claim("ne-shared", f"{SHARED}: likewise", mean[SHARED], "<= 0.1", "%"),
        Claim("ne-default", "the default, tables synced: likewise", mean["shadow MA"], "<= 0.1", "%"),
        Claim("ne-none", "no synchronisation is visibly worse", mean["no sync"], ">= 0.5", "%"),
        Claim(
            "ne-rate",
            "the background is no worse than a fixed rate of 30 steps (difference)",
            mean["shadow MA"] - mean["fixed rate MA, 30"],
            "<= 0",
            "points",
        ),
    ]


def _cores(lab: Lab, report: Report) -> list[Claim]:
    from recloom_shadowsync.bench import measures

    found = lab.once("cores", partial(measures.full_cores, SETTINGS[lab.budget].turns + 1))
    report.section("Full cores, a free network")
    report.facts({name: round(value, 3) for name, value in found.items()}, ("strategy", "step time over no sync's"))
    return [Claim("cores", "throttled by itself, the background costs at most 5%", found["ShadowMA"], "<= 1.05")]


def _links(lab: Lab, report: Report) -> list[Claim]:
    from recloom_shadowsync.bench import measures

    turns = SETTINGS[lab.budget].turns
    tables = {mbit: lab.once(f"links-{mbit}", partial(measures.link_ratios, mbit, turns)) for mbit in (50, 200)}
    late = lab.once("straggler", partial(measures.straggler, turns))
    report.section("Shaped links")
    header = ("strategy", *(f"{mbit} Mbit/s: step over no sync's" for mbit in tables), *(f"gap, {m}" for m in tables))
    rows = [
        (
            name,
            *(round(t[name]["ratio"], 3) for t in tables.values()),
            *(round(t[name]["gap"], 1) for t in tables.values()),
        )
        for name in tables[50]
    ]
    report.table(header, rows, f"Two ranks, 0.64 MB of weights, virtual compute 20 ms; medians over {turns} turns.")
    report.facts(
        {n: round(v, 3) for n, v in late.items()}, ("rank 1 straggles by 20 ms", "rank 0's step over no sync's")
    )
    slow, fast = tables[50], tables[200]
    return [
        Claim("slow", "50 Mbit/s: the background costs at most 5%", slow["ShadowMA"]["ratio"], "<= 1.05"),
        Claim("slow-ddp", "50 Mbit/s: throughput over DDP's", slow["ddp"]["ratio"] / slow["ShadowMA"]["ratio"], ">= 4"),
        Claim(
            "fast-ddp", "200 Mbit/s: throughput over DDP's", fast["ddp"]["ratio"] / fast["ShadowMA"]["ratio"], ">= 1.6"
        ),
        Claim("straggler", "a straggler slows the fast rank by at most 10%", late["ShadowMA"], "<= 1.10"),
    ]


def _scaling(lab: Lab, report: Report) -> list[Claim]:
    from recloom_shadowsync.bench import measures
    from recloom_shadowsync.simulator import simulate

    setting = SETTINGS[lab.budget]
    counts = setting.trainers
    measured = {c: lab.once(f"scaling-{c}", partial(measures.scaling, c, setting.steps)) for c in counts}
    single = measured[1]["none"]["step"]
    names = list(measured[1])
    report.section("Trainers on one sync server of 100 Mbit/s")
    rows: list[tuple[Any, ...]] = []
    for count, table in measured.items():
        rows.append((count, *(round(count * single / table[name]["step"], 2) for name in names)))
        rows.append((f"{count}: sync gap", "", *(round(table[name]["gap"], 1) for name in names[1:])))
    report.table(("trainers", *names), rows, "Throughput in multiples of one trainer without synchronisation.")
    calibration = measures.calibrate(measured[1], measured[2])
    errors = measures.simulated(calibration, {count: table for count, table in measured.items() if count > 2})
    report.section("Simulated")
    cells = [tuple(round(v, 4) if isinstance(v, float) else v for v in row.values()) for row in errors]
    report.table(tuple(errors[0]), cells, "Calibrated on one and two trainers.")
    beyond = []
    for count in (64, 256):
        told = [simulate(calibration, algorithm, count, every or 5) for _, algorithm, every in measures.SCALED[1:]]
        beyond.append((count, *(f"{t.speedup:.1f} (gap {t.gap:.0f})" for t in told)))
    report.table(
        ("trainers, simulated", *names[1:]), beyond, "Throughput in multiples of one trainer, and the sync gap."
    )
    report.text(f"Example-level parallelism of {counts[-1]} trainers with batches of 16: {16 * counts[-1]}.")
    most = counts[-1]
    return [
        Claim(
            "scale-shadow", f"{most} trainers under ShadowEASGD, in multiples of one",
            most * single / measured[most]["ShadowEASGD"]["step"], f">= {7.5 * most / 8}",
        ),
        Claim(
            "scale-fixed", f"{most} trainers at a fixed rate of 5, in multiples of one",
            most * single / measured[most]["FixedRateEASGD-5"]["step"], "<= 4",
        ),
        Claim("sim-free", "simulator, unsaturated: largest error of a step", _largest(errors, 0.0), "<= 0.10"),
        Claim("sim-full", "simulator, saturated: largest error of a step or gap", _largest(errors, 1.0), "<= 0.20"),
    ]  # fmt: skip


def _largest(rows: list[dict[str, float | str]], saturated: float) -> float:
    """Return the largest relative error of the rows that are, or are not, saturated."""
    chosen = [row for row in rows if row["saturated"] == saturated]
    found = [abs(float(row["step error"])) for row in chosen]
    found += [abs(float(row["gap error"])) for row in chosen if str(row["strategy"]).startswith("Shadow")]
    return max(found, default=0.0)
