"""Training events a second: EDGE beside JODIE by t-batches and event by event, and the partitioner.

    recloom bench edge --data build/wiki               # a stream that `recloom prepare jodie` wrote, and a made one
    recloom bench edge                                 # the generated one alone
    recloom bench edge --large 100_000_000             # also: generate, write and sweep that many events

All contenders train on the same streams, with states of one width, and take turns; a turn is a few windows, forward,
backward and optimizer step. Printed are medians over turns, and medians of the turns' ratios. What is measured is the
CPU time of one thread. EDGE has windows of --window events (by default 1,000 of a stream of --data and 2,000 of the
generated one); what goes by t-batches has these, half and a quarter of them, and the fastest counts as its rate.
"EDGE's cell and loss, t-batch" is the same model in JODIE's schedule: what is compared with it differs in nothing else.
JODIE itself has a cheaper loss: one prediction an event, where EDGE scores all destinations (Wikipedia) or 256
(generated). "torch" is EDGE with its recurrence level by level in torch operations; "exact" has no decoupled nodes.
`recloom reproduce edge` measures the quality of what is timed on the generated stream.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from recloom.data.streams.folder import load_stream
from recloom.data.streams.powerlaw import PowerLawStream
from recloom.data.streams.stream import EventStream
from recloom.data.streams.window import EventWindow, windows
from recloom.optim import OptimizerConfig, build_optimizer
from recloom_edge import partition
from recloom_edge.base import StreamModel
from recloom_edge.bench.tbatch import TBatchEDGE
from recloom_edge.compare import TIMED, TIMED_WINDOW
from recloom_edge.jodie import JODIE
from recloom_edge.model import EDGE

BASES = ("EDGE's cell and loss, t-batch", "JODIE, t-batch", "JODIE, event by event")
OPTIMIZER = OptimizerConfig("Adam", 0.001, sparse="adagrad", sparse_lr=0.02)


class Contender:
    """A model in training.

    Args:
        name: Its name.
        model: The model.
        training: The training events.
        size: Events of a window.
        turn: Events of a turn.
    """

    def __init__(self, name: str, model: StreamModel, training: EventStream, size: int, turn: int) -> None:
        self.name, self.model, self.size, self.turn = name, model, min(size, turn), turn
        model.prepare(training)
        self.optimizer, _ = build_optimizer(model, OPTIMIZER)
        self._windows: Iterator[EventWindow] = itertools.cycle(windows(training, self.size))
        self.rates: list[float] = []

    def run(self) -> None:
        """Train for a turn."""
        done, start = 0, time.process_time()
        while done < self.turn:
            window = next(self._windows)
            if window.start == 0:
                self.model.reset()
            self.optimizer.zero_grad()
            self.model.train_window(window).backward()
            self.optimizer.step()
            done += len(window)
        self.rates.append(done / (time.process_time() - start))


def contenders(training: EventStream, dim: int, size: int, share: float) -> list[Contender]:
    """Return all contenders for a stream; those by t-batches with several windows."""
    schema = training.schema().to_dict()
    few = training.num_destinations <= 2048
    edge: dict[str, Any] = {**TIMED, "dim": dim, "static_dim": dim} | ({"candidates": 2048} if few else {})
    jodie: dict[str, Any] = {"dim": dim, "static_dim": 0 if few else dim}
    smaller = [size, max(size // 2, 1), max(size // 4, 1)]
    makers: dict[str, tuple[Callable[[], StreamModel], int, list[int]]] = {
        "EDGE": (lambda: EDGE(schema, **edge, share=share), 8 * size, [size]),
        "EDGE, GRU": (lambda: EDGE(schema, **{**edge, "update": "gru"}, share=share), 8 * size, [size]),
        "EDGE, exact": (lambda: EDGE(schema, **edge, share=0), 8 * size, [size]),
        "EDGE, exact, torch": (lambda: EDGE(schema, **edge, share=0, compiled=False), size, [size]),
        "EDGE's cell and loss, t-batch": (lambda: TBatchEDGE(schema, **edge, share=0), size, smaller),
        "JODIE, t-batch": (lambda: JODIE(schema, **jodie), size, smaller),
        "JODIE, event by event": (lambda: JODIE(schema, **jodie, schedule="event"), smaller[-1], smaller[-1:]),
    }
    found = []
    for name, (make, turn, sizes) in makers.items():
        for each in sizes:
            torch.manual_seed(0)
            found.append(Contender(name, make(), training, each, turn))
    return found


def measure(stream: EventStream, rounds: int, dim: int, size: int, share: float) -> list[dict[str, Any]]:
    """Let the contenders take turns; return a row each, of those with several windows the fastest one."""
    training = stream.slice(*stream.span("train"))
    group = contenders(training, dim, size, share)
    for contender in group:
        contender.run()  # warms up
        contender.rates.clear()
    for turn in range(rounds):
        first = turn % len(group)
        for contender in group[first:] + group[:first]:
            contender.run()
    fastest: dict[str, Contender] = {}
    for contender in sorted(group, key=lambda one: statistics.median(one.rates)):
        fastest[contender.name] = contender
    rows = []
    for name in dict.fromkeys(contender.name for contender in group):
        contender = fastest[name]
        ratios = {
            base: statistics.median(a / b for a, b in zip(contender.rates, fastest[base].rates, strict=True))
            for base in BASES
        }
        rate = statistics.median(contender.rates)
        rows.append({"contender": name, "window": contender.size, "events_per_second": rate, "ratios": ratios})
    return rows


def sweep_rate(stream: EventStream, repeats: int = 10) -> float:
    """Return how many events a second of CPU time the partitioner sweeps, with 1% of the nodes decoupled."""
    mask = partition.by_activity(stream, stream.num_nodes // 100)
    rates = []
    for _ in range(repeats):
        sweep = partition.LevelSweep(stream.num_nodes, stream.node_offset, mask)
        start = time.process_time()
        sweep.add(stream.source, stream.destination)
        rates.append(len(stream) / max(time.process_time() - start, 1e-9))
    return statistics.median(rates)


def large(events: int, folder: Path, rate: float) -> None:
    """Generate, write and sweep a long stream, and print what that takes; training time is extrapolated."""
    config = PowerLawStream(events=events, sources=900_000, destinations=100_000)
    start = time.perf_counter()
    stream = config.write(folder)
    print(
        f"{events:,} events of {stream.num_nodes:,} nodes generated and written in {time.perf_counter() - start:.0f} s"
    )
    for share in (0.0, 0.01):
        mask = partition.choose(stream, "activity", share)
        start = time.process_time()
        found = partition.partition(stream, mask)
        seconds = time.process_time() - start
        print(f"{share:.0%} decoupled: {found.steps:,} steps, {seconds:.1f} s of CPU")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.1f} GiB, pages of the mapped file included")
    print(f"EXTRAPOLATED, not measured: an epoch at {rate:,.0f} events/s takes {events / rate / 3600:.1f} h")


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| contender | window | events/s | x t-batch, like for like | x JODIE | x event by event |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = row["ratios"].values()
        lines.append(
            f"| {row['contender']} | {row['window']:,} | {row['events_per_second']:,.0f} | "
            f"{' | '.join(f'{r:.2f}' for r in ratios)} |"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Measure, print the tables, and return 0."""
    parser = argparse.ArgumentParser(
        prog="recloom bench edge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of a stream, such as Wikipedia's")
    parser.add_argument("--events", type=int, default=1_000_000, help="events of the generated stream")
    parser.add_argument("--dim", type=int, default=64, help="width of states")
    parser.add_argument("--window", type=int, default=0, help="events of a window (default: 1000 and 2000, see above)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", type=int, default=0, metavar="N", help="also sweep a stream of N events")
    parser.add_argument("--folder", type=Path, help="where that is written (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    streams = {} if options.data is None else {str(options.data): (load_stream(options.data), 0.05, 1000)}
    generated = PowerLawStream(events=options.events).build()
    streams[f"power law, {options.events:,} events"] = (generated, 0.01, TIMED_WINDOW)
    results: dict[str, Any] = {}
    for name, (stream, share, window) in streams.items():
        rows = measure(stream, options.rounds, options.dim, options.window or window, share)
        results[name] = {"rows": rows, "sweep": sweep_rate(stream)}
        swept = results[name]["sweep"] / 1e6
        print(f"{name}: {share:.0%} decoupled; the partitioner sweeps {swept:,.0f} million events/s")
        print(table(rows), flush=True)
    if options.large:
        rate = rows[0]["events_per_second"]
        with tempfile.TemporaryDirectory() as folder:
            large(options.large, options.folder or Path(folder) / "stream", rate)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 0
