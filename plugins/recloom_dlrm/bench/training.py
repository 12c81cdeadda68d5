"""DLRM training speed beside the reference implementation and TorchRec with FBGEMM's table-batched embeddings.

    recloom bench dlrm --dlrm-path DLRM        # a checkout of facebookresearch/dlrm
    recloom bench dlrm --shapes rmc1-small --batches 128 --threads 1 --rounds 9

All contenders are built in one process and take turns, round by round, on the same batches (uniform ids, a fresh batch
each step). Speed is a round's median step; printed are medians over rounds, and medians of the rounds' ratios to the
fastest fp32 peer. A contender whose package is missing is left out with a message. `floor` is the time of the MLPs'
floating-point operations at the rate measured for a 1024-cubed fp32 product on the same threads, as a share of the
step; `gather` is the same for 3 passes over the touched rows at the measured copy rate of memory.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from recloom_dlrm.bench.contenders import SHAPES, Inputs, Shape, Step, contenders


def batches(shape: Shape, size: int, count: int) -> list[Inputs]:
    """Return `count` batches of uniform ids."""
    generator = torch.Generator().manual_seed(size)
    made = []
    for _ in range(count):
        ids = torch.cat([torch.randint(0, rows, (size * shape.lookups,), generator=generator) for rows in shape.rows])
        bags = size * len(shape.rows)
        offsets = torch.arange(0, bags * shape.lookups + 1, shape.lookups)
        dense = torch.rand(size, shape.dense[0], generator=generator)
        labels = torch.randint(0, 2, (size,), generator=generator).float()
        made.append(Inputs(dense, ids, offsets, labels, len(shape.rows)))
    return made


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def median_step(step: Step, inputs: list[Inputs], seconds: float, clock: Callable[[], float]) -> float:
    """Return the median seconds of a step by `clock`, over `seconds` and at least 5 steps."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        batch = inputs[len(times) % len(inputs)]
        start = clock()
        step(batch)
        times.append(clock() - start)
    return statistics.median(times)


def rate(function: Callable[[], object], work: float, clock: Callable[[], float]) -> float:
    """Return `work` a second of `function`: the best of 10 calls."""
    times = []
    for _ in range(10):
        start = clock()
        function()
        times.append(clock() - start)
    return work / min(times)


def machine_rates(clock: Callable[[], float]) -> tuple[float, float]:
    """Return (fp32 FLOP/s of a matrix product, bytes/s read and written by a copy)."""
    a, b = torch.rand(1024, 1024), torch.rand(1024, 1024)
    source = torch.rand(16 << 20)
    target = torch.empty_like(source)
    return rate(lambda: a @ b, 2 * 1024**3, clock), rate(lambda: target.copy_(source), 2 * source.nbytes, clock)


def measure(
    shape: Shape, size: int, steps: dict[str, Step], rounds: int, seconds: float, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    """Let the contenders take turns on one shape and batch size; return a row each."""
    inputs = batches(shape, size, 40 if shape.lookups == 1 else 8)
    for step in steps.values():
        median_step(step, inputs, 0, clock)  # warm up
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for turn in range(rounds):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            times[name].append(median_step(steps[name], inputs, seconds, clock))
    peers = [name for name in steps if not name.startswith("recloom") and "bf16" not in name]
    best = min(peers, key=lambda name: statistics.median(times[name])) if peers else None
    flops, bandwidth = machine_rates(clock)
    gathered = 3 * len(shape.rows) * shape.lookups * shape.width * 4  # read, read and write again
    results: list[dict[str, Any]] = []
    for name in steps:
        middle = statistics.median(times[name])
        ratios = [theirs / mine for theirs, mine in zip(times[best], times[name], strict=True)] if best else []
        results.append(
            {
                "shape": shape.name,
                "batch": size,
                "threads": torch.get_num_threads(),
                "contender": name,
                "samples_per_second": size / middle,
                "ratio_to_best_peer": statistics.median(ratios) if best else float("nan"),
                "best_peer": best or "none",
                "floor": 3 * shape.mlp_flops() * size / flops / middle,
                "gather": gathered * size / bandwidth / middle,
            }
        )
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| shape | batch | threads | contender | samples/s | ratio to best fp32 peer | floor | gather |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        mark = " (best peer)" if r["contender"] == r["best_peer"] else ""
        lines.append(
            f"| {r['shape']} | {r['batch']} | {r['threads']} | {r['contender']}{mark} | {r['samples_per_second']:,.0f} "
            f"| {r['ratio_to_best_peer']:.2f} | {r['floor']:.0%} | {r['gather']:.1%} |"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Measure, print the table, and return 0."""
    parser = argparse.ArgumentParser(
        prog="recloom bench dlrm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["kaggle", "rmc1-small"], choices=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 2048])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one contender's turn")
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="cpu, with one thread: for a machine that others use too"
    )
    parser.add_argument("--only", nargs="+", help="names of contenders to run; all by default")
    parser.add_argument("--dlrm-path", type=Path, help="checkout of facebookresearch/dlrm")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    arguments = parser.parse_args(argv)
    print(
        f"torch {torch.__version__}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}", file=sys.stderr
    )
    results: list[dict[str, Any]] = []
    for name in arguments.shapes:
        steps = contenders(SHAPES[name], arguments.dlrm_path, arguments.only)
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            for size in arguments.batches:
                results += measure(
                    SHAPES[name], size, steps, arguments.rounds, arguments.seconds, CLOCKS[arguments.clock]
                )
                print(table(results[-len(steps) :]), file=sys.stderr, flush=True)
        del steps
    print(table(results))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 0
