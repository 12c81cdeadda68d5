"""TGN (Rossi et al. 2020, arXiv 2006.10637): memory, last messages, attention over recent neighbours, through DGL."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom.data.streams.stream import EventStream
from recloom.data.streams.window import EventWindow
from recloom.errors import RecloomError
from recloom.optim import OptimizerConfig
from recloom_edge.attention import NeighbourAttention, TimeEncoding, neighbour_graph
from recloom_edge.base import StreamModel
from recloom_edge.candidates import Candidates, popularity
from recloom_edge.neighbours import Near, RecentNeighbours
from recloom_edge.pairs import pair_scores
from recloom_edge.scoring import newest_versions


class TGN(StreamModel):
    """TGN-attn: a GRU memory updated by each node's last message, one layer of attention over recent neighbours.

    As in the authors' code, windows are TGN's batches (200 events): all events of one read the memory of its start, and
    leave messages that the next one begins with; of several messages of a node the last counts. Neighbours are those
    just before each event, earlier events of the batch included. For ranks among all destinations each has an embedding
    at the time of the batch's first event, and another one after each of its own events in the batch.

    Args:
        schema: The stream's schema, filled in from the data module.
        optimizer: Optimizers and learning rates.
        dim: Width of memories, messages' time encodings and embeddings.
        neighbours: Recent neighbours that attention sees.
        heads: Heads of attention.
        dropout: Share of the attention that is dropped in training.
        loss: "pair", as published: the cross-entropy of each event against one uniform negative; or "softmax", that of
            the destination among all or sampled ones, as EDGE's.
        candidates: Destinations that "softmax" tells an event's from; see EDGE.
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
        loss: Literal["pair", "softmax"] = "pair",
        candidates: int = 2048,
    ) -> None:
        super().__init__(schema, optimizer)
        if loss not in ("pair", "softmax") or min(neighbours, candidates) < 1:
            raise RecloomError(f"loss {loss!r}, neighbours {neighbours}, candidates {candidates}", "See --help.")
        self.save_hyperparameters()
        self.dim, self.neighbours, self.loss, self.candidates = dim, neighbours, loss, candidates
        self.popularity: Tensor
        self.register_buffer("popularity", torch.ones(self.num_destinations))
        self.time_encoding = TimeEncoding(dim)
        self.update = nn.GRUCell(3 * dim + self.num_features, dim)
        self.attention = NeighbourAttention(2 * dim, dim, dim + self.num_features, dim, heads, dropout)
        self.merge = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.first, self.second = nn.Linear(2 * dim, dim), nn.Linear(dim, 1)
        for layer in (self.merge[0], self.merge[2], self.first, self.second):
            nn.init.xavier_normal_(layer.get_parameter("weight"))
        # memories, and up to when; a node's newest event is its last message, which waits to be taken in, with the
        # other end's memory as it was then
        self.states: Tensor
        self.updated: Tensor
        self.other: Tensor
        self.register_buffer("other", torch.zeros(self.num_nodes, dim))
        self.register_buffer("states", torch.zeros(self.num_nodes, dim))
        self.register_buffer("updated", torch.zeros(self.num_nodes, dtype=torch.int64))
        self.near = RecentNeighbours(self.num_nodes, self.offset, neighbours, self.num_features)

    def reset(self) -> None:
        """Forget all events."""
        for buffer in (self.states, self.updated, self.other):
            buffer.zero_()
        self.near.clear()

    def snapshot(self) -> Any:
        """Return a copy of the memory."""
        return [buffer.clone() for buffer in self._remembered()]

    def restore(self, snapshot: Any) -> None:
        """Remember what `snapshot` returned."""
        for buffer, kept in zip(self._remembered(), snapshot, strict=True):
            buffer.copy_(kept)

    def _remembered(self) -> list[Tensor]:
        return [self.states, self.updated, self.other, *self.near.buffers()]

    # Memory

    def _memory(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the memories of nodes with their waiting messages taken in, and when these were left."""
        states, waiting, at = self.states[nodes], self.near.node[nodes, 0] >= 0, self.near.at[nodes, 0]
        if not bool(waiting.any()):
            return states, self.updated[nodes]
        there, at = nodes[waiting], at[waiting]
        passed = (at - self.updated[there]).double() / self.ticks
        told = [self.other[there], self.time_encoding(passed), self.near.told[there, 0]]
        own = states[waiting]
        new = self.update(torch.cat([own, *told], dim=1), own)
        rows = waiting.nonzero().squeeze(1)
        return states.index_copy(0, rows, new), self.updated[nodes].index_copy(0, rows, at)

    @torch.no_grad()
    def _leave(self, window: EventWindow) -> None:
        """Take in the waiting messages of the window's nodes, leave its events as messages and as neighbours."""
        nodes = torch.cat([window.source.long(), window.destination.long() + self.offset]).unique()
        self.states[nodes], self.updated[nodes] = self._memory(nodes)
        self.near.pass_by(window, wanted=False)
        self.other[nodes] = self.states[self.near.node[nodes, 0]]

    def embed(self, nodes: Tensor, now: Tensor, near: Near) -> Tensor:
        """Return the embeddings of n nodes at n times, from memories at the window's start and newest events."""
        there = near.node >= 0
        row = there.nonzero()[:, 0]
        every, place = torch.cat([nodes, near.node[there]]).unique(return_inverse=True)
        states, _ = self._memory(every)
        seconds = (now[row] - near.at[there]).double() / self.ticks
        edge = torch.cat([self.time_encoding(seconds), near.told[there]], dim=1)
        graph = neighbour_graph(place[len(nodes) :], row, len(every), len(nodes))
        zero = self.time_encoding(torch.zeros(1, dtype=torch.float64, device=nodes.device))  # of no time
        own = states[place[: len(nodes)]]
        gathered = self.attention(graph, torch.cat([own, zero.expand(len(nodes), -1)], dim=1), states, edge)
        return self.merge(torch.cat([own, gathered], dim=1))  # type: ignore[no-any-return]

    # Training and evaluation

    def prepare(self, training: EventStream) -> None:
        """Count the destinations."""
        super().prepare(training)
        self.popularity.copy_(popularity(training))

    def _all_pairs(self, window: EventWindow, candidates: Candidates) -> Tensor:
        """Return E x M logits of every event's source with M destinations, both as they are just before the event."""
        size, count, event = len(window), len(candidates.ids), torch.arange(len(window), device=self.device)
        made = [window.destination] if self.offset else [window.source, window.destination]
        ends = torch.stack(made, dim=1).long()
        # sources before each event, candidates at the start, what events make of their ends for the next one to see
        node = torch.cat([window.source.long(), candidates.ids + self.offset, (ends + self.offset).flatten()])
        after = (event + 1).repeat_interleave(ends.shape[1])
        begin = torch.zeros_like(candidates.ids)
        now = window.time[torch.cat([event, begin, after.clamp(max=size - 1)])]
        found = self.embed(node, now, self.near.before(window, torch.cat([event, begin, after]), node))
        # the first layer is linear: of sources and destinations apart, it is added
        left, right = self.first.weight.split(self.dim, dim=1)
        logits = pair_scores(found[:size] @ left.t() + self.first.bias, found[size:] @ right.t(), self.second.weight[0])
        return logits.gather(1, newest_versions(candidates.place[ends], count)) + self.second.bias

    def train_window(self, window: EventWindow) -> Tensor:
        """Return the loss, and go past the window."""
        loss = self._pair_loss(window) if self.loss == "pair" else self._softmax_loss(window)
        self._leave(window)
        return loss

    def _pair_loss(self, window: EventWindow) -> Tensor:
        source, destination = window.source.long(), window.destination.long()
        drawn = torch.randint(max(self.num_destinations - 1, 1), destination.shape, device=self.device)
        negative = (drawn + (drawn >= destination)) % self.num_destinations
        nodes = torch.cat([source, destination + self.offset, negative + self.offset])
        event = torch.arange(len(window), device=self.device).repeat(3)
        near = self.near.before(window, event, nodes)
        users, items, others = self.embed(nodes, window.time.repeat(3), near).chunk(3)
        pairs = torch.cat([torch.cat([users, items], dim=1), torch.cat([users, others], dim=1)])
        logits = self.second(torch.relu(self.first(pairs))).squeeze(1)
        labels = torch.cat([torch.ones_like(users[:, 0]), torch.zeros_like(users[:, 0])])
        return F.binary_cross_entropy_with_logits(logits, labels)

    def _softmax_loss(self, window: EventWindow) -> Tensor:
        candidates = Candidates.drawn(window, self.popularity, self.candidates)
        logits = self._all_pairs(window, candidates)
        logits = logits if candidates.correction is None else logits - candidates.correction
        return F.cross_entropy(logits, candidates.place[window.destination.long()].long())

    @torch.no_grad()
    def score(self, window: EventWindow) -> Tensor:
        """Return the logit of each destination; go past the window."""
        found = self._all_pairs(window, Candidates.every(self.num_destinations, self.device))
        self._leave(window)
        return found

    @torch.no_grad()
    def observe(self, window: EventWindow) -> None:
        """Go past a window without scores."""
        self._leave(window)
