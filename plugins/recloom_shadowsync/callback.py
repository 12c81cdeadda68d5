"""What the strategies need of the training loop that no hook of a strategy tells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from recloom_shadowsync.strategy import ShadowSyncStrategy


class SyncCallback(Callback):
    """Stands first among the callbacks: brings the replicas together before others save what training ended with.

    Args:
        strategy: The strategy that synchronises.
    """

    def __init__(self, strategy: ShadowSyncStrategy) -> None:
        self.strategy = strategy
        self._logged = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the sync gap and the other figures of this rank."""
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.global_step % every == 0 and trainer.global_step != self._logged:
            self._logged = trainer.global_step
            for name, value in self.strategy.figures().items():
                pl_module.log(name, float(value), rank_zero_only=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for the other ranks' last steps, and make the agreed model every rank's weights."""
        self.strategy.finish()
        figures = self.strategy.stats()
        if "sync_gap" in figures:
            shown = ("sync_rounds", "sync_gap", "sync_staleness", "sync_round_ms", "sync_megabytes", "sync_cpu_share")
            text = ", ".join(f"{name} {figures[name]:.4g}" for name in shown)
            rank_zero_info(f"rank 0: {text}, example_parallelism {figures.get('example_parallelism', 0):,.0f}")
