"""Models of streams trained and tested in one call, for the experiment."""

from __future__ import annotations

import tempfile
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from recloom.cli import quiet
from recloom.data.streams.module import StreamDataModule
from recloom.optim import OptimizerConfig
from recloom.plugins import catalog


@dataclass(frozen=True)
class Contender:
    """A model with its options.

    Args:
        model: "EDGE", "JODIE" or "TGN".
        options: Arguments of its constructor.
        optimizer: Optimizers and learning rates.
        window: Events of a window, in training and evaluation.
        epochs: Epochs, by budget, where they are not those of the experiment.
    """

    model: str = "EDGE"
    options: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(
        default_factory=lambda: {"dense": "Adam", "dense_lr": 0.001, "sparse": "adagrad", "sparse_lr": 0.02}
    )
    window: int = 1000
    epochs: dict[str, int] = field(default_factory=dict)


def train(contender: Contender, data: StreamDataModule, epochs: int, seed: int) -> dict[str, float]:
    """Return the test metrics of the epoch with the best validation MRR, and the seconds that training took."""
    quiet.hush()
    data.window = contender.window
    data.eval_window = min(contender.window, max(1, 20_000_000 // data.stream.num_destinations))
    pl.seed_everything(seed, verbose=False)
    options = {"optimizer": OptimizerConfig(**contender.optimizer), **contender.options}
    kind = catalog().models.load(contender.model)
    model = kind(data.schema, **options)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        best = ModelCheckpoint(folder, filename="best", monitor="val_mrr", mode="max", save_weights_only=True)
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[best],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        start = time.process_time()
        trainer.fit(model, data)
        seconds = time.process_time() - start
        tested = trainer.test(model, data, ckpt_path=best.best_model_path, weights_only=True, verbose=False)[0]
    return {**{name.removeprefix("test_"): float(value) for name, value in tested.items()}, "seconds": seconds}
