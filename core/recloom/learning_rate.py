"""The learning-rate policy of OptimizerConfig: warm-up, hold, quadratic decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from recloom.errors import RecloomError

if TYPE_CHECKING:
    from recloom.optim import OptimizerConfig

LR_FLOOR = 1e-7


def lr_policy(config: OptimizerConfig, lr: float) -> Callable[[int], float]:
    """Return the factor on a learning rate `lr` as a function of the number of steps done; see OptimizerConfig."""
    warmup, decay = config.warmup_steps, config.decay_steps
    start = config.decay_start or warmup
    if start < warmup:
        raise RecloomError(
            f"decay_start {start} is before the end of the warm-up, step {warmup}",
            "Set decay_start to warmup_steps or more.",
        )

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if not decay or step < start:
            return 1.0
        left = max(0, decay - (step - start)) / decay
        return max(left**2, LR_FLOOR / lr if lr else 0.0)

    return factor


def scheduled(optimizer: torch.optim.Optimizer, policy: list[Callable[[int], float]] | None) -> Any:
    """Return what `LightningModule.configure_optimizers` is to return, for a policy of the learning rate or none."""
    if policy is None:
        return optimizer
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, policy)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
