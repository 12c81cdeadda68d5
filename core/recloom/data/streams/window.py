"""Windows of events, in order of time, and the loader that hands them out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from recloom.data.streams.stream import EventStream
from recloom.errors import RecloomError


@dataclass
class EventWindow:
    """E events that follow one another.

    Args:
        start: Position of the first one in the loader's stream.
        source: E sources, int32.
        destination: E destinations, int32.
        time: E times in ticks, int64.
        label: E state labels, or None.
        features: E x F features, or None.
    """

    start: int
    source: Tensor
    destination: Tensor
    time: Tensor
    label: Tensor | None = None
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.source)

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """Return a copy on `device`."""
        label, features = (
            tensor if tensor is None else tensor.to(device, non_blocking=non_blocking)
            for tensor in (self.label, self.features)
        )
        source, destination, time = (
            tensor.to(device, non_blocking=non_blocking) for tensor in (self.source, self.destination, self.time)
        )
        return type(self)(self.start, source, destination, time, label, features)


def window_of(stream: EventStream, start: int, stop: int) -> EventWindow:
    """Return the events from `start` to before `stop`; copies, when the stream is mapped."""
    rows = slice(start, stop)
    return EventWindow(
        start,
        stream.source[rows].contiguous(),
        stream.destination[rows].contiguous(),
        stream.time[rows].contiguous(),
        None if stream.label is None else stream.label[rows],
        None if stream.features is None else stream.features[rows],
    )


def windows(stream: EventStream, size: int, start: int = 0, stop: int | None = None) -> Iterator[EventWindow]:
    """Yield the events from `start` to before `stop` in windows of `size`, the last one as it comes."""
    stop = len(stream) if stop is None else stop
    for begin in range(start, stop, size):
        yield window_of(stream, begin, min(begin + size, stop))


class StreamLoader:
    """The windows of a span of a stream, in order; its position goes into checkpoints.

    Args:
        stream: The stream.
        size: Events of a window.
        start: Position of the first event.
        stop: Position after the last event.
    """

    def __init__(self, stream: EventStream, size: int, start: int, stop: int) -> None:
        self.stream, self.size, self.start, self.stop = stream, size, start, stop
        self._done, self._resumed = 0, 0

    def __len__(self) -> int:
        return -(-(self.stop - self.start) // self.size)

    def __iter__(self) -> Iterator[EventWindow]:
        first, self._resumed = self._resumed % max(len(self), 1), 0
        for index in range(first, len(self)):
            begin = self.start + index * self.size
            self._done = index + 1
            yield window_of(self.stream, begin, min(begin + self.size, self.stop))

    def state_dict(self) -> dict[str, int]:
        """Return how many windows were handed out, and of what size."""
        return {"done": self._done, "size": self.size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next iteration go on where `state` was taken."""
        if state["size"] != self.size:
            raise RecloomError(
                f"windows have {self.size:,} events now and had {state['size']:,} in the checkpoint",
                "Go on with the same window: a model's memory belongs to a position of the stream.",
            )
        self._resumed = state["done"]
