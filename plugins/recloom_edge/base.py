"""The base of models of event streams: windows in order, memory that is replayed before evaluation, one evaluator."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from recloom import checkpoint
from recloom.data.streams.module import StreamDataModule
from recloom.data.streams.stream import EventStream
from recloom.data.streams.window import EventWindow, windows
from recloom.errors import DataError, RecloomError
from recloom.features import FeatureSchema
from recloom.optim import OptimizerConfig, build_optimizer, scheduled
from recloom.plugins import host
from recloom_edge.evaluate import Evaluation, Protocol

SHOWN = ("mrr", "recall", "ap")


class StreamModel(LightningModule, ABC):
    """Learns a stream window by window; gives every destination a score for each event, before the event.

    Logged: train_loss, events_per_second, and for val_ and test_: mrr, recall (of the first 10), ap, auc; with
    historical_ and inductive_ negatives; for events with new nodes (new_); and for popularity_ and recent_.

    Args:
        schema: The stream's schema, filled in from the data module.
        optimizer: Optimizers and learning rates.

    Attributes:
        replay_window: Events of a window when nothing is scored.
    """

    replay_window: int = 2000

    def __init__(self, schema: dict[str, Any] | None, optimizer: OptimizerConfig | None) -> None:
        super().__init__()
        columns = FeatureSchema.from_dict(schema)
        if [feature.name for feature in columns.sparse] != ["source", "destination"]:
            hint = "Use EventStreams or PowerLawEvents; `recloom prepare jodie` and `graph` write streams."
            raise DataError("the data are not an event stream", hint)
        source, destination = columns.sparse
        self.num_sources, self.num_destinations = source.num_embeddings, destination.num_embeddings
        self.offset = self.num_sources if source.table_name != destination.table_name else 0
        self.num_nodes = self.num_sources + self.num_destinations if self.offset else self.num_sources
        self.num_features = len(columns.dense)
        self.columns = columns
        self.optimizer_config = optimizer or OptimizerConfig("Adam", 0.001)
        self.ticks = 1
        self._evaluation: Evaluation | None = None
        self._kept: Any = None
        self._clock, self._events = 0.0, 0
        self._resumed_from: dict[str, Any] = {}

    # What a model defines

    def prepare(self, training: EventStream) -> None:
        """Look at the training events, once, before parameters are read from a checkpoint."""
        self.ticks = training.ticks

    @abstractmethod
    def reset(self) -> None:
        """Forget all events."""

    @abstractmethod
    def snapshot(self) -> Any:
        """Return a copy of what is remembered of events."""

    @abstractmethod
    def restore(self, snapshot: Any) -> None:
        """Remember what `snapshot` returned."""

    @abstractmethod
    def train_window(self, window: EventWindow) -> Tensor:
        """Return the loss of a window, the mean over its events, and go past it."""

    @abstractmethod
    def score(self, window: EventWindow) -> Tensor:
        """Return E x M scores of all destinations, each before its event; go past the window."""

    @abstractmethod
    def observe(self, window: EventWindow) -> None:
        """Go past a window without scores."""

    def replay(self, parts: Iterable[EventStream]) -> None:
        """Forget all events, and go past these: to the state that evaluation starts from."""
        self.reset()
        with torch.no_grad():
            for part in parts:
                for window in windows(part, self.replay_window):
                    self.observe(window.to(self.device))

    # Lightning's hooks

    @property
    def _data(self) -> StreamDataModule:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, StreamDataModule):
            raise RecloomError("the trainer has no data module of event streams", "Pass one: trainer.fit(model, data).")
        return data

    def setup(self, stage: str) -> None:
        """Look at the training events."""
        self.prepare(self._data.training_stream)

    def configure_optimizers(self) -> Any:
        """Return one optimizer over dense and sparse groups, with the learning-rate policy if there is one."""
        return scheduled(*build_optimizer(self, self.optimizer_config))

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step, then tell plugins."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        host().hook.on_parameters_updated(module=self, step=self.trainer.global_step)

    def on_save_checkpoint(self, checkpoint_: dict[str, Any]) -> None:
        """Keep the random state, and hyper-parameters as primitives."""
        checkpoint.add_extras(checkpoint_, self.trainer.world_size)

    def on_load_checkpoint(self, checkpoint_: dict[str, Any]) -> None:
        """Remember the random state, for when training goes on."""
        self._resumed_from = checkpoint_

    def on_train_start(self) -> None:
        """Restore the random state of a resumed run."""
        if self._resumed_from:
            checkpoint.restore_random_state(self._resumed_from)
            self._resumed_from = {}
        self._clock, self._events = time.perf_counter(), 0

    def training_step(self, batch: EventWindow, batch_idx: int) -> Tensor:
        """Return the loss of a window; the stream's first one starts from an empty memory."""
        if batch.start == 0:
            self.reset()
        loss = self.train_window(batch)
        self._events += len(batch)
        step, every = self.trainer.global_step + 1, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step % every == 0:
            now = time.perf_counter()
            self.log("train_loss", loss.detach(), prog_bar=True)
            self.log("events_per_second", self._events / max(now - self._clock, 1e-9))
            self._clock, self._events = now, 0
        return loss

    def _begin(self, split: str) -> None:
        data, stream = self._data, self._data.stream
        self._kept, self._clock_stopped = self.snapshot(), time.perf_counter()
        between = stream.slice(stream.span("train")[1], stream.span(split)[0])
        self.replay([data.training_stream, between])
        self._evaluation = Evaluation(stream, data.training_stream, split, Protocol())

    def on_validation_start(self) -> None:
        """Keep training's memory, and replay the training events with the weights of now."""
        self._begin("val")

    def on_test_start(self) -> None:
        """Replay all events before the test."""
        self._begin("test")

    def validation_step(self, batch: EventWindow, batch_idx: int) -> None:
        """Score a window and go past it."""
        assert self._evaluation is not None
        self._evaluation.add(batch, self.score(batch))

    def test_step(self, batch: EventWindow, batch_idx: int) -> None:
        """Score a window and go past it."""
        self.validation_step(batch, batch_idx)

    def _end(self, stage: str) -> None:
        assert self._evaluation is not None
        if self.trainer.sanity_checking:
            return
        for name, value in self._evaluation.compute().items():
            self.log(f"{stage}_{name}", value, prog_bar=name in SHOWN)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics."""
        self._end("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics."""
        self._end("test")

    def on_validation_end(self) -> None:
        """Go on with training's memory."""
        self.restore(self._kept)
        self._clock += time.perf_counter() - self._clock_stopped

    def on_test_end(self) -> None:
        """Go back to the memory of before."""
        self.restore(self._kept)
