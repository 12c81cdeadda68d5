"""JODIE (Kumar et al. 2019, arXiv 1908.01207): two RNNs, a projection in time, the next item's embedding predicted."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom.data.streams.window import EventWindow
from recloom.embedding import EmbeddingBagConfig, FusedEmbeddingBag
from recloom.errors import RecloomError
from recloom.optim import OptimizerConfig
from recloom_edge.cells import NormalisedRNN
from recloom_edge.kernels import Plan
from recloom_edge.memory import Memory, MemoryModel, Past
from recloom_edge.recurrence import roll
from recloom_edge.scoring import version_logits
from recloom_edge.versions import newest_rows

SCHEDULES = ("window", "tbatch", "event")


class JODIE(MemoryModel):
    """The model of srijankr/jodie, trained as there: t-batch by t-batch, one optimizer step a window.

    For each event the user's state, projected to its time, the previous item's state, and both static embeddings give a
    prediction of the next item's state and static embedding. The loss is the squared error of that, and of the new
    states to the old ones. Items are ranked by their distance to the prediction. One-hot static embeddings are looked
    up in tables instead of multiplied with matrices, which is the same. Only for bipartite streams.

    Args:
        schema: The stream's schema, filled in from the data module.
        optimizer: Optimizers and learning rates.
        dim: Width of a state.
        static_dim: Width of random unit vectors in the place of one-hot static embeddings; 0: one-hot, which takes the
            square of the number of items.
        schedule: "tbatch" (events whose ends all differ, together), "event" (one after the other), or "window": all
            states of a window in one call of the compiled recurrence, then all predictions. That gives what "event"
            does; a t-batch may see the last item's state as it is some events earlier or later.
        mean: Loss of a t-batch: "batch", its mean, as the authors' code does, which gives a small t-batch the weight of
            a large one; or "event", the mean over the window's events.
    """

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        optimizer: OptimizerConfig | None = None,
        dim: int = 128,
        static_dim: int = 0,
        schedule: Literal["window", "tbatch", "event"] = "tbatch",
        mean: Literal["batch", "event"] = "batch",
    ) -> None:
        super().__init__(schema, optimizer)
        if not self.offset:
            raise RecloomError("JODIE has users and items, and this stream has one kind of node", "Use EDGE or TGN.")
        if schedule not in SCHEDULES or mean not in ("batch", "event"):
            raise RecloomError(f"schedule {schedule!r}, mean {mean!r}", "See --help.")
        self.save_hyperparameters()
        self.dim, self.schedule, self.mean = dim, schedule, mean
        self.static_dim = static_dim or self.num_destinations
        codes = torch.randn(self.num_destinations, static_dim)
        self.codes: Tensor | None
        self.register_buffer("codes", F.normalize(codes) if static_dim else None)
        self.initial = nn.Parameter(F.normalize(torch.rand(2, dim)))
        self.cell = NormalisedRNN(dim, (1 + self.num_features, 1 + self.num_features))
        self.memory = Memory(self.num_nodes, self.offset, dim, 1)
        self.project = nn.Linear(1, dim)
        nn.init.normal_(self.project.weight)
        width = self.static_dim + dim
        self.predict = nn.Linear(2 * dim, width)
        tables = (("user", self.num_sources), ("item", self.num_destinations))
        self.static = FusedEmbeddingBag([EmbeddingBagConfig(name, width, size, (name,)) for name, size in tables])

    def _begin_window(self, window: EventWindow, given: Tensor | None) -> tuple[Tensor, Plan, Past, Tensor]:
        """Return the states at the start, the plan, what was known, and the inputs of the update; go past it."""
        plan = self.memory.plan(window, None, given)
        nodes = plan.nodes.to(self.device).long()
        met = self.memory.time[nodes] >= 0
        start = torch.where(met[:, None], self.memory.states[nodes], self.initial[(nodes >= self.offset).long()])
        past = self.memory.pass_by(window)
        features = [] if window.features is None else [window.features]
        messages = [torch.cat([self._gap(past, side), *features], dim=1) for side in (0, 1)]
        return start, plan, past, self.cell.brought((messages[0], messages[1]))

    def _gap(self, past: Past, side: int) -> Tensor:
        """Return E x 1: the logarithm of the seconds since the last event, about 0 to 1.5; 0 where there was none."""
        seconds = past.gaps[:, side].clamp(min=0).double() / self.ticks
        return (torch.log1p(seconds) / 10).float()[:, None]

    def _predicted(self, user: Tensor, item: Tensor, gap: Tensor, source: Tensor, before: Tensor) -> Tensor:
        """Return n x (d + static) predictions, from the states of the users and of their last items."""
        projected = user * (1 + self.project(gap))
        known = (before >= 0)[:, None]
        found = self.predict(torch.cat([projected, item * known], dim=1)) + self.static.lookup("user", source.long())
        return found + self.static.lookup("item", before.clamp(min=0).long()) * known

    def _wanted(self, item: Tensor, destination: Tensor) -> Tensor:
        """Return n x (d + static): the items' states and static embeddings."""
        if self.codes is not None:
            static = self.codes[destination.long()]
        else:
            static = F.one_hot(destination.long(), self.num_destinations).to(item.dtype)
        return torch.cat([item, static], dim=1)

    def train_window(self, window: EventWindow) -> Tensor:
        """Return the loss of a window, and go past it."""
        # the last item of a source need not have an event in the window: it gets a row all the same
        items = self.memory.recent[window.source.long(), 0]
        given = (items[items >= 0].unique() + self.offset).int().cpu()
        return self._at_once(window, given) if self.schedule == "window" else self._by_steps(window, given)

    def _at_once(self, window: EventWindow, given: Tensor) -> Tensor:
        states, plan, past = self._roll(window, given)
        before, seen = past.recent[:, 0], plan.seen.to(self.device).long()
        last = self._last_items(window, plan, before)
        user, item = states.index_select(0, seen[:, 0]), states.index_select(0, seen[:, 1])
        said = self._predicted(user, states.index_select(0, last), self._gap(past, 0), window.source, before)
        made = states[: 2 * len(window)].view(len(window), 2, -1)
        pairs = ((said, self._wanted(item, window.destination)), (made[:, 0], user), (made[:, 1], item))
        losses = torch.stack([(new - old.detach()).square().mean(1) for new, old in pairs]).sum(0)
        if self.mean == "event":
            return losses.mean()
        sizes = plan.bounds.diff().to(self.device)
        return (losses[plan.order.to(self.device).long()] / sizes.repeat_interleave(sizes)).sum()

    def _by_steps(self, window: EventWindow, given: Tensor) -> Tensor:
        start, plan, past, inputs = self._begin_window(window, given)
        place, order = plan.place.to(self.device).long(), plan.order.to(self.device).long()
        row_of = torch.zeros(self.num_nodes, dtype=torch.int64, device=self.device)
        row_of[plan.nodes.to(self.device).long()] = torch.arange(len(plan.nodes), device=self.device)
        before = past.recent[:, 0]
        last_row = row_of[before.clamp(min=0).long() + self.offset]
        bounds = plan.bounds.tolist()
        if self.schedule == "event":
            bounds, order = list(range(len(window) + 1)), torch.arange(len(window), device=self.device)
        gap = self._gap(past, 0)
        states, losses = start, []
        for begin, end in itertools.pairwise(bounds):
            events = order[begin:end]
            users, items_ = place[events, 0], place[events, 1]
            user, item = states[users], states[items_]
            said = self._predicted(user, states[last_row[events]], gap[events], window.source[events], before[events])
            new = (self.cell.step(0, user, item, inputs[events, 0]), self.cell.step(1, item, user, inputs[events, 1]))
            wanted = self._wanted(item, window.destination[events]).detach()
            loss = F.mse_loss(said, wanted) + F.mse_loss(new[0], user.detach()) + F.mse_loss(new[1], item.detach())
            losses.append(loss if self.mean == "batch" else loss * (len(events) / len(window)))
            states = states.index_copy(0, torch.cat([users, items_]), torch.cat(new))
        self.memory.states[plan.nodes.to(self.device).long()] = states.detach()
        return torch.stack(losses).sum()

    @torch.no_grad()
    def score(self, window: EventWindow) -> Tensor:
        """Return minus the squared distance of each item to the prediction, but for what is the same for all items."""
        count = self.num_destinations
        items = torch.arange(count, device=self.device)
        states, plan, past = self._roll(window, (items + self.offset).int().cpu())
        user = states[plan.seen[:, 0].to(self.device).long()]
        item = states[self._last_items(window, plan, past.recent[:, 0])]
        said = self._predicted(user, item, self._gap(past, 0), window.source, past.recent[:, 0])
        dynamic, static = said[:, : self.dim], said[:, self.dim :]
        base = 2 * static if self.codes is None else 2 * static @ self.codes.t()
        # a state is held against a query with its squared length beside it, in widths that the kernel takes
        pad = -(-(self.dim + 1) // 16) * 16 - self.dim - 1
        query = F.pad(torch.cat([2 * dynamic, -dynamic.new_ones(len(window), 1)], dim=1), (0, pad))
        lengths = F.pad(torch.cat([states, states.square().sum(1, keepdim=True)], dim=1), (0, pad))
        return base + version_logits(query, query.new_empty(count, 0), lengths, plan, window.destination[:, None].int())

    def _last_items(self, window: EventWindow, plan: Plan, before: Tensor) -> Tensor:
        """Return the rows of the sources' last items as they are at each event; some row where there was none."""
        event = torch.arange(len(window), device=self.device)
        return newest_rows(plan, window, self.offset, event, before.clamp(min=0).long() + self.offset)

    def _roll(self, window: EventWindow, given: Tensor | None) -> tuple[Tensor, Plan, Past]:
        start, plan, past, inputs = self._begin_window(window, given)
        states = roll(self.cell, start, inputs, plan)
        self.memory.states[plan.nodes.to(self.device).long()] = states[plan.last.to(self.device).long()].detach()
        return states, plan, past

    @torch.no_grad()
    def observe(self, window: EventWindow) -> None:
        """Go past a window without scores."""
        self._roll(window, None)
