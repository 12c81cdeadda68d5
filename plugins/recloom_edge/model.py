"""EDGE: a recurrence over events in which a few nodes' states are free parameters, so that the rest is parallel."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recloom.data.streams.stream import EventStream
from recloom.data.streams.window import EventWindow, windows
from recloom.errors import RecloomError
from recloom.optim import OptimizerConfig
from recloom_edge.candidates import Candidates, popularity
from recloom_edge.cells import CellName, make_cell
from recloom_edge.decouple import Decoupled, Free
from recloom_edge.head import CandidateHead, Entered, Rolled
from recloom_edge.matching import Detach
from recloom_edge.memory import Memory, MemoryModel
from recloom_edge.neighbours import RecentNeighbours, source_messages
from recloom_edge.query import TIME_FEATURES, time_features
from recloom_edge.recurrence import roll
from recloom_edge.starts import newest


class EDGE(MemoryModel):
    """Dynamic node embeddings after Chen et al. 2021 (arXiv 2112.07768), of which only the abstract was at hand.

    An event of u and v at time t makes emb(u, t) = f(read(u), read(v), x) and emb(v, t) = g(read(v), read(u), x), where
    read(w) is w's newest state or, if w is decoupled, the free embedding P[w, k] of the time segment k. The loss is the
    cross-entropy of the destination among all (or sampled) ones, plus `matching` times the squared distance between
    what f and g make of decoupled nodes and P. Outside training the recurrence is exact, nothing is decoupled.

    Args:
        schema: The stream's schema, filled in from the data module.
        optimizer: Optimizers and learning rates.
        dim: Width of a state, a multiple of 16 for the compiled recurrence.
        static_dim: Width of the nodes' static embeddings.
        update: The cell: "rnn", "gru", or "identity" (no recurrence).
        recent: The source's last so many distinct destinations get a score of their own.
        dropout: Share of what a query is made from that is dropped in training.
        neighbours: The source's last so many events are read as a message passing over a DGL graph, which adds to what
            it asks with; 0: none. Needs DGL.
        method: How decoupled nodes are chosen: "activity" or "greedy" (those that carry the longest paths).
        share: Share of the nodes that are decoupled.
        budget: If it is not 0: as few as bring the training events' longest path to this length.
        segments: K, the number of time segments of the free embeddings.
        free: "learned": P are parameters; "states": P[w, k] is w's state as training reaches the segment k. What is
            learned from a segment's events also knows what comes in it; a state does not.
        matching: Weight of the matching loss, λ.
        matching_detach: Which side of it gets no gradient: "none", "states" or "parameters".
        smoothness: Weight of the squared distance between free embeddings of neighbouring segments.
        start: Where decoupled nodes start outside training: from the last segment's free embeddings ("segment"), or, if
            these are states, from the newest ones made as in training; or where an exact replay of the training events
            brings them ("replay").
        candidates: Destinations that a training event's is told from: all if there are no more than these; else this
            many, of the events of its group and at random, corrected for how likely they are to be there.
        group: Events in a row that share such candidates, a multiple of 8; 0: all of a window.
        compiled: Use the compiled recurrence; otherwise torch operations level by level.
    """

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        optimizer: OptimizerConfig | None = None,
        dim: int = 64,
        static_dim: int = 64,
        update: CellName = "gru",
        recent: int = 10,
        dropout: float = 0.2,
        neighbours: int = 0,
        method: Literal["activity", "greedy"] = "greedy",
        share: float = 0.01,
        budget: int = 0,
        segments: int = 10,
        free: Free = "states",
        matching: float = 1.0,
        matching_detach: Detach = "none",
        smoothness: float = 0.0,
        start: Literal["segment", "replay"] = "segment",
        candidates: int = 2048,
        group: int = 256,
        compiled: bool = True,
    ) -> None:
        super().__init__(schema, optimizer)
        if min(dim, static_dim, candidates, recent) < 1 or neighbours < 0:
            sizes = {"dim": dim, "static_dim": static_dim, "recent": recent, "candidates": candidates}
            raise RecloomError(f"{sizes}, neighbours {neighbours}", "Sizes are at least 1, neighbours 0 or more.")
        if group < 0 or group % 8:
            raise RecloomError(f"groups of {group} events", "A group is a multiple of 8, or 0: all of a window.")
        if start not in ("segment", "replay"):
            raise RecloomError(f"start {start!r}", "It must be 'segment' or 'replay'.")
        self.save_hyperparameters()
        self.dim, self.compiled, self.start, self.candidates = dim, compiled, start, candidates
        self.group = group
        self.weights = {"matching": matching, "smoothness": smoothness}
        self.detach: Detach = matching_detach
        self.initial = nn.Parameter(torch.randn(2, dim) * 0.1)
        told = TIME_FEATURES + self.num_features
        self.cell = make_cell(update, dim, (static_dim + told, told if self.offset else static_dim + told))
        self.memory = Memory(self.num_nodes, self.offset, dim, recent)
        self.decoupled = Decoupled(self.num_nodes, dim, segments, method, share, budget, free)
        self.head = CandidateHead(self.num_destinations, bool(self.offset), dim, static_dim, recent, dropout)
        if neighbours:
            self.near = RecentNeighbours(self.num_nodes, self.offset, neighbours, self.num_features)
        self.messages = source_messages(dim, static_dim, self.num_features) if neighbours else None
        self.popularity: Tensor
        self.register_buffer("popularity", torch.ones(self.num_destinations))
        self._replaying = False

    def prepare(self, training: EventStream) -> None:
        """Choose the decoupled nodes and count the destinations."""
        super().prepare(training)
        self.decoupled.choose(training)
        self.popularity.copy_(popularity(training))

    # Memory

    def reset(self) -> None:
        """Forget all events."""
        super().reset()
        self.decoupled.forget()

    def _remembered(self) -> dict[str, Tensor]:
        return super()._remembered() | {"carried": self.decoupled.carried, "reached": self.decoupled.reached}

    def replay(self, parts: Any) -> None:
        """Go past the training events as in training, or exactly; then past the others, exactly."""
        first, *rest = parts
        self._replaying = self.start == "segment" and self.decoupled.active
        super().replay([first])
        if self._replaying and self.decoupled.learned:
            nodes = self.decoupled.cut.nonzero().squeeze(1)
            self.memory.states[nodes] = self.decoupled.embeddings[-1]
        self._replaying = False
        with torch.no_grad():
            for part in rest:
                self._observe_all(part)

    def _observe_all(self, part: EventStream) -> None:
        for window in windows(part, self.replay_window):
            self.observe(window.to(self.device))

    # The recurrence

    def enter(self, window: EventWindow, cut: bool, given: Tensor | None = None) -> Entered:
        """Return what a window begins with; the memory's times and recent destinations go past it."""
        near = None if self.near is None else self.near.pass_by(window, wanted=given is not None)
        rows = None if given is None else given + self.offset
        if rows is not None and near is not None:
            rows = torch.cat([rows, near.node[near.node >= 0].unique()])
        rows = None if rows is None else rows.int().cpu()
        plan = self.memory.plan(window, self.decoupled.cut.cpu() if cut else None, rows)
        free, segment = None, self.decoupled.segment(window.start)
        if cut and not self.decoupled.learned:
            if self.decoupled.begins(segment):
                self.decoupled.begin(segment, self._newest(self.decoupled.cut.nonzero().squeeze(1).int()).detach())
            free = self.decoupled.states(segment)
        start = self._newest(plan.nodes, free)
        if cut and self.decoupled.learned:
            start = self.decoupled.fill(start, plan.nodes.to(self.device).long(), segment)
        past = self.memory.pass_by(window)
        gaps, ages = time_features(past.gaps, self.ticks), time_features(past.ages, self.ticks)
        return Entered(plan, start, past, gaps, ages, self._messages(window, gaps), near)

    def roll(self, window: EventWindow, cut: bool, given: Tensor | None = None) -> Rolled:
        """Go past a window.

        Args:
            window: E events.
            cut: Whether decoupled nodes are read as free embeddings.
            given: Destinations that are to have a row.
        """
        entered = self.enter(window, cut, given)
        plan, inputs = entered.plan, self.cell.brought(entered.messages)
        states = roll(self.cell, entered.start, inputs, plan, self.compiled)
        made = states.detach().index_select(0, plan.last.to(self.device).long())
        self.memory.states.index_copy_(0, plan.nodes.to(self.device).long(), made)
        rolled = Rolled(window, states, plan, entered.past, entered.gaps, entered.ages)
        if self.messages is None or entered.near is None:
            return rolled
        static = functools.partial(self.head.static.lookup, "destination")
        told = self.messages(rolled, entered.near, static, self.offset, self.ticks)
        return dataclasses.replace(rolled, told=told)

    def _newest(self, nodes: Tensor, free: tuple[Tensor, Tensor] | None = None) -> Tensor:
        return newest(self.memory, nodes, self.initial, free)

    def _messages(self, window: EventWindow, gaps: Tensor) -> tuple[Tensor, Tensor]:
        """Return what sources and destinations are told: the other end's static embedding, their own gap, features.

        Sources of a bipartite stream have no static embedding, so that a new one is like any other.
        """
        others = [window.destination] if self.offset else [window.destination, window.source]
        told: list[list[Tensor]] = [[], []]
        for side, other in enumerate(others):
            told[side].append(self.head.static.lookup("destination", other.long()))
        for side, parts in enumerate(told):
            parts.append(gaps[:, side])
            if window.features is not None:
                parts.append(window.features)
        return torch.cat(told[0], dim=1), torch.cat(told[1], dim=1)

    # Training and evaluation

    def train_window(self, window: EventWindow) -> Tensor:
        """Return the cross-entropy, the mean over events, with the matching loss; go past the window."""
        candidates = self._candidates(window)
        cut = self.decoupled.active
        rolled = self.roll(window, cut, candidates.ids)
        matching = None
        if cut and self.weights["matching"]:
            matching = self.decoupled.matching(rolled.plan, self.weights["matching"], self.detach)
        loss = self.head.loss(rolled, candidates, matching)
        if cut and self.weights["smoothness"]:
            loss = loss + self.weights["smoothness"] * self.decoupled.smoothness()
        return loss

    def _candidates(self, window: EventWindow) -> Candidates:
        """Return the destinations that a window's are told from."""
        return Candidates.drawn(window, self.popularity, self.candidates, self.group)

    @torch.no_grad()
    def score(self, window: EventWindow) -> Tensor:
        """Return the logarithm of each destination's probability: against a uniform negative, the best there is."""
        candidates = Candidates.every(self.num_destinations, self.device)
        return self.head.score(self.roll(window, cut=False, given=candidates.ids), candidates)

    @torch.no_grad()
    def observe(self, window: EventWindow) -> None:
        """Go past a window without scores."""
        self.roll(window, cut=self._replaying)
