"""Any ranking model on crossbars: as a model of its own, or by a callback of the trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from recloom.batch import Batch
from recloom.errors import RecloomError
from recloom.model import RankingModule
from recloom.optim import OptimizerConfig
from recloom.plugins import catalog
from recloom.sequence import Histories
from recloom_pim.crossbars import Crossbars
from recloom_pim.layers import Board
from recloom_pim.quantise import Device

ModelFactory = Callable[[dict[str, Any] | None], RankingModule]


class OnCrossbars(RankingModule):
    """A ranking model whose linear layers are on crossbars, from the first training step.

    Training sees a new chip in every product; validation, test and prediction divide a batch's rows over
    `device.draws` chips, so that metrics are those that are expected of a chip. Exported models are quantised, and have
    no noise.

    Args:
        schema: Feature schema of the data; filled in from the data module.
        model: The model: DLRM, NASRecNet, or any other RankingModule; unset: DLRM.
        crossbars: The crossbars, and the bits of its layers.
        device: Imperfections of cells and converters.
        exact_steps: Optimizer steps at the start in full precision, before crossbars take over.
        optimizer: Optimizers and learning rates; unset: the model's own.
    """

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        model: ModelFactory | None = None,
        crossbars: Crossbars | None = None,
        device: Device | None = None,
        exact_steps: int = 0,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(schema, optimizer)
        factory: ModelFactory = model or catalog().models.load("DLRM")
        self.model = factory(schema)
        kind = type(self.model)
        own = [name for name in ("logits", "objective") if getattr(kind, name) is not getattr(RankingModule, name)]
        if own:
            raise RecloomError(
                f"OnCrossbars: {kind.__name__} has its own {' and '.join(own)}, which this would leave out",
                "Train it as it is, with the callback recloom_pim.model.PIMNoise.",
            )
        self.uses_histories = self.model.uses_histories
        if optimizer is None:
            self.optimizer_config = self.model.optimizer_config
        self.exact_steps = exact_steps
        crossbars = crossbars or Crossbars()
        self.pim = Board(crossbars, device or Device(), "model.")
        fewest = min([crossbars.activation_bits, *(bits for _, bits in crossbars.bits.values())])
        self.export_tolerance = 2.0**-fewest  # an activation halfway between two levels may be rounded otherwise

    def forward(
        self,
        dense: Tensor,
        values: Tensor,
        offsets: Tensor | None = None,
        weights: Tensor | None = None,
        histories: Histories | None = None,
    ) -> Tensor:
        """Return the model's logits; see DLRM for the arguments."""
        inputs = (dense, values, offsets, weights)
        found: Tensor = self.model(*inputs, histories) if self.uses_histories else self.model(*inputs)
        return found

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Leave the first steps to full precision."""
        self.pim.exact_training = self.trainer.global_step < self.exact_steps

    def on_export(self) -> None:
        """Leave out the noise."""
        self.pim.device = None

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the model's loss."""
        return self.model.loss(logits, batch)


class PIMNoise(Callback):
    """Puts the linear layers of the model that is trained on crossbars: what OnCrossbars does, for a config as it is.

    In YAML: trainer: {callbacks: [{class_path: PIMNoise}]}.

    Args:
        crossbars: The crossbars, and the bits of the layers; unset: ISAAC's, 8 bits.
        device: Imperfections of cells and converters.
        exact_steps: Optimizer steps at the start in full precision, before crossbars take over.
    """

    def __init__(self, crossbars: Crossbars | None = None, device: Device | None = None, exact_steps: int = 0) -> None:
        self.board = Board(crossbars or Crossbars(), device or Device())
        self.exact_steps = exact_steps

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Tell the module, before it lets plugins wrap its layers."""
        pl_module.pim = self.board  # type: ignore[assignment]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Leave the first steps to full precision."""
        self.board.exact_training = trainer.global_step < self.exact_steps
