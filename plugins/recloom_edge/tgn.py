"""TGN (Rossi et al. 2020, arXiv 2006.10637): memory, last messages, attention over recent neighbours, through DGL."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom.data.streams.window import EventWindow
from recloom.optim import OptimizerConfig
from recloom_edge.attention import NeighbourAttention, TimeEncoding, neighbour_graph
from recloom_edge.base import StreamModel


class TGN(StreamModel):
    """TGN-attn: a GRU memory updated by each node's last message, one layer of attention over recent neighbours.

    Windows are TGN's batches (200 in the paper): all events of one read the memory of its start, and leave messages
    that the next one begins with; of several messages of a node the last counts. Trained on each event and one uniform
    negative. All destinations are ranked with embeddings at the time of the window's first event.

    Args:
        schema: The stream's schema, filled in from the data module.
        optimizer: Optimizers and learning rates.
        dim: Width of memories, messages' time encodings and embeddings.
        neighbours: Recent neighbours that attention sees.
        heads: Heads of attention.
        dropout: Dropout of the embeddings.
    """

    replay_window = 200

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        optimizer: OptimizerConfig | None = None,
        dim: int = 100,
        neighbours: int = 10,
        heads: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(schema, optimizer)
        self.save_hyperparameters()
        self.dim, self.neighbours = dim, neighbours
        self.time_encoding = TimeEncoding(dim)
        self.update = nn.GRUCell(3 * dim + self.num_features, dim)
        self.attention = NeighbourAttention(dim, dim, self.num_features, heads)
        self.dropout = nn.Dropout(dropout)
        self.first, self.second = nn.Linear(2 * dim, dim), nn.Linear(dim, 1)
        # memory; the last message of each node (its other end, time, features); recent neighbours, newest first
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype, int]] = {
            "states": ((dim,), torch.float32, 0),
            "updated": ((), torch.int64, 0),
            "told_by": ((), torch.int64, -1),
            "told_at": ((), torch.int64, 0),
            "told": ((self.num_features,), torch.float32, 0),
            "near": ((neighbours,), torch.int64, -1),
            "near_at": ((neighbours,), torch.int64, 0),
            "near_told": ((neighbours, self.num_features), torch.float32, 0),
        }
        self.states: Tensor
        self.updated: Tensor
        self.told_by: Tensor
        self.told_at: Tensor
        self.told: Tensor
        self.near: Tensor
        self.near_at: Tensor
        self.near_told: Tensor
        self._empty = {name: value for name, (_, _, value) in shapes.items()}
        for name, (shape, kind, value) in shapes.items():
            self.register_buffer(name, torch.full((self.num_nodes, *shape), value, dtype=kind))

    def reset(self) -> None:
        """Forget all events."""
        for name, value in self._empty.items():
            getattr(self, name).fill_(value)

    def snapshot(self) -> Any:
        """Return a copy of the memory."""
        return {name: getattr(self, name).clone() for name in self._empty}

    def restore(self, snapshot: Any) -> None:
        """Remember what `snapshot` returned."""
        for name, value in snapshot.items():
            getattr(self, name).copy_(value)

    # Memory

    def _memory(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the memories of nodes with their waiting messages taken in, and when these were left."""
        states, waiting = self.states[nodes], self.told_by[nodes] >= 0
        if not bool(waiting.any()):
            return states, self.updated[nodes]
        there = nodes[waiting]
        passed = (self.told_at[there] - self.updated[there]).double() / self.ticks
        message = torch.cat(
            [states[waiting], self.states[self.told_by[there]], self.time_encoding(passed), self.told[there]], dim=1
        )
        rows = waiting.nonzero().squeeze(1)
        states = states.index_copy(0, rows, self.update(message, states[waiting]))
        return states, torch.where(waiting, self.told_at[nodes], self.updated[nodes])

    @torch.no_grad()
    def _leave(self, window: EventWindow) -> None:
        """Take in the waiting messages of the window's nodes, leave its events as messages and as neighbours."""
        ends = torch.stack([window.source.long(), window.destination.long() + self.offset], dim=1)
        nodes = ends.unique()
        states, updated = self._memory(nodes)
        self.states[nodes], self.updated[nodes] = states, updated
        node, other = ends.flatten(), ends.flip(1).flatten()
        time = window.time.repeat_interleave(2)
        told = self.told.new_zeros(len(window), 0) if window.features is None else window.features
        features = told.repeat_interleave(2, 0)
        order = node.argsort(stable=True)
        node, other, time, features = node[order], other[order], time[order], features[order]
        counts = torch.unique_consecutive(node, return_counts=True)[1]
        last = counts.cumsum(0) - 1
        self.told_by[nodes], self.told_at[nodes], self.told[nodes] = other[last], time[last], features[last]
        # place of an event among its node's, newest first; the newest K of them and then the old ones
        place = last.repeat_interleave(counts) - torch.arange(len(node), device=node.device)
        width, fresh = self.neighbours, counts.clamp(max=self.neighbours)
        column = torch.arange(width, device=node.device).expand(len(nodes), width)
        moved = (column - fresh[:, None]).clamp(min=0)
        rows = torch.arange(len(nodes), device=node.device).repeat_interleave(counts)
        kept = place < width
        for name, values in (("near", other), ("near_at", time), ("near_told", features)):
            table = getattr(self, name)
            index = moved if table.ndim == 2 else moved[..., None].expand(-1, -1, table.shape[2])
            new = table[nodes].gather(1, index)
            new[rows[kept], place[kept]] = values[kept]
            table[nodes] = new

    def embed(self, nodes: Tensor, now: Tensor) -> Tensor:
        """Return the embeddings of n nodes at n times, from what happened before the window."""
        near, at = self.near[nodes], self.near_at[nodes]
        there = near >= 0
        row, column = there.nonzero(as_tuple=True)
        every, place = torch.cat([nodes, near[there]]).unique(return_inverse=True)
        states, _ = self._memory(every)
        seconds = (now[row] - at[there]).double() / self.ticks
        edge = torch.cat([self.time_encoding(seconds), self.near_told[nodes[row], column]], dim=1)
        graph = neighbour_graph(row, len(nodes))
        zero = self.time_encoding(torch.zeros(len(nodes), dtype=torch.float64, device=nodes.device))
        own, others = states[place[: len(nodes)]], states[place[len(nodes) :]]
        return self.dropout(self.attention(graph, own, zero, others, edge))

    # Training and evaluation

    def _pair(self, source: Tensor, destination: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(torch.cat([source, destination], dim=1)))).squeeze(1)

    def train_window(self, window: EventWindow) -> Tensor:
        """Return the cross-entropy of events against one uniform negative each, and go past the window."""
        source, destination = window.source.long(), window.destination.long()
        drawn = torch.randint(max(self.num_destinations - 1, 1), destination.shape, device=self.device)
        negative = (drawn + (drawn >= destination)) % self.num_destinations
        nodes = torch.cat([source, destination + self.offset, negative + self.offset])
        users, items, others = self.embed(nodes, window.time.repeat(3)).chunk(3)
        logits = torch.cat([self._pair(users, items), self._pair(users, others)])
        labels = torch.cat([torch.ones_like(users[:, 0]), torch.zeros_like(users[:, 0])])
        self._leave(window)
        return F.binary_cross_entropy_with_logits(logits, labels)

    @torch.no_grad()
    def score(self, window: EventWindow) -> Tensor:
        """Return the logit of each destination, as it is at the window's first event; go past the window."""
        items = torch.arange(self.num_destinations, device=self.device)
        users = self.embed(window.source.long(), window.time)
        embedded = self.embed(items + self.offset, window.time[:1].expand(len(items)))
        # the first layer is linear: of users and items apart, it is added
        left, right = self.first.weight.split(self.dim, dim=1)
        here, there = users @ left.t() + self.first.bias, embedded @ right.t()
        rows = [self.second(torch.relu(here[i : i + 20, None] + there)).squeeze(2) for i in range(0, len(here), 20)]
        self._leave(window)
        return torch.cat(rows)

    @torch.no_grad()
    def observe(self, window: EventWindow) -> None:
        """Go past a window without scores."""
        self._leave(window)
