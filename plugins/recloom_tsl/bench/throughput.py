"""TBSM's training speed and memory beside the reference implementation's, at the shape of its Taobao bench.

    recloom bench tsl --tbsm-path TBSM --dlrm-path DLRM     # checkouts of facebookresearch/tbsm and dlrm
    RECLOOM_TBSM=TBSM RECLOOM_DLRM=DLRM recloom bench tsl   # the same
    recloom bench tsl                                       # ours alone

Tables of 987,994 users, 4,162,024 items and 9,439 categories, 16 wide; batches of 256, histories of 20 steps, Adagrad.
Every contender has a process of its own; they take turns, one at a time, on the same batches (uniform ids). Speed is a
round's median step; printed are medians over rounds, and medians of the rounds' ratios to the reference, as its bench
script runs it (`tbsm`) and with --run-fast (without the table of 10 million offsets that this makes first). Memory is
the peak of the process from its start to its end, and what it holds while it trains; the reference's peak is where it
draws its tables. `recloom` keeps Adagrad's state by row, `recloom adagrad` by element, as the reference does.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from recloom.errors import RecloomError
from recloom_tsl.bench import reference
from recloom_tsl.bench.contenders import CLOCKS, OURS, PEERS, Task, serve

MEBI = 1 << 20


class Contender:
    """A contender's process.

    Args:
        name: Which contender.
        task: What to measure.
        paths: Checkouts of tbsm and dlrm, for the reference.
    """

    def __init__(self, name: str, task: Task, paths: tuple[Path, Path] | None) -> None:
        context = multiprocessing.get_context("spawn")  # fork would hand over this process's memory
        self._ours: Connection
        self._ours, theirs = context.Pipe()
        self.name = name
        self._process: BaseProcess = context.Process(target=serve, args=(theirs, name, task, paths), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()  # it is built
        self.peak = self.held = 0
        self.steps: list[float] = []

    def turn(self, seconds: float) -> float:
        """Let it run; return the median seconds of a step."""
        self._ours.send(seconds)
        found = self._receive()
        self.peak, self.held = found["peak"], found["held"]
        return found["step"]

    def end(self) -> None:
        """End the process."""
        self._ours.send(None)
        self._process.join()

    def _receive(self) -> dict[str, Any]:
        try:
            return self._ours.recv()
        except EOFError:
            raise RecloomError(f"the process of {self.name!r} ended", "Its error is printed above.") from None


def measure(task: Task, names: list[str], paths: Any, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Let the contenders take turns; return a row each."""
    contenders = [Contender(name, task, paths) for name in names]
    for contender in contenders:
        contender.turn(0)  # warm up
    for turn in range(rounds):
        first = turn % len(contenders)
        for contender in contenders[first:] + contenders[:first]:
            contender.steps.append(contender.turn(seconds))
    for contender in contenders:
        contender.end()
    peers = [contender for contender in contenders if contender.name in PEERS]
    results: list[dict[str, Any]] = []
    for c in contenders:
        ratios = {
            peer.name: statistics.median(theirs / mine for theirs, mine in zip(peer.steps, c.steps, strict=True))
            for peer in peers
        }
        results.append(
            {
                "contender": c.name,
                "batch": task.batch,
                "length": task.length,
                "heads": task.heads,
                "threads": task.threads,
                "milliseconds": 1000 * statistics.median(c.steps),
                "samples_per_second": task.batch / statistics.median(c.steps),
                "ratios": ratios,
                "peak_bytes": c.peak,
                "held_bytes": c.held,
                "share_of_peak": c.peak / min(peer.peak for peer in peers) if peers else None,
            }
        )
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    peers = list(results[0]["ratios"])
    titles = ["contender", "heads", "ms a step", "samples/s", *(f"x {peer}" for peer in peers), "peak MiB"]
    titles += ["of the reference's", "held MiB"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for r in results:
        cells = [r["contender"], str(r["heads"]), f"{r['milliseconds']:.2f}", f"{r['samples_per_second']:,.0f}"]
        cells += [f"{r['ratios'][peer]:.2f}" for peer in peers]
        share = "-" if r["share_of_peak"] is None else f"{r['share_of_peak']:.0%}"
        cells += [f"{r['peak_bytes'] / MEBI:,.0f}", share, f"{r['held_bytes'] / MEBI:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Measure, print the table, and return 0."""
    parser = argparse.ArgumentParser(
        prog="recloom bench tsl", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs=3, type=int, default=list(Task.rows), help="users, items, categories")
    parser.add_argument("--length", type=int, default=Task.length, help="steps of a history")
    parser.add_argument("--batch", type=int, default=Task.batch)
    parser.add_argument("--heads", type=int, default=Task.heads)
    parser.add_argument("--threads", type=int, default=Task.threads)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one contender's turn")
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="cpu, with one thread: for a machine that others use too"
    )
    parser.add_argument("--only", nargs="+", choices=[*OURS, *PEERS], help="contenders to run; all by default")
    parser.add_argument("--tbsm-path", help="checkout of facebookresearch/tbsm")
    parser.add_argument("--dlrm-path", help="checkout of facebookresearch/dlrm")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    options = parser.parse_args(argv)
    print(
        f"torch {torch.__version__}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}", file=sys.stderr
    )
    paths = reference.checkouts(options.tbsm_path, options.dlrm_path)
    if paths is None:
        print("the reference is left out: give --tbsm-path and --dlrm-path", file=sys.stderr)
    names = [name for name in (*OURS, *(PEERS if paths else ())) if not options.only or name in options.only]
    task = Task(tuple(options.rows), options.length, options.batch, options.heads, options.threads, options.clock)
    results = measure(task, names, paths, options.rounds, options.seconds)
    print(table(results))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 0
