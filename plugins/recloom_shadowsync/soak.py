"""`recloom bench shadowsync-soak`: random schedules of starts, ends, kills, hangs and errors; none may deadlock.

Each schedule is a fit of two or three ranks with a strategy, lengths, delays and a misfortune drawn from its seed. It
fails if a process is still there after the bound, or if ranks that should have gone on did not end with one model.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import socket
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from recloom import quiet
from recloom_shadowsync import named
from recloom_shadowsync.bench.toy import ToyModel, batches
from recloom_shadowsync.strategy import ShadowSyncStrategy

EVENTS = ("none", "none", "kill", "kill", "error", "term", "hang")
NAMES = ("ShadowMA", "ShadowBMUF", "ShadowEASGD", "FixedRateMA", "FixedRateEASGD", "DiLoCoStrategy")
ROUND_TIMEOUT = 2.0


@dataclass(frozen=True)
class Schedule:
    """One fit, and what happens in it.

    Args:
        seed: What the rest was drawn from.
        name: The strategy's class.
        ranks: Number of ranks.
        batches: Of each rank.
        delays: Seconds of each rank's step.
        loss: `on_peer_loss`.
        compression: Of what is exchanged.
        validate: Whether ranks validate.
        event: What happens.
        victim: To which rank.
        step: After which of its batches.
    """

    seed: int
    name: str
    ranks: int
    batches: tuple[int, ...]
    delays: tuple[float, ...]
    loss: str
    compression: str
    validate: bool
    event: str
    victim: int
    step: int

    @classmethod
    def draw(cls, seed: int) -> Schedule:
        """Return the schedule of a seed."""
        rng = random.Random(seed)
        ranks = rng.choice((2, 3))
        counts = tuple(rng.randint(5, 60) for _ in range(ranks))
        victim = rng.randrange(ranks)
        return cls(
            seed,
            rng.choice(NAMES),
            ranks,
            counts,
            tuple(rng.choice((0.0, 0.001, 0.005)) for _ in range(ranks)),
            rng.choice(("stop", "continue")),
            rng.choice(("none", "none", "bf16", "int8")),
            rng.random() < 0.5,
            rng.choice(EVENTS),
            victim,
            rng.randrange(counts[victim]),
        )

    @property
    def survivors(self) -> list[int]:
        """The ranks that must end well, with one model."""
        if self.event == "none":
            return list(range(self.ranks))
        if self.loss == "stop" or self.victim == 0 or self.event == "term":
            return []  # rank 0 holds the store and the servers; Lightning passes its SIGTERM on
        return [rank for rank in range(self.ranks) if rank != self.victim]


class Misfortune(Callback):
    """Makes the schedule's event happen.

    Args:
        schedule: The schedule.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Kill, stop or interrupt this process, or raise, if it is the one and this is the time."""
        schedule = self.schedule
        if trainer.global_rank != schedule.victim or trainer.global_step != schedule.step + 1:
            return
        if schedule.event == "error":
            raise ValueError("a misfortune")
        number = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "hang": signal.SIGSTOP}.get(schedule.event)
        if number is not None:
            os.kill(os.getpid(), number)


def _rank(rank: int, schedule: Schedule, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    quiet.hush()
    with (Path(folder) / f"{rank}.log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0",
        WORLD_SIZE=str(schedule.ranks), LOCAL_WORLD_SIZE=str(schedule.ranks), TORCHELASTIC_RUN_ID="soak",
    )  # fmt: skip
    kind: type[ShadowSyncStrategy] = getattr(named, schedule.name)
    strategy = kind(
        every=None if schedule.name.startswith("Shadow") else 4,
        compression=schedule.compression,  # type: ignore[arg-type]
        on_peer_loss=schedule.loss,  # type: ignore[arg-type]
        round_timeout=ROUND_TIMEOUT,
        cpu_budget=0.5,
    )
    trainer = pl.Trainer(
        accelerator="cpu", devices=schedule.ranks, strategy=strategy, max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[Misfortune(schedule)],
    )  # fmt: skip
    model = ToyModel(300, schedule.delays[rank])
    val = batches(3, 1000 + rank) if schedule.validate else None
    trainer.fit(model, batches(schedule.batches[rank], rank), val)
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    (Path(folder) / f"{rank}.json").write_text(json.dumps([trainer.global_step, weights.double().sum().item()]))


def run_schedule(schedule: Schedule, bound: float = 75.0) -> str:
    """Run one schedule; return what is wrong, or nothing.

    Args:
        schedule: The schedule.
        bound: Seconds after which a process that is still there is in a deadlock. By default so many that a busy
            machine, on which starting alone may take twenty, is not taken for one.
    """
    context = multiprocessing.get_context("forkserver")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_rank, args=(rank, schedule, port, folder)) for rank in range(schedule.ranks)
        ]
        for process in processes:
            process.start()
        hung = _wait(processes, schedule, time.monotonic() + bound)
        if hung:
            return f"ranks {hung} were still there after {bound:.0f} s"
        found = {rank: Path(folder, f"{rank}.json") for rank in schedule.survivors}
        missing = [rank for rank, path in found.items() if not path.exists()]
        if missing:
            return f"rank {missing[0]} did not go on: {Path(folder, f'{missing[0]}.log').read_text()[-600:]}"
        results = {rank: json.loads(path.read_text()) for rank, path in found.items()}
        short = [rank for rank, (steps, _) in results.items() if steps != schedule.batches[rank]]
        if short:
            return f"rank {short[0]} did {results[short[0]][0]} steps of {schedule.batches[short[0]]}"
        return "" if len({total for _, total in results.values()}) <= 1 else f"different models: {results}"


def _wait(processes: list[Any], schedule: Schedule, end: float) -> list[int]:
    """Wait for all processes that can end; kill the rest, and return those of them that should have ended."""
    expected = [r for r in range(schedule.ranks) if schedule.event != "hang" or r != schedule.victim]
    for rank in expected:
        processes[rank].join(max(0.0, end - time.monotonic()))
    hung = [rank for rank in expected if processes[rank].is_alive()]
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()
    return hung


def main(argv: list[str]) -> int:
    """Run random schedules and print what failed; the exit code is 1 if any did."""
    parser = argparse.ArgumentParser(prog="recloom bench shadowsync-soak", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("--schedules", type=int, default=200, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first; the others follow")
    parser.add_argument("--bound", type=float, default=25.0, help="seconds that one may take")
    options = parser.parse_args(argv)
    preload()
    counts: Counter[str] = Counter()
    slowest, start = 0.0, time.monotonic()
    for seed in range(options.seed, options.seed + options.schedules):
        schedule, began = Schedule.draw(seed), time.monotonic()
        problem = run_schedule(schedule, options.bound)
        slowest = max(slowest, time.monotonic() - began)
        counts[schedule.event + (" FAILED" if problem else "")] += 1
        if problem:
            print(f"{schedule}\n  {problem}", flush=True)
    failed = sum(count for event, count in counts.items() if event.endswith("FAILED"))
    listed = ", ".join(f"{event} {count}" for event, count in sorted(counts.items()))
    seconds = f"{time.monotonic() - start:.0f} s, slowest {slowest:.1f} s"
    print(f"{options.schedules} schedules ({listed}): {failed} failed; {seconds}")
    return int(failed > 0)


def preload() -> None:
    """Let the fork server import what all processes need once."""
    multiprocessing.set_forkserver_preload(["torch", "lightning.pytorch", "recloom_shadowsync.soak"])
