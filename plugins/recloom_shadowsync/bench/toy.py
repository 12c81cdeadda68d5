"""A model of any size whose compute can be virtual: a sleep, which stands for an accelerator where cores are short."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset


class Batches(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches of a linear problem, `count` of them.

    Args:
        count: Number of batches.
        seed: Seed; a rank's own.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.count):
            x = torch.randn(16, 8, generator=generator)
            yield x, x.sum(1)


def batches(count: int, seed: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return a loader of `count` batches."""
    return DataLoader(Batches(count, seed), batch_size=None)


class ToyModel(pl.LightningModule):
    """A linear model beside ballast that takes gradients, too: P weights in all, and a sleep a step.

    Args:
        weights: P, about.
        seconds: Sleep of a step.
    """

    def __init__(self, weights: int = 1000, seconds: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)
        self.ballast = nn.Parameter(torch.zeros(max(1, weights - 9)))
        self.seconds = seconds

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Sleep, and return the loss."""
        if self.seconds:
            time.sleep(self.seconds)
        return self._loss(batch) + 1e-3 * self.ballast.sum() * batch[0][0, 0]

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss."""
        self.log("val_loss", self._loss(batch), sync_dist=True)

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.layer(batch[0]).squeeze(1), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), 0.01)


class StepTimes(Callback):
    """Notes when each step ended: `times`, in seconds of the machine's clock.

    Args:
        last: After so many steps the process kills itself; 0: it does not.
    """

    def __init__(self, last: int = 0) -> None:
        self.times: list[float] = []
        self.last = last

    def on_train_batch_end(self, *_: object) -> None:
        """Note the time; die if that is due."""
        self.times.append(time.monotonic())
        if len(self.times) == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
