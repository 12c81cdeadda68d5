"""EDGE's cell and loss in JODIE's schedule: t-batch by t-batch, in torch operations."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from recloom.data.streams.window import EventWindow
from recloom_edge.head import Rolled
from recloom_edge.model import EDGE
from recloom_edge.query import query_rows


class TBatchEDGE(EDGE):
    """EDGE without decoupled nodes, trained as JODIE is: for each t-batch, gather, score, update, scatter.

    Parameters, cell, candidates and loss are EDGE's; what does not depend on states is computed once for the window.
    Scores are against the candidates' states at the t-batch, as JODIE's predictions are.
    """

    def train_window(self, window: EventWindow) -> Tensor:
        """Return the mean cross-entropy over the window's events, and go past it."""
        candidates = self._candidates(window)
        entered = self.enter(window, False, candidates.ids)
        plan, states = entered.plan, entered.start
        rolled = Rolled(window, states, plan, entered.past, entered.gaps, entered.ages)
        before, rows, byage, targets = self.head.inputs(rolled, candidates)
        inputs = self.cell.brought(entered.messages)
        place, order, losses = plan.place.long(), plan.order.long(), []
        for begin, end in itertools.pairwise(plan.bounds.tolist()):
            events = order[begin:end]
            users, items = place[events].unbind(1)
            user, item = states[users], states[items]
            here, gap = before[events], entered.gaps[events, 0]
            given = F.dropout(query_rows(user, here, self.head.project.weight, gap), self.head.dropout, self.training)
            asked, values = self.head.asked(given, here)
            fixed, moving = asked.split([rows.shape[1], self.dim], dim=1)
            logits = fixed @ rows.t() + moving @ states[: len(rows)].t()  # candidates are the plan's first nodes
            at = targets.places[events]
            logits = logits.scatter_add(1, at.clamp(min=0).long(), (values + byage[events]) * (at >= 0))
            correction = targets.corrections(events)
            logits = logits if correction is None else logits - correction
            losses.append(F.cross_entropy(logits, targets.target[events].long(), reduction="sum"))
            new = [self.cell.step(0, user, item, inputs[events, 0]), self.cell.step(1, item, user, inputs[events, 1])]
            states = states.index_copy(0, torch.cat([users, items]), torch.cat(new))
        self.memory.states.index_copy_(0, plan.nodes.long(), states.detach())
        return torch.stack(losses).sum() / len(window)
