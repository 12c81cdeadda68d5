"""EDGE's scores: what the source asks for, held against each candidate destination as it is at the event."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recloom.data.streams.window import EventWindow
from recloom.embedding import EmbeddingBagConfig, FusedEmbeddingBag
from recloom_edge.candidates import Candidates
from recloom_edge.fused import fused_loss
from recloom_edge.kernels import Plan
from recloom_edge.matching import Matching
from recloom_edge.memory import Past
from recloom_edge.neighbours import Near
from recloom_edge.query import TIME_FEATURES, AgeScores, query_input
from recloom_edge.scoring import cross_entropy, fits, log_probabilities, version_logits
from recloom_edge.targets import Targets, find_targets


@dataclass(frozen=True)
class Rolled:
    """A window that the recurrence went past.

    Args:
        window: E events.
        states: Its states, see `recurrence.roll`.
        plan: What was computed from what.
        past: What was known before each event.
        gaps: E x 2 x 7 features of the time since the last event of source and destination.
        ages: E x K x 7 features of the time since the source's recent destinations.
        told: E x s, what recent neighbours add to the static embedding that a source asks with; or None.
    """

    window: EventWindow
    states: Tensor
    plan: Plan
    past: Past
    gaps: Tensor
    ages: Tensor
    told: Tensor | None = None


@dataclass(frozen=True)
class Entered:
    """What a window begins with.

    Args:
        plan: What is computed from what.
        start: R x d states of the plan's nodes.
        past: What was known before each event.
        gaps: See `Rolled`.
        ages: See `Rolled`.
        messages: What sources and destinations are told, of E events.
        near: The sources' newest events before each of the window's, if the model looks at them.
    """

    plan: Plan
    start: Tensor
    past: Past
    gaps: Tensor
    ages: Tensor
    messages: tuple[Tensor, Tensor]
    near: Near | None = None


class CandidateHead(nn.Module):
    """Scores of three parts: against a static embedding, against the newest state, for the source's recent ones.

    The query is a linear map of the source's state, projected to the event's time as in JODIE, of its last
    destination's static embedding, and of the time since. The last value of a static embedding is its bias.

    Args:
        num_destinations: Number of destinations.
        bipartite: Whether an event makes no new state of a destination but its own.
        width: Width of a state, d.
        static_width: Width of a static embedding, s.
        recent: K: the source's last K distinct destinations get a score of their own.
        dropout: Share of what a query is made from that is dropped in training.
    """

    def __init__(
        self, num_destinations: int, bipartite: bool, width: int, static_width: int, recent: int, dropout: float
    ) -> None:
        super().__init__()
        self.bipartite, self.dropout, self.sizes = bipartite, dropout, (static_width, width, recent)
        self.static = FusedEmbeddingBag(
            [EmbeddingBagConfig("destination", static_width, num_destinations, ("destination",))]
        )
        self.project = nn.Linear(TIME_FEATURES, width, bias=False)
        self.query = nn.Linear(width + static_width + TIME_FEATURES, sum(self.sizes))
        self.ages = AgeScores(recent)
        nn.init.zeros_(self.project.weight)

    def loss(self, rolled: Rolled, candidates: Candidates, matching: Matching | None = None) -> Tensor:
        """Return the mean cross-entropy of the destinations among the candidates, with the matching loss."""
        before, rows, byage, targets = self.inputs(rolled, candidates)
        dropout = self.dropout if self.training else 0.0
        if fits(rolled.states, before):
            weights = (self.project.weight, self.query.weight, self.query.bias)
            given = (rolled.states, before, rows, byage, weights, rolled.gaps[:, 0])
            return fused_loss(*given, rolled.plan, targets, dropout, matching)
        query = query_input(rolled.states, before, self.project.weight, rolled.gaps[:, 0], rolled.plan, dropout)
        asked, values = self.asked(query, before)
        logits = version_logits(asked, rows, rolled.states, rolled.plan, targets.changed)
        loss = cross_entropy(logits, values + byage, targets)
        return loss if matching is None else loss + matching.loss(rolled.states)

    def score(self, rolled: Rolled, candidates: Candidates) -> Tensor:
        """Return E x M logarithms of the candidates' probabilities."""
        before, rows, byage, targets = self.inputs(rolled, candidates)
        given = query_input(rolled.states, before, self.project.weight, rolled.gaps[:, 0], rolled.plan)
        asked, values = self.asked(given, before)
        logits = version_logits(asked, rows, rolled.states, rolled.plan, targets.changed)
        return log_probabilities(logits, values + byage, targets.places)

    def inputs(self, rolled: Rolled, candidates: Candidates) -> tuple[Tensor, Tensor, Tensor, Targets]:
        """Return last destinations' and candidates' static embeddings, what recent ones score by age, and targets."""
        recent, window = rolled.past.recent, rolled.window
        newest = recent[:, 0].long()
        before = self.static.lookup("destination", newest.clamp(min=0)) * (newest >= 0)[:, None]
        before = before if rolled.told is None else before + rolled.told
        rows = self.static.lookup("destination", candidates.ids)
        targets = find_targets(window, recent, candidates, self.bipartite)
        return before, rows, self.ages(rolled.ages, targets.places), targets

    def asked(self, given: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Return E x (s + d) queries, and E x K scores of the source's recent destinations."""
        fixed, moving, values = self.query(given).split(self.sizes, dim=1)
        return torch.cat([fixed[:, :-1] + before[:, :-1], torch.ones_like(fixed[:, :1]), moving], dim=1), values
