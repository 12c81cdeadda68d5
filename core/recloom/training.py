"""A model trained and tested in one call, quietly: for experiments and searches, which do it many times."""

from __future__ import annotations

import tempfile
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor

from recloom import quiet

if TYPE_CHECKING:
    from recloom.data.module import BlockDataModule
    from recloom.model import RankingModule


@dataclass(frozen=True)
class Predictions:
    """What a model says of the rows of a split.

    Args:
        logits: N logits (or N x T).
        labels: Their labels.
        groups: N group ids (users), if the data have groups.
    """

    logits: Tensor
    labels: Tensor
    groups: Tensor | None


@dataclass(frozen=True)
class Trained:
    """What came of a training.

    Args:
        metrics: "ne", "auc", "logloss", "calibration", ... of the test rows, and "val_ne" (or what else was watched) of
            the best validation.
        seconds: Time of the training, validations included.
        cpu_seconds: Processor time of it, of this process.
        parameters: Number of parameters.
    """

    metrics: dict[str, float]
    seconds: float
    cpu_seconds: float
    parameters: int


def train_and_test(
    model: pl.LightningModule,
    data: pl.LightningDataModule,
    *,
    epochs: int = 1,
    validations: int = 1,
    keep_best: bool = True,
    patience: int = 0,
    monitor: str = "val_ne",
    mode: Literal["min", "max"] = "min",
    **options: Any,
) -> Trained:
    """Train `model` on the CPU or the accelerator at hand, then test it.

    Args:
        model: The model; it has the tested weights afterwards.
        data: The data.
        epochs: Passes over the training rows.
        validations: Validations an epoch.
        keep_best: Test the weights with the best validation metric; otherwise the last ones.
        patience: Stop after so many validations in a row that were not better than the best; 0: never.
        monitor: That metric.
        mode: Whether it is best at its "min" or "max".
        options: Further arguments of Lightning's Trainer.
    """
    quiet.hush()
    every = max(1, len(data.train_dataloader()) // validations)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        best = ModelCheckpoint(folder, filename="best", monitor=monitor, mode=mode, save_weights_only=True)
        callbacks: list[Callback] = [best] if keep_best else []
        if patience:
            callbacks.append(EarlyStopping(monitor, patience=patience, mode=mode))
        trainer = pl.Trainer(
            max_epochs=epochs,
            val_check_interval=every,
            callbacks=callbacks,
            enable_checkpointing=keep_best,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **options,
        )
        start, cpu_start = time.perf_counter(), time.process_time()
        trainer.fit(model, data)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        metrics = {monitor: float(best.best_model_score)} if best.best_model_score is not None else {}
        path = best.best_model_path or None
        tested = trainer.test(model, data, ckpt_path=path, weights_only=True, verbose=False)[0]
    metrics |= {name.removeprefix("test_"): float(value) for name, value in tested.items()}
    return Trained(metrics, seconds, cpu_seconds, sum(parameter.numel() for parameter in model.parameters()))


@torch.no_grad()
def predict(model: RankingModule, data: BlockDataModule, split: str = "test") -> Predictions:
    """Return what `model` says of the rows of `split` ("val" or "test"), in their order."""
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    training = model.training
    model.eval()
    logits, labels, groups = [], [], []
    for batch in loader:
        batch = batch.to(model.device)
        logits.append(model.logits(batch).float().cpu())
        labels.append(batch.labels.cpu())
        groups.append(batch.extras["group"].cpu() if "group" in batch.extras else None)
    loader.close()
    model.train(training)
    known = [group for group in groups if group is not None]
    return Predictions(torch.cat(logits), torch.cat(labels), torch.cat(known) if known else None)
