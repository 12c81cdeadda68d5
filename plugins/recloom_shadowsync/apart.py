"""A strategy whose ranks go their own ways in training: what others do together, each does alone.

Where `world_size` is above 1, Lightning broadcasts a SIGTERM flag on every batch, on the run's group and past the
strategy; `sync_dist`, checkpoints, early stopping and metrics gather or wait. Between ranks that are not in step, all
of these would bring them back into step, or hang.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric

from recloom.strategy import RecloomStrategy


class ApartStrategy(RecloomStrategy):
    """Collectives that are local while `_apart`, and a `world_size` of 1 while `_training`.

    Args:
        process_group_backend: As in RecloomStrategy.
        timeout: As in RecloomStrategy.
    """

    def __init__(self, process_group_backend: str | None, timeout: timedelta) -> None:
        super().__init__(process_group_backend, timeout)
        self._apart = False
        self._training = False

    def keep_metrics_apart(self, module: pl.LightningModule) -> None:
        """Make torchmetrics, which look at torch.distributed by themselves, ask this strategy instead."""
        for metric in module.modules():
            if isinstance(metric, Metric):
                metric.distributed_available_fn = lambda: not self._apart and dist.is_initialized()

    @property
    def world_size(self) -> int:
        """1 while training: Lightning broadcasts on every batch among more, past any strategy."""
        return 1 if self._training else super().world_size

    @world_size.setter
    def world_size(self, value: int) -> None:
        raise AttributeError("the number of ranks is the environment's")

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the other ranks, outside of training."""
        if not self._apart:
            super().barrier(*args, **kwargs)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Return rank `src`'s object; in training this rank's own."""
        return obj if self._apart else super().broadcast(obj, src)

    def reduce(self, tensor: Tensor, group: Any = None, reduce_op: Any = "mean") -> Tensor:
        """Reduce over ranks, outside of training."""
        return tensor if self._apart else super().reduce(tensor, group, reduce_op)

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """Gather over ranks; in training this rank's tensor is all there is."""
        return tensor[None] if self._apart else super().all_gather(tensor, group, sync_grads)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Decide together, outside of training."""
        return decision if self._apart else super().reduce_boolean_decision(decision, all)

    @contextmanager
    def block_backward_sync(self) -> Generator[None, None, None]:
        """Give a context in which gradients are not synchronised: they never are."""
        yield
