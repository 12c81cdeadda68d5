"""The measurements behind `recloom bench shadowsync` and `recloom reproduce shadowsync`; each returns JSON values.

Compute is virtual where it says so: a step sleeps 20 ms beside a little real work, and so stands for a step on a core
or an accelerator of its own. Only ratios within one team of processes are compared.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

from recloom_shadowsync.bench.links import Links, permitted
from recloom_shadowsync.bench.team import Segment, median_step, run_team, step_seconds
from recloom_shadowsync.simulator import Algorithm, Calibration, simulate

WEIGHTS = 160_000
"""Dense weights of the toy: 0.64 MB."""
VIRTUAL = 0.02
SERVER_MBIT = 100.0


def toy(strategy: str, steps: int = 60, seconds: float = VIRTUAL, **options: Any) -> Segment:
    """Return a segment with virtual compute."""
    return {"strategy": strategy, "weights": WEIGHTS, "seconds": seconds, "steps": steps, "options": options}


def link_ratios(mbit: float, repeats: int, ddp_steps: int = 30) -> dict[str, dict[str, float]]:
    """Return, by strategy, the step time over that without synchronisation, and the sync gap; two ranks, shaped links.

    Strategies take turns in one pair of processes; the ratio is the median over turns.
    """
    turn = [
        toy("none"), toy("ShadowMA"), toy("ddp", ddp_steps), toy("ShadowBMUF"), toy("ShadowEASGD"),
        toy("FixedRateMA", 30),
    ]  # fmt: skip
    with Links([mbit, mbit]) as links:
        found = run_team(turn * repeats, 2, links)
    rows: dict[str, list[tuple[float, float]]] = {}
    for start in range(0, len(found), len(turn)):
        times = [statistics.fmean(step_seconds(rank) for rank in team) for team in found[start : start + len(turn)]]
        for segment, seconds, team in zip(turn, times, found[start : start + len(turn)], strict=True):
            gap = float(team[1]["stats"].get("sync_gap", 1.0))
            rows.setdefault(segment["strategy"], []).append((seconds / times[0], gap))
    return {
        name: {"ratio": statistics.median(r for r, _ in values), "gap": statistics.median(g for _, g in values)}
        for name, values in rows.items()
    }


def straggler(repeats: int = 3) -> dict[str, float]:
    """Return the fast rank's median step over its own without synchronisation; rank 1's steps last 20 ms longer."""
    late = {"straggle": {"1": 0.02}}
    turn = [{**toy(name, steps, 0.01), **late} for name, steps in (("none", 60), ("ShadowMA", 60), ("ddp", 30))]
    with Links([200.0, 200.0]) as links:
        found = run_team(turn * repeats, 2, links)
    ratios: dict[str, list[float]] = {"ShadowMA": [], "ddp": []}
    for start in range(0, len(found), 3):
        base = median_step(found[start][0])
        ratios["ShadowMA"].append(median_step(found[start + 1][0]) / base)
        ratios["ddp"].append(median_step(found[start + 2][0]) / base)
    return {name: statistics.median(values) for name, values in ratios.items()}


def full_cores(repeats: int = 4) -> dict[str, float]:
    """Return the step time over that without synchronisation, as CPU-bound DLRM training on a free network."""
    setting = {"seed": 0, "rows": 120_000, "batch": 256}
    turn = [{"strategy": name, "learn": setting} for name in ("none", "ShadowMA", "ddp")]
    found = run_team(turn * repeats, 2)
    ratios: dict[str, list[float]] = {"ShadowMA": [], "ddp": []}
    for start in range(0, len(found), 3):
        times = [statistics.fmean(median_step(rank, 20) for rank in team) for team in found[start : start + 3]]
        ratios["ShadowMA"].append(times[1] / times[0])
        ratios["ddp"].append(times[2] / times[0])
    return {name: statistics.median(values) for name, values in ratios.items()}


def death() -> dict[str, float]:
    """Return what the death of rank 2 of 3 costs rank 0, in seconds.

    By how much its longest step is longer than its median one, around the death and, for comparison, before it; and
    the time until the group is rebuilt.
    """
    segment = {**toy("ShadowMA", 120, on_peer_loss="continue", cpu_budget=0.2), "dies": {"2": 60}}
    ((first, _),) = run_team([segment], 3)
    steps = [b - a for a, b in itertools.pairwise(first["times"])]
    usual = statistics.median(steps)
    return {
        "stall": max(steps[50:90]) - usual,
        "stall before": max(steps[10:50]) - usual,
        "rebuild": first["stats"]["rebuild_seconds"],
        "lost": first["stats"]["ranks_lost"],
    }


SCALED: tuple[tuple[str, Algorithm, int], ...] = (
    ("none", "none", 0), ("ShadowEASGD", "shadow_easgd", 0), ("FixedRateEASGD", "fr_easgd", 5),
    ("FixedRateEASGD", "fr_easgd", 30),
)  # fmt: skip


def scaling(trainers: int, steps: int = 400) -> dict[str, dict[str, float]]:
    """Return, by strategy, mean step seconds, their spread and the gap, of trainers on one server's 100 Mbit/s link."""
    segments = [toy(name, steps, **({"every": every} if every else {})) for name, _, every in SCALED]
    with Links([0.0] * trainers + [SERVER_MBIT]) as links:
        found = run_team(segments, trainers, links, server_place=trainers)
    rows = {}
    for (name, _, every), team in zip(SCALED, found, strict=True):
        each = [step_seconds(rank, steps // 4) for rank in team]  # once trainers that began together have drifted apart
        span = max(rank["times"][-1] for rank in team) - min(rank["times"][0] for rank in team)
        rounds = sum(rank["stats"].get("sync_rounds", 0) for rank in team)
        rows[f"{name}-{every}" if every else name] = {
            "step": statistics.fmean(each),
            "gap": statistics.fmean(rank["stats"].get("sync_gap", 0.0) for rank in team),
            "round": statistics.fmean(rank["stats"].get("sync_round_ms", 0.0) for rank in team) / 1e3,
            "rounds_per_second": rounds / span,
        }
    return rows


def calibrate(one: dict[str, dict[str, float]], two: dict[str, dict[str, float]]) -> Calibration:
    """Return what the simulator needs, from one trainer (its step) and two.

    Two trainers that wait for their rounds, of 5 steps each, hardly meet on the server's link: from what they wait
    comes its rate. Two that synchronise in the background leave the link idle for as long as their throttle wants:
    the time between their rounds is the least there is.
    """
    size = 4.0 * WEIGHTS
    waiting, background = two["FixedRateEASGD-5"], two["ShadowEASGD"]
    round_ = 5 * (waiting["step"] - two["none"]["step"])
    overhead = 0.0005
    return Calibration(
        one["none"]["step"], 0.03, size, server=2 * size / max(1e-6, round_ - overhead), overhead=overhead,
        period=2 / background["rounds_per_second"],
    )  # fmt: skip


def simulated(
    calibration: Calibration, measured: dict[int, dict[str, dict[str, float]]]
) -> list[dict[str, float | str]]:
    """Return, for every number of trainers and strategy, step time and gap as measured and as simulated."""
    rows: list[dict[str, float | str]] = []
    for trainers, table in measured.items():
        for name, algorithm, every in SCALED[1:]:
            row = table[f"{name}-{every}" if every else name]
            # the step of that team without synchronisation: on this machine's cores, more trainers are slower
            own = Calibration(**{**vars(calibration), "step": table["none"]["step"]})
            told = simulate(own, algorithm, trainers, every or 5)
            rows.append(
                {
                    "trainers": trainers, "strategy": f"{name} {every or ''}".strip(),
                    "step": row["step"], "step simulated": told.step, "step error": told.step / row["step"] - 1,
                    "gap": row["gap"], "gap simulated": told.gap, "gap error": told.gap / row["gap"] - 1,
                    "saturated": float(row["step"] > 1.3 * table["none"]["step"] or algorithm == "shadow_easgd"),
                }
            )  # fmt: skip
    return rows


NE_SETTINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ddp": ("ddp", {}, {}),
    "shadow MA, sharded tables": ("ShadowMA", {}, {"embedding": "ShardedEmbeddingBag"}),
    "shadow MA, shared tables": ("ShadowMA", {"tables": "shared"}, {}),
    "shadow MA": ("ShadowMA", {}, {}),
    "shadow BMUF": ("ShadowBMUF", {}, {}),
    "shadow EASGD, shared tables": ("ShadowEASGD", {"tables": "shared"}, {}),
    "shadow MA, lerp 0.5": ("ShadowMA", {"write": "lerp"}, {}),
    "shadow MA, rows: sum": ("ShadowMA", {"rows": "sum"}, {}),
    "shadow MA, rows: mean": ("ShadowMA", {"rows": "mean"}, {}),
    "fixed rate MA, 5": ("FixedRateMA", {}, {}),
    "fixed rate MA, 30": ("FixedRateMA", {"every": 30}, {}),
    "overwrite": ("ShadowMA", {"rows": "mean", "write": "lerp", "alpha": 1.0}, {}),
    "no sync": ("none", {}, {}),
}
SLOW_SETTINGS: dict[float, dict[str, tuple[str, dict[str, Any], dict[str, Any]]]] = {
    50.0: {
        "shadow MA, 50 Mbit/s": ("ShadowMA", {}, {}),
        "lerp 0.5, 50 Mbit/s": ("ShadowMA", {"write": "lerp"}, {}),
        "overwrite, 50 Mbit/s": NE_SETTINGS["overwrite"],
    },
    10.0: {"shadow MA, 10 Mbit/s": ("ShadowMA", {}, {}), "overwrite, 10 Mbit/s": NE_SETTINGS["overwrite"]},
}
"""By Mbit/s. A round lasts some four steps or twenty: what is learnt meanwhile, the write back keeps or takes."""
STEP = 0.01
"""Least seconds of a step where quality is measured: a round then falls on as few steps as with larger models."""


def quality(seed: int, rows: int) -> dict[str, dict[str, float]]:
    """Return test NE, sync gap and staleness of every setting: DLRM on generated clicks, two ranks, equal examples.

    Those on slow links only where links can be shaped.
    """
    found = _learnt(seed, rows, NE_SETTINGS, None)
    if permitted():
        return found
    for mbit, settings in SLOW_SETTINGS.items():
        with Links([mbit, mbit]) as links:
            found |= _learnt(seed, rows, settings, links)
    return found


def _learnt(
    seed: int, rows: int, settings: dict[str, tuple[str, dict[str, Any], dict[str, Any]]], links: Links | None
) -> dict[str, dict[str, float]]:
    setting = {"seed": seed, "rows": rows, "batch": 256, "seconds": STEP}
    segments = [
        {"strategy": name, "options": options, "learn": {**setting, **more}}
        for name, options, more in settings.values()
    ]
    found = run_team(segments, 2, links, limit=3000.0)
    return {
        name: {
            "ne": team[0]["metrics"]["ne"],
            "gap": float(team[0]["stats"].get("sync_gap", 0.0)),
            "staleness": float(team[0]["stats"].get("sync_staleness", 0.0)),
        }
        for name, team in zip(settings, found, strict=True)
    }
