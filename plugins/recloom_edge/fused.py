"""The loss of a window from its states, in one step: query, scores of all candidates and cross-entropy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recloom_edge.kernels import Plan
from recloom_edge.matching import Matching
from recloom_edge.query import Query
from recloom_edge.scoring import Scoring
from recloom_edge.targets import Targets


def fused_loss(
    states: Tensor,
    before: Tensor,
    rows: Tensor,
    byage: Tensor,
    weights: tuple[Tensor, Tensor, Tensor],
    gap: Tensor,
    plan: Plan,
    targets: Targets,
    dropout: float,
    matching: Matching | None = None,
) -> Tensor:
    """Return the mean cross-entropy, as `CandidateHead.loss` does in torch operations.

    Args:
        states: Rows of the window, see `recurrence.roll`.
        before: E x s static embeddings of the sources' last destinations.
        rows: M x s static embeddings of the candidates.
        byage: E x K scores of the sources' recent destinations, without what the query adds.
        weights: The head's projection, and weight and bias of its query.
        gap: E x 7 features of the time since the source's last event.
        plan: The window's plan.
        targets: What is looked for.
        dropout: Share of the query's input that is dropped.
        matching: The matching loss, which is added.
    """
    return _FusedLoss.apply(states, before, rows, byage, *weights, gap, plan, targets, dropout, matching)  # type: ignore[no-any-return, no-untyped-call]


class _FusedLoss(torch.autograd.Function):
    """What is kept of the scores is their gradient, which the loss needs anyway."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        before: Tensor,
        rows: Tensor,
        byage: Tensor,
        project: Tensor,
        weight: Tensor,
        bias: Tensor,
        gap: Tensor,
        plan: Plan,
        targets: Targets,
        dropout: float,
        matching: Matching | None,
    ) -> Tensor:
        """Return the loss."""
        before, rows = before.contiguous(), rows.contiguous()
        fixed, both = rows.shape[1], rows.shape[1] + states.shape[1]
        query = Query(before, project, gap.contiguous(), plan, dropout)
        given = query.forward(states)
        found = torch.addmm(bias, given, weight.t())
        asked = found[:, :both].contiguous()
        asked[:, : fixed - 1] += before[:, :-1]
        asked[:, fixed - 1] = 1  # the last value of a static embedding is its bias
        scoring = Scoring(asked, rows, states, plan, targets)
        scoring.score()
        total, ctx.d_values = scoring.softmax(found[:, both:] + byage)
        loss = total / max(len(asked), 1) + (matching.value(states) if matching else 0.0)
        ctx.query, ctx.scoring, ctx.matching = query, scoring, matching
        ctx.fixed = fixed
        ctx.save_for_backward(states, weight, given)
        return states.new_tensor(loss)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of states, before, rows, byage, and the weights."""
        states, weight, given = ctx.saved_tensors
        fixed, scale = ctx.fixed, float(gradient) / max(len(given), 1)
        d_asked, d_rows, d_states = ctx.scoring.backward(scale)
        if ctx.matching:
            ctx.matching.add_gradient(states, float(gradient), d_states)
        d_values = ctx.d_values * scale
        d_asked[:, fixed - 1] = 0
        d_found = torch.cat([d_asked, d_values], dim=1)
        d_before, d_project = ctx.query.backward(states, d_found @ weight, d_states)
        d_before += d_asked[:, :fixed]
        weights = (d_project, d_found.t() @ given, d_found.sum(0))
        return d_states, d_before, d_rows, d_values, *weights, None, None, None, None, None
