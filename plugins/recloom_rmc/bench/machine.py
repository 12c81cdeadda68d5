"""What the machine allows: matrix products, random rows from memory; its counters, where it has them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from recloom import rowgrad
from recloom.rowlayout import stack_layout

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
EVENTS = ("LLC-loads", "LLC-load-misses", "instructions", "cycles")


def best(function: Callable[[], object], clock: Callable[[], float], calls: int = 7) -> float:
    """Return the least seconds of a call."""
    times = []
    for _ in range(calls):
        start = clock()
        function()
        times.append(clock() - start)
    return min(times)


def matrix_peak(clock: Callable[[], float], size: int = 1024, calls: int = 7) -> float:
    """Return the FLOP/s of an fp32 product of two `size`-squared matrices, the best of some calls."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    return 2 * size**3 / best(lambda: a @ b, clock, calls)


def random_row_seconds(weight: Tensor, clock: Callable[[], float], rows: int = 65_536) -> float:
    """Return the seconds that reading one random row of `weight` takes, at best over 5 sets of fresh rows.

    Every row is added to one vector that stays in cache: one bag of all rows, read as the gather reads them but
    without bags, tables and bounds; by torch's kernel and by ours, of which the faster counts. It is the floor of any
    gather that brings rows from memory.
    """
    ids = torch.randint(len(weight), (10, rows), generator=torch.Generator().manual_seed(1))
    layout, bounds = stack_layout([(len(weight), ("all",), "sum")]), torch.tensor([0, rows])
    readers: list[Callable[[Tensor], Tensor]] = [
        lambda part: torch.nn.functional.embedding_bag(part, weight, bounds[:1], mode="sum"),
        lambda part: rowgrad.pool(weight, part, bounds, None, layout),
    ]
    times = []
    for number, part in enumerate(ids):
        start = clock()
        readers[number % 2](part)
        times.append(clock() - start)
    return min(times) / rows


def counters() -> tuple[bool, str]:
    """Return whether perf counts cache events here, and in one sentence what it says."""
    if shutil.which("perf") is None:
        return False, "There is no perf here, so nothing is said of cache misses an instruction."
    command = ["perf", "stat", "-x", ",", "-e", ",".join(EVENTS), "--", sys.executable, "-c", "pass"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    bad = [line for line in done.stderr.splitlines() if "not supported" in line or "not counted" in line]
    if done.returncode or bad:
        lost = re.findall(r"[\w-]+", ",".join(EVENTS)) if done.returncode else [_event(line) for line in bad]
        return (
            False,
            f"perf is here, but this machine does not offer {', '.join(lost)}: nothing is said of cache misses.",
        )
    return True, "perf counts cache events here."


def _event(line: str) -> str:
    return next((event for event in EVENTS if f"{event}" in line.split(",")), line)
