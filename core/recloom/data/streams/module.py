"""Event streams as LightningDataModules: windows of events in order of time."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from recloom.data.streams.folder import load_stream
from recloom.data.streams.powerlaw import PowerLawStream
from recloom.data.streams.stream import EventStream
from recloom.data.streams.window import StreamLoader
from recloom.errors import DataError, RecloomError


class StreamDataModule(LightningDataModule):
    """Windows of an event stream in order of time; a subclass gives the stream.

    Args:
        window: Events of a training window: one gradient step.
        eval_window: Events of an evaluation window.
        unseen_share: Share of the nodes of validation and test whose events are left out of training, to make them new;
            0: new nodes are those that come up late.
        seed: Seed of that choice.
    """

    def __init__(self, window: int, eval_window: int, unseen_share: float, seed: int) -> None:
        super().__init__()
        if min(window, eval_window) < 1 or not 0 <= unseen_share < 1:
            raise RecloomError(f"windows of {window} and {eval_window} events, unseen_share {unseen_share}")
        self.window, self.eval_window, self.unseen_share, self.seed = window, eval_window, unseen_share, seed

    @property
    @abstractmethod
    def stream(self) -> EventStream:
        """All events."""

    @property
    def schema(self) -> dict[str, Any]:
        """The stream's FeatureSchema as a dict of primitives."""
        return self.stream.schema().to_dict()

    @cached_property
    def training_stream(self) -> EventStream:
        """The events of the training split, less those of nodes that are kept unseen."""
        stream = self.stream.slice(*self.stream.span("train"))
        if not self.unseen_share:
            return stream
        hidden = self._hidden()
        kept = ~(hidden[stream.source] | hidden[stream.destination + stream.node_offset])
        return stream.take(kept.nonzero().squeeze(1))

    def _hidden(self) -> Tensor:
        stream = self.stream
        start = stream.span("train")[1]
        later = torch.cat([stream.source[start:], stream.destination[start:] + stream.node_offset]).unique()
        drawn = torch.randperm(len(later), generator=torch.Generator().manual_seed(self.seed))
        mask = torch.zeros(stream.num_nodes, dtype=torch.bool)
        mask[later[drawn[: round(self.unseen_share * len(later))]].long()] = True
        return mask

    def train_dataloader(self) -> StreamLoader:
        """Return the training events in windows."""
        self._one_process()
        return self._loader(self.training_stream, self.window, 0, len(self.training_stream), "train")

    def val_dataloader(self) -> StreamLoader:
        """Return the validation events in windows."""
        return self._loader(self.stream, self.eval_window, *self.stream.span("val"), "val")

    def test_dataloader(self) -> StreamLoader:
        """Return the test events in windows."""
        self._one_process()
        return self._loader(self.stream, self.eval_window, *self.stream.span("test"), "test")

    def _loader(self, stream: EventStream, size: int, start: int, stop: int, split: str) -> StreamLoader:
        if stop <= start:
            hint = "Prepare it again with a --split that makes one."
            raise DataError(f"the stream has no {split!r} split", hint)
        return StreamLoader(stream, size, start, stop)

    def _one_process(self) -> None:
        if self.trainer is not None and self.trainer.world_size > 1:
            hint = "Train with --trainer.devices 1: a window needs the memory that the one before it left."
            raise RecloomError(f"a stream is learned in order, and there are {self.trainer.world_size} ranks", hint)


class EventStreams(StreamDataModule):
    """A stream that `recloom prepare jodie`, `graph` or `movielens_graph` wrote, mapped from its files.

    Args:
        path: Its folder.
        window: Events of a training window: one gradient step.
        eval_window: Events of an evaluation window.
        unseen_share: Share of the nodes of validation and test whose events are left out of training, to make them new;
            0: new nodes are those that come up late.
        seed: Seed of that choice.
        verify: Read everything once, and compare the files' sha256; look for what no stream may have: disorder,
            negative times, nodes out of range.
    """

    def __init__(
        self,
        path: Path | str,
        window: int = 1000,
        eval_window: int = 1000,
        unseen_share: float = 0.0,
        seed: int = 0,
        verify: bool = True,
    ) -> None:
        super().__init__(window, eval_window, unseen_share, seed)
        self.path = Path(path)
        self._stream = load_stream(self.path, verify)
        if verify:
            self._stream.check()

    @property
    def stream(self) -> EventStream:
        """All events."""
        return self._stream


class PowerLawEvents(StreamDataModule):
    """A generated stream with a power law of activity and a planted order; see `PowerLawStream`.

    Args:
        events: Number of events.
        sources: Number of sources.
        destinations: Number of destinations.
        source_exponent: Source i is drawn in proportion to (i + 1)^-source_exponent.
        destination_exponent: Destination j is drawn in proportion to (j + 1)^-destination_exponent.
        repeat: Probability that a source goes where it was last.
        follow: Probability that it goes to the successor of that.
        window: Events of a training window: one gradient step.
        eval_window: Events of an evaluation window.
        unseen_share: Share of the nodes of validation and test whose events are left out of training, to make them new;
            0: new nodes are those that come up late.
        seed: Seed of the stream and of that choice.
    """

    def __init__(
        self,
        events: int = 1_000_000,
        sources: int = 100_000,
        destinations: int = 20_000,
        source_exponent: float = 0.8,
        destination_exponent: float = 1.0,
        repeat: float = 0.3,
        follow: float = 0.4,
        window: int = 1000,
        eval_window: int = 1000,
        unseen_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(window, eval_window, unseen_share, seed)
        self.config = PowerLawStream(
            events,
            sources,
            destinations,
            source_exponent,
            destination_exponent,
            repeat,
            follow,
            seed=seed,
        )

    @cached_property
    def _stream(self) -> EventStream:
        return self.config.build()

    @property
    def stream(self) -> EventStream:
        """All events."""
        return self._stream
