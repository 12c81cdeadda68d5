"""Decoupled nodes: free embeddings, constant in each segment of time, in the place of states that others would read."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recloom.data.streams.stream import EventStream
from recloom.embedding import EmbeddingBagConfig, FusedEmbeddingBag
from recloom.errors import RecloomError
from recloom_edge.kernels import Plan
from recloom_edge.matching import Detach, Matching
from recloom_edge.partition import Partition, choose, partition

Free = Literal["learned", "states"]


class Decoupled(nn.Module):
    """The free embeddings P[k, w] of the decoupled nodes w in the segments k of the training events.

    Args:
        num_nodes: Number of nodes.
        width: Width of a state.
        segments: K, the number of segments.
        method: "activity" or "greedy".
        share: Share of the nodes with training events that are decoupled.
        budget: If it is not 0: as few as bring the longest path of the training events to this length. Paths wait for P
            that are states.
        free: "learned": P are parameters; "states": P[k, w] is w's state as training reached the segment k.
    """

    def __init__(
        self,
        num_nodes: int,
        width: int,
        segments: int,
        method: str,
        share: float,
        budget: int,
        free: Free = "states",
    ) -> None:
        super().__init__()
        if free not in ("learned", "states"):
            raise RecloomError(f"free embeddings {free!r}", "They must be 'learned' or 'states'.")
        if segments < 1 or not 0 <= share <= 1 or budget < 0:
            raise RecloomError(f"{segments} segments, a share of {share}, a budget of {budget}", "See --help.")
        self.width, self.segments, self.method, self.share, self.budget = width, segments, method, share, budget
        self.cut: Tensor
        self.index: Tensor
        self.register_buffer("cut", torch.zeros(num_nodes, dtype=torch.bool))
        self.register_buffer("index", torch.full((num_nodes,), -1, dtype=torch.int64))
        self.learned = free == "learned"
        self.free: FusedEmbeddingBag | None = None
        self.carried: Tensor
        self.reached: Tensor
        self.register_buffer("carried", torch.zeros(segments, 0, width))
        self.register_buffer("reached", torch.tensor(-1))
        self.events = 0
        self.found: Partition | None = None

    @property
    def active(self) -> bool:
        """Whether any node is decoupled."""
        return self.found is not None

    @property
    def embeddings(self) -> Tensor:
        """P, K x n x d, outside of autograd: n decoupled nodes in the order of their numbers."""
        if self.free is None:
            return self.carried
        return self.free.table_weight("free").view(self.segments, -1, self.width)

    def choose(self, training: EventStream) -> None:
        """Choose the nodes from the training events; the second time it does nothing."""
        if self.events:
            return
        self.events = max(len(training), 1)
        if not self.share and not self.budget:
            return
        waits = 1 if self.learned else self.segments
        cut = choose(training, self.method, self.share, self.budget, waits)
        count = int(cut.sum())
        if count:
            self.cut.copy_(cut)
            self.index[cut] = torch.arange(count)
            if self.learned:
                rows = self.segments * count
                self.free = FusedEmbeddingBag([EmbeddingBagConfig("free", self.width, rows, ("free",))])
                with torch.no_grad():
                    self.free.weight.normal_(std=0.1)
            else:
                self.carried = torch.zeros(self.segments, count, self.width, device=self.cut.device)
            self.found = partition(training, cut)

    def segment(self, position: int) -> int:
        """Return the segment of a position among the training events."""
        return min(position * self.segments // max(self.events, 1), self.segments - 1)

    def forget(self) -> None:
        """Go back to the first segment."""
        self.reached.fill_(-1)

    def begins(self, segment: int) -> bool:
        """Return whether `begin` is to be called: P are states, and these are another segment's."""
        return self.active and not self.learned and int(self.reached) != segment

    def begin(self, segment: int, states: Tensor) -> None:
        """Make the states of the decoupled nodes, n x d in the order of their numbers, P of this segment."""
        self.carried[segment] = states
        self.reached.fill_(segment)

    def states(self, segment: int) -> tuple[Tensor, Tensor] | None:
        """Return by node the row of its P, -1: none, and P of a segment, n x d, if P are states."""
        return (self.index, self.carried[segment]) if self.active and not self.learned else None

    def fill(self, start: Tensor, nodes: Tensor, segment: int) -> Tensor:
        """Return `start`, the states of `nodes`, with learned P written over the rows of decoupled ones."""
        if self.free is None:
            return start
        index = self.index[nodes]
        rows = (index >= 0).nonzero().squeeze(1)
        values = self.free.lookup("free", segment * self.embeddings.shape[1] + index[rows])
        return _Filled.apply(start, values, rows)  # type: ignore[no-any-return, no-untyped-call]

    def matching(self, plan: Plan, weight: float, detach: Detach) -> Matching:
        """Return the loss weight Σ |emb(w, t_e) - P[k, w]|² over the decoupled ends w of E events, over 2E."""
        free = self.cut[plan.nodes.to(self.cut.device).long()][plan.place.to(self.cut.device).long()].flatten()
        return Matching(plan, free, weight / max(len(free), 1), detach)

    def smoothness(self) -> Tensor:
        """Return the mean of |P[k + 1, w] - P[k, w]|²."""
        if self.free is None or self.segments < 2:
            return torch.zeros((), device=self.cut.device)
        every = torch.arange(self.embeddings.shape[:2].numel(), device=self.cut.device)
        embeddings = self.free.lookup("free", every).view(self.segments, -1, self.width)
        return (embeddings[1:] - embeddings[:-1]).square().sum(-1).mean()


class _Filled(torch.autograd.Function):
    """`start` with other rows at some places, in place of copies of it each way."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, values: Tensor, rows: Tensor) -> Tensor:
        """Return start, written over."""
        ctx.mark_dirty(start)
        ctx.save_for_backward(rows)
        return start.index_copy_(0, rows, values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of start and values."""
        (rows,) = ctx.saved_tensors
        values = gradient.index_select(0, rows)
        return gradient.index_fill(0, rows, 0), values, None
