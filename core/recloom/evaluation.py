"""All metrics of one evaluation of a ranking model, fed from batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from recloom import metrics
from recloom.batch import Batch
from recloom.errors import DataError, RecloomError


class EvaluationMetrics(nn.Module):
    """NE, AUC, log loss, calibration; GAUC and the oracle's NE where the data allow them; the calibration curve."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.ModuleDict(
            {
                "ne": metrics.NormalizedEntropy(),
                "auc": metrics.AUROC(),
                "logloss": metrics.LogLoss(),
                "calibration": metrics.Calibration(),
            }
        )
        self.gauc = metrics.GroupedAUROC()
        self.oracle_ne = metrics.NormalizedEntropy()
        self.reliability = metrics.ReliabilityCurve()
        self.curve = torch.empty(0, 3)

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Add a batch; DataError when a label is not between 0 and 1."""
        check_labels(batch.labels)
        weights = batch.weights
        if weights is not None:
            weights = weights.view(-1, *[1] * (batch.labels.ndim - 1)).expand_as(batch.labels)
        logits = logits.float()
        for metric in self.always.values():
            metric.update(logits, batch.labels, weights)  # type: ignore[operator]
        self.reliability.update(logits, batch.labels, weights)
        if "group" in batch.extras and batch.labels.ndim == 1:
            self.gauc.update(logits, batch.labels, batch.extras["group"])
        if "probability" in batch.extras:
            self.oracle_ne.update(torch.logit(batch.extras["probability"].double()), batch.labels, weights)

    def finish(self) -> dict[str, Tensor]:
        """Return the values by name, and start anew."""
        values = {name: metric.compute() for name, metric in self.always.items()}  # type: ignore[operator]
        for name in ("gauc", "oracle_ne"):
            metric = getattr(self, name)
            if metric.update_called:
                values[name] = metric.compute()
        self.curve = self.reliability.compute()
        for module in self.modules():
            if isinstance(module, Metric):
                module.reset()
        return values


def check_labels(labels: Tensor) -> None:
    """Raise a DataError when a label is not between 0 and 1: entropies of others mean nothing."""
    wrong = labels[~((labels >= 0) & (labels <= 1))]
    if len(wrong):
        raise DataError(
            f"a label of {float(wrong[0]):g}, where it must be between 0 and 1",
            "Ratings and counts are made labels when the data are prepared: `recloom prepare table --positive N`.",
        )


def check_loss(loss: Tensor, step: int) -> None:
    """Raise a RecloomError when the loss that training has come to by `step` is not finite."""
    if not bool(loss.isfinite()):
        raise RecloomError(
            f"the loss is no longer finite at step {step:,}: training has diverged",
            "Lower `model.optimizer.dense_lr` or `sparse_lr`, or use --trainer.gradient_clip_val.",
        )


def window_metrics(rows: Sequence[tuple[Tensor, Tensor, Tensor | None]]) -> dict[str, Tensor]:
    """Return loss, NE and AUC of some training batches, each its logits, labels and weights (or None).

    Raises:
        DataError: A label is not between 0 and 1.
    """
    logits = torch.cat([row[0] for row in rows]).float()
    labels = torch.cat([row[1] for row in rows])
    check_labels(labels)
    weights = None if rows[0][2] is None else torch.cat([row[2] for row in rows])  # type: ignore[misc]
    if weights is not None:
        weights = weights.view(-1, *[1] * (labels.ndim - 1)).expand_as(labels)
    total = torch.tensor(labels.numel(), dtype=torch.float64) if weights is None else weights.double().sum()
    loss = metrics.log_loss_sum(logits, labels, weights) / total
    mean = (labels.double() if weights is None else labels.double() * weights).sum() / total
    flat = None if weights is None else weights.reshape(-1)
    auc = metrics.auroc(logits.reshape(-1), labels.reshape(-1), flat)
    return {"train_loss": loss, "train_ne": loss / metrics.entropy(mean), "train_auc": auc}
