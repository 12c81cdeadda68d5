"""EDGE: a recurrence over events in which a few nodes' states are free parameters, so that the rest is parallel."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom.data.streams.module import EventWindow, windows
from recloom.data.streams.stream import EventStream
from recloom.embedding import EmbeddingBagConfig, FusedEmbeddingBag
from recloom.errors import RecloomError
from recloom.optim import OptimizerConfig
from recloom_edge.base import StreamModel
from recloom_edge.cells import CellName, make_cell
from recloom_edge.decouple import Decoupled, Detach
from recloom_edge.kernels import Plan
from recloom_edge.memory import Memory, Past
from recloom_edge.recurrence import roll
from recloom_edge.scoring import TIME_FEATURES, VersionScores, time_features


class EDGE(StreamModel):
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
        method: How decoupled nodes are chosen: "activity" or "greedy" (those that carry the longest paths).
        share: Share of the nodes that are decoupled.
        budget: If it is not 0: as few as bring the training events' longest path to this length.
        segments: K, the number of time segments of the free embeddings.
        matching: Weight of the matching loss, λ.
        matching_detach: Which side of it gets no gradient: "none", "states" or "parameters".
        smoothness: Weight of the squared distance between free embeddings of neighbouring segments.
        start: Where decoupled nodes start outside training: from the last segment's free embeddings ("segment"), or
            where an exact replay of the training events brings them ("replay").
        candidates: Destinations that a training event's is told from: all if there are no more than these; else this
            many, of the window and at random, corrected for how likely they are to be there.
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
        method: Literal["activity", "greedy"] = "greedy",
        share: float = 0.01,
        budget: int = 0,
        segments: int = 10,
        matching: float = 1.0,
        matching_detach: Detach = "none",
        smoothness: float = 0.0,
        start: Literal["segment", "replay"] = "segment",
        candidates: int = 2048,
        compiled: bool = True,
    ) -> None:
        super().__init__(schema, optimizer)
        if min(dim, static_dim, candidates) < 1 or recent < 1:
            raise RecloomError(f"dim {dim}, static_dim {static_dim}, recent {recent}, candidates {candidates}")
        if start not in ("segment", "replay"):
            raise RecloomError(f"start {start!r}", "It must be 'segment' or 'replay'.")
        self.save_hyperparameters()
        self.dim, self.compiled, self.start, self.candidates = dim, compiled, start, candidates
        self.weights = {"matching": matching, "smoothness": smoothness}
        self.detach: Detach = matching_detach
        self.static_dim = static_dim
        self.static = FusedEmbeddingBag(
            [EmbeddingBagConfig("destination", static_dim, self.num_destinations, ("destination",))]
        )
        self.initial = nn.Parameter(torch.randn(2, dim) * 0.1)
        self.cell = make_cell(update, dim, static_dim + TIME_FEATURES + self.num_features)
        self.dropout = nn.Dropout(dropout)
        self.memory = Memory(self.num_nodes, self.offset, dim, recent)
        self.decoupled = Decoupled(self.num_nodes, dim, segments, method, share, budget)
        self.project = nn.Linear(TIME_FEATURES, dim, bias=False)
        self.static_query = nn.Linear(dim + static_dim + TIME_FEATURES, static_dim)
        self.state_query = nn.Linear(dim + static_dim + TIME_FEATURES, dim)
        self.age_score = nn.Sequential(nn.Linear(2 * TIME_FEATURES, 32), nn.ReLU(), nn.Linear(32, recent))
        self.place_score = nn.Linear(dim, recent)
        self.popularity: Tensor
        self.register_buffer("popularity", torch.ones(self.num_destinations))
        nn.init.zeros_(self.project.weight)
        self._replaying = False

    def prepare(self, training: EventStream) -> None:
        """Choose the decoupled nodes and count the destinations."""
        super().prepare(training)
        self.decoupled.choose(training)
        counts = torch.bincount(training.destination, minlength=self.num_destinations)
        self.popularity.copy_((counts + 0.5) / (counts + 0.5).sum())

    # Memory

    def reset(self) -> None:
        """Forget all events."""
        self.memory.clear()

    def snapshot(self) -> Any:
        """Return a copy of the memory."""
        return self.memory.snapshot()

    def restore(self, snapshot: Any) -> None:
        """Remember what `snapshot` returned."""
        self.memory.restore(snapshot)

    def replay(self, parts: Any) -> None:
        """Go past the training events as in training, or exactly; then past the others, exactly."""
        first, *rest = parts
        self._replaying = self.start == "segment" and self.decoupled.active
        super().replay([first])
        if self._replaying:
            nodes = self.decoupled.cut.nonzero().squeeze(1)
            assert self.decoupled.embeddings is not None
            self.memory.states[nodes] = self.decoupled.embeddings[-1, self.decoupled.index[nodes]].detach()
        self._replaying = False
        with torch.no_grad():
            for part in rest:
                self._observe_all(part)

    def _observe_all(self, part: EventStream) -> None:
        for window in windows(part, self.replay_window):
            self.observe(window.to(self.device))

    # The recurrence

    def roll(self, window: EventWindow, cut: bool, given: Tensor | None = None) -> tuple[Tensor, Plan, Past]:
        """Return the window's states (see `recurrence.roll`), its plan and what was known; go past it.

        Args:
            window: E events.
            cut: Whether decoupled nodes are read as free embeddings.
            given: Nodes that are to have a row, int32.
        """
        plan = self.memory.plan(window, self.decoupled.cut.cpu() if cut else None, given)
        nodes = plan.nodes.to(self.device).long()
        kind = (nodes >= self.offset).long() if self.offset else torch.zeros_like(nodes)
        met = self.memory.time[nodes] >= 0
        start = torch.where(met[:, None], self.memory.states[nodes], self.initial[kind])
        if cut:
            start = self.decoupled.fill(start, nodes, self.decoupled.segment(window.start))
        past = self.memory.pass_by(window)
        states = roll(self.cell, start, self.cell.brought(self._messages(window, past)), plan, self.compiled)
        last = plan.last.to(self.device).long()
        self.memory.states[nodes] = states.detach().index_select(0, last)
        return states, plan, past

    def _messages(self, window: EventWindow, past: Past) -> tuple[Tensor, Tensor]:
        """Return what sources and destinations are told: a destination's static embedding, their own gap, features."""
        there = self.static.lookup("destination", window.destination.long())
        # sources have no static embedding of their own, so that a new one is like any other
        back = torch.zeros_like(there) if self.offset else self.static.lookup("destination", window.source.long())
        parts = []
        for side, static in enumerate((there, back)):
            features = [] if window.features is None else [window.features]
            parts.append(torch.cat([static, time_features(past.gaps[:, side], self.ticks), *features], dim=1))
        return parts[0], parts[1]

    def logits(self, window: EventWindow, states: Tensor, plan: Plan, past: Past, candidates: Tensor) -> Tensor:
        """Return E x M scores of M candidate destinations (int64, each once), which are the plan's first nodes."""
        events, count = len(window), len(candidates)
        gap = time_features(past.gaps[:, 0], self.ticks)
        own = states.index_select(0, plan.seen[:, 0].to(self.device).long())
        own = own * (1 + self.project(gap))  # JODIE's projection to the time of the event
        newest = past.recent[:, 0].long()
        before = self.static.lookup("destination", newest.clamp(min=0)) * (newest >= 0)[:, None]
        query = self.dropout(torch.cat([own, before, gap], dim=1))
        rows = self.static.lookup("destination", candidates)
        asked = torch.cat([self.static_query(query)[:, :-1] + before[:, :-1], query.new_ones(events, 1)], dim=1)
        base = asked @ rows.t()  # the last column of a static embedding is its bias
        base = self._recent_scores(base, own, past, candidates)
        changes = states[1 : 2 * events : 2] if self.offset else states[: 2 * events]
        versions = torch.cat([states[2 * events : 2 * events + count], changes])
        scores = self.state_query(query) @ versions.t()
        ends = window.destination[:, None] if self.offset else torch.stack([window.source, window.destination], dim=1)
        return VersionScores.apply(base, scores, self._place(candidates)[ends.long()].int())  # type: ignore[no-untyped-call]

    def _recent_scores(self, base: Tensor, own: Tensor, past: Past, candidates: Tensor) -> Tensor:
        """Add what the source's recent destinations score for having been there."""
        ages = time_features(past.ages, self.ticks)  # E x K x 7
        newest = ages[:, :1].expand_as(ages)
        byage = self.age_score(torch.cat([ages, newest], dim=2)).diagonal(dim1=1, dim2=2)  # place r has the r-th output
        values = self.place_score(self.dropout(own)) + byage  # E x K
        place = self._place(candidates)[past.recent.clamp(min=0).long()]
        there = (place >= 0) & (past.recent >= 0)
        return base.scatter_add(1, place.clamp(min=0), values * there)

    def _place(self, candidates: Tensor) -> Tensor:
        """Return the place of each destination among the candidates, -1 for the others."""
        place = torch.full((self.num_destinations,), -1, dtype=torch.int64, device=candidates.device)
        place[candidates] = torch.arange(len(candidates), device=candidates.device)
        return place

    # Training and evaluation

    def train_window(self, window: EventWindow) -> Tensor:
        """Return the cross-entropy, the mean over events, with the matching loss; go past the window."""
        candidates, correction = self._candidates(window)
        given = (candidates + self.offset).int().cpu()
        cut = self.decoupled.active
        states, plan, past = self.roll(window, cut, given)
        logits = self.logits(window, states, plan, past, candidates)
        if correction is not None:
            logits = logits - correction
        loss = F.cross_entropy(logits, self._place(candidates)[window.destination.long()])
        if cut:
            ends = torch.stack([window.source.long(), window.destination.long() + self.offset], dim=1)
            segment = self.decoupled.segment(window.start)
            if self.weights["matching"]:
                matching = self.decoupled.matching(states, plan, ends, segment, self.detach)
                loss = loss + self.weights["matching"] * matching
            if self.weights["smoothness"]:
                loss = loss + self.weights["smoothness"] * self.decoupled.smoothness()
        return loss

    def _candidates(self, window: EventWindow) -> tuple[Tensor, Tensor | None]:
        """Return the destinations that a window's are told from, and the logarithm of how likely each is among them."""
        if self.num_destinations <= self.candidates:
            return torch.arange(self.num_destinations, device=self.device), None
        here = window.destination.long().unique()
        count = max(self.candidates - len(here), 1)
        drawn = torch.randint(self.num_destinations, (count,), device=self.device)
        candidates = torch.cat([here, drawn]).unique()
        missed = (1 - self.popularity[candidates]) ** len(window) * (1 - 1 / self.num_destinations) ** count
        return candidates, torch.log1p(-missed)

    @torch.no_grad()
    def score(self, window: EventWindow) -> Tensor:
        """Return the logarithm of each destination's probability: against a uniform negative, the best there is."""
        candidates = torch.arange(self.num_destinations, device=self.device)
        given = (candidates + self.offset).int().cpu()
        states, plan, past = self.roll(window, cut=False, given=given)
        return self.logits(window, states, plan, past, candidates).log_softmax(dim=1)

    @torch.no_grad()
    def observe(self, window: EventWindow) -> None:
        """Go past a window without scores."""
        self.roll(window, cut=self._replaying)
