"""Models of streams trained and tested in one call, for the experiment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl

from recloom.data.streams.module import StreamDataModule
from recloom.optim import OptimizerConfig
from recloom.plugins import catalog
from recloom.training import train_and_test

# what `recloom bench edge` times on the generated stream, and `recloom reproduce edge` measures the quality of
TIMED: dict[str, Any] = {"update": "rnn", "method": "activity", "candidates": 256, "group": 256}
TIMED_WINDOW = 2000


@dataclass(frozen=True)
class Contender:
    """A model with its options.

    Args:
        model: "EDGE", "JODIE" or "TGN".
        options: Arguments of its constructor.
        optimizer: Optimizers and learning rates.
        window: Events of a window, in training and evaluation.
        epochs: Most epochs, by budget, where they are not those of the experiment.
        patience: Training ends after so many epochs without a better validation MRR.
        most: Most windows that are validated and tested on, by "limit_val_batches" and "limit_test_batches".
    """

    model: str = "EDGE"
    options: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(
        default_factory=lambda: {"dense": "Adam", "dense_lr": 0.001, "sparse": "adagrad", "sparse_lr": 0.02}
    )
    window: int = 1000
    epochs: dict[str, int] = field(default_factory=dict)
    patience: int = 2
    most: dict[str, int] = field(default_factory=dict)


def train(contender: Contender, data: StreamDataModule, epochs: int, seed: int) -> dict[str, float]:
    """Return the test metrics of the epoch with the best validation MRR, and the CPU seconds of training."""
    data.window = contender.window
    data.eval_window = min(contender.window, max(1, 20_000_000 // data.stream.num_destinations))
    pl.seed_everything(seed, verbose=False)
    kind = catalog().models.load(contender.model)
    model = kind(data.schema, optimizer=OptimizerConfig(**contender.optimizer), **contender.options)
    options: dict[str, Any] = {"accelerator": "cpu", **contender.most}
    done = train_and_test(
        model, data, epochs=epochs, patience=contender.patience, monitor="val_mrr", mode="max", **options
    )
    return {name: value for name, value in done.metrics.items() if name != "val_mrr"} | {"seconds": done.cpu_seconds}
