"""What Lightning's loop costs on top of a bare training loop: the same model, batches and threads, in one run.

    python benchmarks/lightning_overhead.py [--threads 1] [--rounds 5]

Shape: Criteo Kaggle's (13 dense, 26 tables of 100,000 rows, D 16, bottom 512-256-64-16, top 512-256-1).
Prints milliseconds a step (medians over rounds, taken in turn) and the share lost.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import lightning.pytorch as pl
import torch

from recloom import quiet
from recloom.batch import Batch, KeyedJaggedTensor
from recloom.cli.callbacks import ProgressBar
from recloom.features import DenseFeature, FeatureSchema, SparseFeature
from recloom.loggers import run_loggers
from recloom_dlrm.model import DLRM

ROWS = 100_000


def batches(batch_size: int, count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    names = [f"c{i}" for i in range(26)]
    return [
        Batch(
            torch.randn(batch_size, 13, generator=generator),
            KeyedJaggedTensor(names, torch.randint(ROWS, (26 * batch_size,), generator=generator)),
            (torch.rand(batch_size, generator=generator) < 0.25).float(),
        )
        for _ in range(count)
    ]


def model() -> DLRM:
    torch.manual_seed(0)
    schema = FeatureSchema(
        dense=tuple(DenseFeature(f"d{i}") for i in range(13)),
        sparse=tuple(SparseFeature(f"c{i}", ROWS) for i in range(26)),
    )
    return DLRM(schema.to_dict())


class Repeat:
    """An in-memory loader, so that data cost the same in both loops: nothing."""

    def __init__(self, data: list[Batch], steps: int) -> None:
        self.data, self.steps = data, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        for step in range(self.steps):
            yield self.data[step % len(self.data)]


def bare(module: DLRM, loader: Repeat) -> float:
    optimizer = module.configure_optimizers()
    start = time.perf_counter()
    for batch in loader:
        optimizer.zero_grad()
        module.loss(module.logits(batch), batch).backward()
        optimizer.step()
    return (time.perf_counter() - start) / len(loader)


class Clock(pl.Callback):
    def on_train_start(self, trainer, module) -> None:
        self.start = time.perf_counter()

    def on_train_end(self, trainer, module) -> None:
        self.seconds = time.perf_counter() - self.start


def fitted(module: DLRM, loader: Repeat, directory: Path) -> float:
    clock = Clock()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=run_loggers(directory),
        callbacks=[clock, ProgressBar()],
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=50,
    )
    trainer.fit(module, loader)
    return clock.seconds / len(loader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet.hush()
    print(f"{'batch':>6} {'bare ms':>9} {'Lightning ms':>13} {'lost':>7}   ({options.threads} thread)")
    for batch_size, steps in ((128, 400), (2048, 40)):
        data = batches(batch_size, 20)
        module, loader = model(), Repeat(data, steps)
        times: dict[str, list[float]] = {"bare": [], "lightning": []}
        with tempfile.TemporaryDirectory() as directory:
            for _ in range(options.rounds):
                times["bare"].append(bare(module, loader))
                times["lightning"].append(fitted(module, loader, Path(directory)))
        ratios = [b / a - 1 for a, b in zip(times["bare"], times["lightning"], strict=True)]
        a, b = (1e3 * statistics.median(times[name]) for name in ("bare", "lightning"))
        print(f"{batch_size:>6} {a:>9.2f} {b:>13.2f} {statistics.median(ratios):>6.1%}")


if __name__ == "__main__":
    main()
