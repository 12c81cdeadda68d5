"""A model of sets of points: an encoder of points, then a head on their distribution, trained together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom.errors import DataError, RecloomError
from recloom.features import FeatureSchema
from recloom_distkernels.group_data import GroupBatch
from recloom_distkernels.layers import DivergenceLayer, MMDLayer

Head = Literal["mean_embedding", "gram"]


class GroupModel(pl.LightningModule):
    """Encodes points, and predicts a set's label from the distribution of their codes.

    Head "mean_embedding": a linear model on the mean of the codes' random Fourier features; linear in the number of
    points. Head "gram": a kernel machine, sum_j w_j exp(-D(x, z_j)² / 2σ²), on the Gram matrix of a batch with
    `landmarks` sets z_j, which are learned, as are σ and, through the differentiable divergence D, the encoder.

    Logged: train_loss; val_ and test_ loss, ne (cross-entropy over the entropy of the labels' shares, or squared error
    over the labels' variance), and accuracy with classes.

    Args:
        schema: Feature schema of the data, filled in from the data module: a dense feature for each coordinate.
        classes: Number of classes; 1: the label is a number.
        encoder: Widths of the encoder's layers; empty: the points as they are.
        head: "mean_embedding" or "gram".
        features: Width of the mean embedding.
        bandwidth: Bandwidth on codes at the start, of the mean embedding or of MMD, for codes of unit variance.
        divergence: Divergence of head "gram": "mmd", or a k-NN divergence such as "kl", "renyi:0.8", "hellinger".
        k: The neighbour of k-NN divergences.
        landmarks: Number of landmarks of head "gram".
        landmark_points: Points of a landmark.
        lr: Learning rate of Adam.
    """

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        classes: int = 2,
        encoder: Sequence[int] = (32, 8),
        head: Head = "mean_embedding",
        features: int = 256,
        bandwidth: float = 1.0,
        divergence: str = "mmd",
        k: int = 3,
        landmarks: int = 16,
        landmark_points: int = 16,
        lr: float = 0.01,
    ) -> None:
        super().__init__()
        dim = len(FeatureSchema.from_dict(schema).dense)
        if dim < 1:
            raise RecloomError(
                "the data have no dense features: there are no coordinates", "Use data of sets of points."
            )
        if classes < 1 or head not in ("mean_embedding", "gram"):
            raise RecloomError(f"{classes} classes, head {head!r}", "Heads are mean_embedding and gram.")
        self.save_hyperparameters()
        self.classes, self.lr = classes, lr
        self.normalize = nn.BatchNorm1d(dim, affine=False)
        widths = [dim, *encoder]
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise(widths):
            layers += [nn.Linear(inner, outer), nn.ReLU()]
        self.encoder = nn.Sequential(*layers[:-1], *([nn.BatchNorm1d(widths[-1], affine=False)] if layers else []))
        width = widths[-1]
        self.head: MeanEmbeddingHead | KernelHead
        if head == "gram":
            self.head = KernelHead(width, classes, divergence, k, landmarks, landmark_points, bandwidth)
        else:
            self.head = MeanEmbeddingHead(width, classes, features, bandwidth)
        self._label_mean: Tensor
        self._label_scale: Tensor
        self.register_buffer("_label_mean", torch.zeros(()))
        self.register_buffer("_label_scale", torch.ones(()))
        self._seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Return B x classes logits, or B x 1 numbers, of N x d points and B sizes."""
        return self.head(self.encoder(self.normalize(values)), lengths)

    def predict(self, batch: GroupBatch) -> Tensor:
        """Return B x classes logits, or B numbers."""
        found = self(batch.values, batch.lengths)
        return found if self.classes > 1 else self._label_mean + self._label_scale * found.squeeze(1)

    def on_fit_start(self) -> None:
        """Take the scale of a numeric label from the training sets."""
        data = getattr(self.trainer, "datamodule", None)
        if self.classes == 1 and data is not None:
            labels = torch.cat([batch.labels for batch in data.train_dataloader()])
            self._label_mean.fill_(labels.mean())
            self._label_scale.fill_(labels.std().clamp(min=1e-12))

    def training_step(self, batch: GroupBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = self._loss(self.predict(batch), batch.labels)
        self.log("train_loss", loss, batch_size=len(batch))
        return loss

    def validation_step(self, batch: GroupBatch, batch_idx: int) -> None:
        """Keep what is predicted."""
        self._seen.append((self.predict(batch).detach(), batch.labels))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all validation sets."""
        self._log_metrics("val")

    def test_step(self, batch: GroupBatch, batch_idx: int) -> None:
        """Keep what is predicted."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log the metrics of all test sets."""
        self._log_metrics("test")

    def predict_step(self, batch: GroupBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return predictions and labels, columns of predictions.parquet."""
        return {"prediction": self.predict(batch), "label": batch.labels}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def _loss(self, found: Tensor, labels: Tensor) -> Tensor:
        if self.classes == 1:
            return F.mse_loss(found, labels) / self._label_scale.square()
        codes = labels.long()
        if bool((codes < 0).any() | (codes >= self.classes).any()):
            raise DataError(
                f"a label is {int(codes.min())} or {int(codes.max())}, and there are {self.classes} classes",
                "Set --model.classes; labels are 0, 1, ..., or any number with classes 1.",
            )
        return F.cross_entropy(found, codes)

    def _log_metrics(self, stage: str) -> None:
        found, labels = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen = []
        loss = self._loss(found, labels)
        values = {"loss": loss}
        if self.classes == 1:
            values["ne"] = F.mse_loss(found, labels) / labels.var(correction=0).clamp(min=1e-12)
        else:
            shares = torch.bincount(labels.long(), minlength=self.classes) / len(labels)
            values["ne"] = loss / torch.special.entr(shares).sum().clamp(min=1e-12)
            values["accuracy"] = (found.argmax(dim=1) == labels).float().mean()
        self.log_dict({f"{stage}_{name}": value for name, value in values.items()})


class MeanEmbeddingHead(nn.Module):
    """A linear model on random Fourier mean embeddings.

    Args:
        width: Width of the codes.
        classes: Width of the output.
        features: Width of the embedding; even.
        bandwidth: RBF bandwidth on codes at the start; learned.
    """

    def __init__(self, width: int, classes: int, features: int, bandwidth: float) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.randn(width, features // 2))
        self.log_sigma = nn.Parameter(torch.full((width,), math.log(bandwidth)))
        self.linear = nn.Linear(features // 2 * 2, classes)

    def forward(self, codes: Tensor, lengths: Tensor) -> Tensor:
        """Map N x width codes and B sizes to B x classes."""
        angles = (codes * torch.exp(-self.log_sigma)) @ self.frequencies
        sets = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        sums = waves.new_zeros(len(lengths), waves.shape[1]).index_add(0, sets, waves)
        return self.linear(sums / lengths[:, None])


class KernelHead(nn.Module):
    """A kernel machine on the divergences of sets from learned landmarks.

    Args:
        width: Width of the codes.
        classes: Width of the output.
        divergence: "mmd", or a k-NN divergence.
        k: The neighbour.
        landmarks: Number of landmarks.
        points: Points of a landmark.
        bandwidth: RBF bandwidth on codes of MMD at the start.
    """

    def __init__(
        self, width: int, classes: int, divergence: str, k: int, landmarks: int, points: int, bandwidth: float
    ) -> None:
        super().__init__()
        centres = torch.randn(landmarks, 1, width)
        self.landmarks = nn.Parameter((centres + 0.7 * torch.randn(landmarks, points, width)).flatten(0, 1))
        self.sizes: Tensor
        self.register_buffer("sizes", torch.full((landmarks,), points))
        self.squares = divergence == "mmd"  # MMDLayer gives squares
        self.divergence = MMDLayer(bandwidth) if self.squares else DivergenceLayer(divergence, k)
        self.log_sigma = nn.Parameter(torch.tensor(-1.0 if self.squares else 0.0))
        self.linear = nn.Linear(landmarks, classes)

    def forward(self, codes: Tensor, lengths: Tensor) -> Tensor:
        """Map N x width codes and B sizes to B x classes."""
        found = self.divergence(codes, lengths, self.landmarks, self.sizes).to(codes.dtype)  # B x landmarks
        squared = found if self.squares else found.square()
        return self.linear(torch.exp(-squared / (2 * torch.exp(2 * self.log_sigma))))
