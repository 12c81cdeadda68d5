"""What a model remembers of each node between windows: its state, when it was last seen, where it was lately."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recloom.data.streams.window import EventWindow
from recloom.optim import OptimizerConfig
from recloom_edge import kernels
from recloom_edge.base import StreamModel
from recloom_edge.neighbours import RecentNeighbours


@dataclass(frozen=True)
class Past:
    """What is known of the nodes of a window's events before each of them.

    Args:
        gaps: E x 2 ticks since the last event of source and destination; -1: it is the first.
        recent: E x K last distinct destinations of the source, newest first; -1: none.
        ages: E x K ticks since then; -1: none.
    """

    gaps: Tensor
    recent: Tensor
    ages: Tensor


class Memory(nn.Module):
    """States, times and recent destinations of all nodes, as buffers: a checkpoint in mid-stream has them.

    Args:
        num_nodes: Number of nodes.
        offset: What brings a destination's number to its node.
        width: Width of a state.
        recent: Recent destinations kept of every source.
    """

    def __init__(self, num_nodes: int, offset: int, width: int, recent: int) -> None:
        super().__init__()
        self.offset = offset
        self.states: Tensor
        self.time: Tensor
        self.recent: Tensor
        self.when: Tensor
        sources = offset or num_nodes
        self.register_buffer("states", torch.zeros(num_nodes, width))
        self.register_buffer("time", torch.full((num_nodes,), -1, dtype=torch.int64))
        self.register_buffer("recent", torch.full((sources, recent), -1, dtype=torch.int32))
        self.register_buffer("when", torch.full((sources, recent), -1, dtype=torch.int64))
        self.slot = torch.full((num_nodes,), -1, dtype=torch.int32)  # scratch of plans

    def clear(self) -> None:
        """Forget everything."""
        self.states.zero_()
        for buffer in (self.time, self.recent, self.when):
            buffer.fill_(-1)

    def pass_by(self, window: EventWindow) -> Past:
        """Return what is known before each event, and take the window's events over into it."""
        on_cpu = [buffer.cpu() for buffer in (self.time, self.recent, self.when)]
        time, recent, when = on_cpu
        columns = (window.source.cpu(), window.destination.cpu(), window.time.cpu())
        found = kernels.history(*columns, self.offset, time, recent, when)
        if self.time.device.type != "cpu":
            for buffer, changed in zip((self.time, self.recent, self.when), on_cpu, strict=True):
                buffer.copy_(changed)
        return Past(*(tensor.to(self.time.device) for tensor in found))

    def plan(self, window: EventWindow, cut: Tensor | None = None, given: Tensor | None = None) -> kernels.Plan:
        """Return the plan of a window; see kernels.plan."""
        return kernels.plan(window.source.cpu(), window.destination.cpu(), self.offset, cut, self.slot, given)


class MemoryModel(StreamModel):
    """A model of streams that remembers what `Memory` holds and, if it has `near`, each node's newest events."""

    memory: Memory

    def __init__(self, schema: dict[str, Any] | None, optimizer: OptimizerConfig | None) -> None:
        super().__init__(schema, optimizer)
        self.near: RecentNeighbours | None = None

    def reset(self) -> None:
        """Forget all events."""
        self.memory.clear()
        if self.near is not None:
            self.near.clear()

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of what is remembered."""
        return {name: buffer.clone() for name, buffer in self._remembered().items()}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Remember what `snapshot` returned."""
        for name, buffer in self._remembered().items():
            buffer.copy_(snapshot[name])

    def _remembered(self) -> dict[str, Tensor]:
        near = {} if self.near is None else {f"near.{name}": buffer for name, buffer in self.near.named_buffers()}
        return dict(self.memory.named_buffers()) | near
