"""Training and measuring one candidate, quietly, through Lightning's Trainer."""

from __future__ import annotations

import hashlib
import math
import signal
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from recloom import metrics, quiet
from recloom.batch import Batch
from recloom.evaluation import EvaluationMetrics
from recloom.model import RankingModule
from recloom.search.space import Genotype

METRICS = ("ne", "logloss", "auc", "calibration")
_CHECK_EVERY = 50


def candidate_seed(seed: int, genotype: Genotype, repeat: int = 0) -> int:
    """Return a seed that depends on the search's seed, the canonical genotype and the repetition alone."""
    digest = hashlib.sha256(f"{seed}:{tuple(map(int, genotype))}:{repeat}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


class StopWhenDiverged(Callback):
    """Ends training when the loss is no finite number; looks at it every 50 batches, and at the end.

    Attributes:
        reason: What was seen; empty while all is well.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._loss: Tensor | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss."""
        self._loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if batch_idx % _CHECK_EVERY == 0:
            self._check(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the last loss."""
        self._check(trainer)

    def _check(self, trainer: pl.Trainer) -> None:
        if self._loss is not None and not self.reason and not math.isfinite(float(self._loss)):
            self.reason = f"the loss is {float(self._loss)} after {trainer.global_step} steps"
            trainer.should_stop = True


def fit(
    module: pl.LightningModule,
    loader: Any,
    options: dict[str, Any],
    callbacks: Sequence[Callback] = (),
    ckpt_path: str | None = None,
) -> str:
    """Train `module` on `loader`, without output and files of its own; return why it diverged, or "".

    Args:
        module: The module.
        loader: Training batches.
        options: Arguments of `lightning.Trainer`: max_epochs, max_steps, accelerator, ...
        callbacks: Further callbacks.
        ckpt_path: A checkpoint to go on from.

    Raises:
        KeyboardInterrupt: Ctrl-C. The Trainer would exit the process instead.
    """
    quiet.hush()
    watch = StopWhenDiverged()
    defaults: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, pl.callbacks.ModelCheckpoint) for c in callbacks),
        "log_every_n_steps": 1000,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "devices": 1,
    }
    trainer = pl.Trainer(**{**defaults, **options}, callbacks=[watch, *callbacks])
    previous = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, train_dataloaders=loader, ckpt_path=ckpt_path, weights_only=True)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, previous)
    return watch.reason


def device_for(options: dict[str, Any]) -> torch.device:
    """Return the device that a Trainer with these options trains on."""
    wanted = options.get("accelerator", "auto")
    return torch.device("cuda" if wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu")


@torch.no_grad()
def measure(
    module: RankingModule, batches: Iterable[Batch], device: torch.device | str = "cpu"
) -> tuple[dict[str, float], Tensor]:
    """Return the metrics of `module` on `batches` ("ne", "logloss", "auc", "calibration", ...), and its logits."""
    module.to(device).eval()
    evaluation = EvaluationMetrics().to(device)
    logits = []
    for batch in batches:
        batch = batch.to(module.device)
        logits.append(module.logits(batch).float())
        evaluation.add(logits[-1], batch)
    return {name: float(value) for name, value in evaluation.finish().items()}, torch.cat(logits).cpu()


def diverged(reason: str, metrics: dict[str, float], ne_bound: float) -> str:
    """Return why a candidate with these metrics counts as diverged, or ""."""
    if reason:
        return reason
    if not math.isfinite(metrics["ne"]):
        return f"NE is {metrics['ne']}"
    return f"NE is {metrics['ne']:.4g}, above {ne_bound:g}" if metrics["ne"] > ne_bound else ""


def metrics_of(logits: Tensor, labels: Tensor, weights: Tensor | None) -> dict[str, float]:
    """Return ne, logloss, auc, calibration of N logits in memory."""
    weight = torch.ones_like(labels, dtype=torch.float64) if weights is None else weights.double()
    total = weight.sum()
    loss = metrics.log_loss_sum(logits, labels, weights) / total
    mean = (labels.double() * weight).sum() / total
    predicted = (torch.sigmoid(logits.double()) * weight).sum() / total
    return {
        "ne": float(loss / metrics.entropy(mean)),
        "logloss": float(loss),
        "auc": float(metrics.auroc(logits, labels, weights)),
        "calibration": float(predicted / mean),
    }
