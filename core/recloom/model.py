"""The LightningModule of ranking models."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from recloom import checkpoint, sharded_checkpoint
from recloom.batch import Batch
from recloom.evaluation import EvaluationMetrics, check_loss, window_metrics
from recloom.features import FeatureSchema
from recloom.interaction import Interaction, InteractionFactory
from recloom.nodes import refuse_leaks
from recloom.optim import OptimizerConfig, build_optimizer, clip_dense_norm, is_row_parameter, scheduled
from recloom.plugins import host
from recloom.sequence import AuxiliaryLoss, histories_of, take_auxiliary_losses
from recloom.strategy import prepare_for_ddp

__all__ = ["Interaction", "InteractionFactory", "RankingModule"]


class RankingModule(LightningModule, ABC):
    """A model that gives each sample a logit a task: loss, metrics, optimizer and hooks are here, `forward` is yours.

    `forward(dense, values, offsets, weights)` takes tensors, so that it can be exported: B x (dense features), the
    N key-major ids of a KeyedJaggedTensor, its F*B+1 bag offsets (None for one-hot data) and N value weights (or
    None); it returns B logits, or B x T. A model with `uses_histories` gets a fifth argument, the padded histories
    (`recloom.sequence.Histories`). A model that needs more of the batch overrides `logits`.

    Logged: train_ne, train_auc, train_loss, samples_per_second over each `log_every_n_steps` batches; val_ and test_
    ne, auc, logloss, calibration over all rows, gauc when the data have groups, oracle_ne when their true
    probabilities are known.

    Args:
        schema: `FeatureSchema.to_dict()` of the data; the command line fills it in from the data module.
        optimizer: Optimizers, learning rates and their policy.
    """

    uses_histories: bool = False
    """Whether `forward` takes histories; set by the subclass, or by its constructor."""

    export_tolerance: float = 1e-5
    """By how much an exported program's outputs may differ. A model that rounds inside allows one rounding more."""

    def __init__(self, schema: dict[str, Any] | None = None, optimizer: OptimizerConfig | None = None) -> None:
        super().__init__()
        self.schema = FeatureSchema.from_dict(schema)
        self.optimizer_config = optimizer or OptimizerConfig()
        self._configured = False
        self._window: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._window_start = 0.0
        self._validation_start = 0.0
        self._updates = 0
        self._logged_step = 0
        self._listens = False
        self._auxiliary: list[AuxiliaryLoss] | None = None
        self._resumed_from: dict[str, Any] = {}
        self.evaluation = nn.ModuleDict({stage: EvaluationMetrics() for stage in ("val", "test")})
        self.save_hyperparameters()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set plain attributes without torch's search for parameters: Lightning sets some forty a step."""
        if name in self.__dict__ and not isinstance(value, Tensor | nn.Module):
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    # What a model defines

    @abstractmethod
    def forward(
        self, dense: Tensor, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Return B logits, or B x T for T tasks."""

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits of a batch: calls `forward` with its tensors."""
        sparse = batch.sparse_features
        inputs = (batch.dense_features, sparse.values, sparse.bag_offsets, sparse.weights)
        return self(*inputs, histories_of(batch)) if self.uses_histories else self(*inputs)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy (weighted, where the batch has weights); fp32 under any precision."""
        if batch.weights is None:
            return F.binary_cross_entropy_with_logits(logits.float(), batch.labels)
        weights = batch.weights.view(-1, *[1] * (logits.ndim - 1)).expand_as(logits)
        total = F.binary_cross_entropy_with_logits(logits.float(), batch.labels, weights, reduction="sum")
        return total / weights.sum()

    def objective(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits of a batch and what training makes small: by default `loss`.

        A model with further terms overrides this, and not `training_step`; `training_loss` adds its parts' losses.
        """
        logits = self.logits(batch)
        return logits, self.loss(logits, batch)

    def training_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits of a batch and the whole loss of a step: `objective` and the losses of the parts."""
        if self._auxiliary is None:
            self._auxiliary = [module for module in self.modules() if isinstance(module, AuxiliaryLoss)]
        logits, loss = self.objective(batch)
        return logits, loss + sum(take_auxiliary_losses(self._auxiliary)) if self._auxiliary else loss

    def on_export(self) -> None:
        """Leave out what serving does not need (noise that evaluation simulates); by default nothing."""

    # Lightning's hooks

    def configure_model(self) -> None:
        """Let plugins wrap layers, once; then tell DistributedDataParallel which tensors are not its own."""
        if not self._configured:
            self._configured = True
            host().hook.configure_module(module=self)
            prepare_for_ddp(self)

    def configure_optimizers(self) -> Any:
        """Return one optimizer over dense and sparse groups, with the learning-rate policy if there is one."""
        return scheduled(*build_optimizer(self, self.optimizer_config))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of dense parameters only (`--trainer.gradient_clip_val`); a table's rows keep theirs."""
        if not gradient_clip_val:
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_([p for p in parameters if not is_row_parameter(p)], gradient_clip_val)
        else:
            clip_dense_norm(parameters, gradient_clip_val)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, then tell plugins."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self._listens:
            self._updates += 1
            host().hook.on_parameters_updated(module=self, step=self._updates)

    def on_fit_start(self) -> None:
        """Count optimizer steps from where a checkpoint left them; refuse node vectors that know the future."""
        refuse_leaks(self, getattr(self.trainer, "datamodule", None))
        self._updates = self.trainer.global_step
        self._listens = bool(host().hook.on_parameters_updated.get_hookimpls())
        self._auxiliary = None  # parts may have been wrapped or replaced since the last fit

    def on_save_checkpoint(self, checkpoint_: dict[str, Any]) -> None:
        """Keep the random state, and hyper-parameters as primitives (checkpoints are read with weights_only)."""
        try:
            ranks = self.trainer.world_size
        except RuntimeError:  # saved without a trainer, as converted weights are
            ranks = 1
        checkpoint.add_extras(checkpoint_, ranks)

    def on_load_checkpoint(self, checkpoint_: dict[str, Any]) -> None:
        """Fill in what a sharded run keeps beside the file; remember the random state, for when training goes on."""
        if sharded_checkpoint.KEY in checkpoint_:
            assert self.trainer.ckpt_path is not None
            sharded_checkpoint.complete(checkpoint_, self.trainer.ckpt_path)
        self._resumed_from = checkpoint_

    # Steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of `training_loss`; logits and labels are kept for the window's metrics."""
        logits, loss = self.training_loss(batch)
        self._window.append((logits.detach(), batch.labels, batch.weights))
        return loss

    def on_train_start(self) -> None:
        """Restore the random state of a resumed run, after everything that draws at start-up; start a window."""
        if self._resumed_from:
            checkpoint.restore_random_state(self._resumed_from)
            self._resumed_from = {}
        self._window, self._window_start = [], time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the metrics of the batches since the last multiple of `log_every_n_steps` optimizer steps."""
        step, every = self.trainer.global_step, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step % every == 0 and step != self._logged_step:
            self._logged_step = step
            self._log_window()

    def on_validation_start(self) -> None:
        """Note when validation inside a fit begins: its time is not training's."""
        self._validation_start = time.perf_counter()

    def on_validation_end(self) -> None:
        """Leave the validation's time out of the window's."""
        self._window_start += time.perf_counter() - self._validation_start

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        self.evaluated("val").add(self.logits(batch), batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the test metrics."""
        self.evaluated("test").add(self.logits(batch), batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the probabilities, and the labels that the batch came with."""
        return {"probability": torch.sigmoid(self.logits(batch).float()), "label": batch.labels}

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_evaluation("test")

    def reliability(self, stage: str) -> Tensor:
        """Return the calibration curve of the last evaluation ("val" or "test"): bins x (prediction, label, rows)."""
        return self.evaluated(stage).curve

    def evaluated(self, stage: str) -> EvaluationMetrics:
        """Return the metrics of the evaluation under way ("val" or "test"), for models with their own steps of it."""
        return cast(EvaluationMetrics, self.evaluation[stage])

    def _log_evaluation(self, stage: str) -> None:
        for name, value in self.evaluated(stage).finish().items():
            self.log(f"{stage}_{name}", value.float(), prog_bar=name in ("ne", "auc"), sync_dist=False)

    def _log_window(self) -> None:
        seconds = max(time.perf_counter() - self._window_start, 1e-9)
        values = window_metrics(self._window)
        if not self.trainer.should_stop:  # a search that stops for it has seen it already
            check_loss(values["train_loss"], self.trainer.global_step)
        values["samples_per_second"] = torch.tensor(sum(len(logits) for logits, *_ in self._window) / seconds)
        for name, value in values.items():
            self.log(name, value.float(), prog_bar=name != "train_loss")
        self._window, self._window_start = [], time.perf_counter()
