"""HSNN (arXiv 2408.06653): a MoNN for items, one for each level of nodes, and the nodes, trained jointly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recloom.batch import Batch
from recloom.errors import RecloomError
from recloom.optim import OptimizerConfig
from recloom_hsnn.losses import node_losses
from recloom_hsnn.monn import MoNN
from recloom_hsnn.nodemetrics import KINDS, NodeMetrics
from recloom_hsnn.nodes import Assigned, HierarchicalIndex
from recloom_hsnn.overarch import Sizes
from recloom_hsnn.recent import NaturalNodes, RecentVectors
from recloom_hsnn.scorer import MoNNConfig, PairScorer, ScoreMany, SlopeMany, user_width
from recloom_hsnn.settings import NodesConfig, as_published
from recloom_hsnn.towers import TowerFactory

RECENT = 1 << 16  # items


class HSNN(MoNN):
    """Hierarchical structured neural network: nodes of items learned with the towers, and a scorer for each level.

    Training begins with the towers. After `nodes.start` of the steps, k-means on items' codes makes the nodes; from
    then on the losses of nodes (every level's cross-entropy, reconstruction, commitment, balance) join in, with a
    weight that grows. Logged beside MoNN's metrics: val_node1_ne, ... of every level with items at their nearest nodes,
    val_node1_soft_ne with soft assignment, and val_node1_used, _perplexity (both shares of the nodes) and _imbalance.

    Args:
        schema: Feature schema of the data; filled in from the data module.
        item_features: Features that describe the item; unset: those that the data name.
        monn: Sizes of the items' MoNN.
        levels: Sizes of the nodes' MoNNs, the coarsest level first, with user towers of their own; unset: nodes are
            scored by a copy of the items' over arch, on the same user tower.
        nodes: How many nodes there are, and how they are learned.
        fidelity: "safe": as `nodes` says. "v3": as in the paper: learned jointly from the first step, one
            reconstruction term, whole gradients, no revival, `ensemble_items`.
        ensemble_items: Whether an item's logit is a learned combination of its own and its leaf's (the paper's ensemble
            layer, which levels of nodes always have among them).
        user_tower: Makes the user tower: any RankingModule; unset: an MLP beside an attentional factorisation machine.
        item_tower: Makes the item tower: likewise.
        task_weights: Weights of the tasks' logits in the score that retrieval orders by; unset: the first task's.
        loss_weights: Weights of the tasks in the loss; unset: all alike.
        optimizer: Optimizers and learning rates; unset: Adam 0.002, row-wise Adagrad 0.05.
    """

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        item_features: Sequence[str] | None = None,
        monn: MoNNConfig | None = None,
        levels: list[MoNNConfig] | None = None,
        nodes: NodesConfig | None = None,
        fidelity: Literal["safe", "v3"] = "safe",
        ensemble_items: bool = False,
        user_tower: TowerFactory | None = None,
        item_tower: TowerFactory | None = None,
        task_weights: Sequence[float] | None = None,
        loss_weights: Sequence[float] | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        settings = nodes or NodesConfig()
        self._settings = as_published(settings) if fidelity == "v3" else settings
        self._level_configs = levels
        count = len(self._settings.sizes)
        if levels is not None and len(levels) != count:
            raise RecloomError(f"{len(levels)} levels are configured for {count} sizes of nodes", "Give one each.")
        if self._settings.source == "natural" and len(self._settings.features) != count:
            raise RecloomError("natural nodes need a feature of the item for each level", "Give nodes.features.")
        towers = (user_tower, item_tower)
        super().__init__(schema, item_features, monn, *towers, task_weights, loss_weights, optimizer)
        self.vector_dim = self.item_dim
        self.index = HierarchicalIndex(self._settings, self.vector_dim)
        self.level_scorers = nn.ModuleList(self._level_scorers(count))
        self.ensemble_items = ensemble_items or fidelity == "v3"
        kinds = torch.tensor([[1.0, 0.0, 0.0]] * (count + 1))
        self.ensemble = nn.Parameter(kinds, requires_grad=count > 1 or self.ensemble_items)
        self.recent = RecentVectors(RECENT, self.vector_dim)
        self.natural = (
            NaturalNodes(self._settings.sizes, self._settings.features, self.vector_dim)
            if self._settings.source == "natural"
            else None
        )
        self.node_metrics = NodeMetrics(self._settings.sizes)
        self._unobserved: tuple[Tensor, list[Assigned]] | None = None

    # Parts

    @property
    def shares_users(self) -> bool:
        """Whether nodes are scored on the items' own user tower."""
        return self._level_configs is None

    def _user_sizes(self) -> list[Sizes]:
        own = self._level_configs or []
        return [self.item_sizes, *(config.sizes() for config in own)]

    def _item_ids(self) -> Sequence[str]:
        return self._settings.features if self._settings.source == "natural" else ()

    def _level_scorers(self, count: int) -> list[PairScorer]:
        found, start = [], user_width(self.item_sizes)
        for level in range(count):
            if self._level_configs is None:
                config, span = self.monn, (0, user_width(self.item_sizes))
            else:
                config = self._level_configs[level]
                span = (start, start + user_width(config.sizes()))
                start = span[1]
            found.append(PairScorer(config, self.tasks, span, self.item_dim, self.item_sizes))
        return found

    def rows(self, users: Tensor, items: Tensor) -> Tensor:
        """Return B logits, or B x T."""
        logits = self.scorer(users, items)
        if self.ensemble_items and self.index.ready:
            with torch.no_grad():
                assigned = self.assign(items, self.alpha(1.0))
            above = self.node_logits(users, [one.hard for one in assigned])[-1]
            logits = self._combined(-1, logits, above)
        return self._squeezed(logits)

    def scorers(self) -> dict[str, nn.Module]:
        """Return the scorers of items and of every level's nodes."""
        weights = self.get_buffer("task_weights")
        found: dict[str, nn.Module] = {"score": ScoreMany(self.scorer, weights)}
        if self.scorer.sloped:
            found["slope"] = SlopeMany(self.scorer, weights)
        for level, scorer in enumerate(self.level_scorers):
            assert isinstance(scorer, PairScorer)
            found[f"node{level + 1}"] = ScoreMany(scorer, weights)
        return found

    def tables(self) -> dict[str, NDArray]:
        """Return the nodes."""
        if self.natural is None:
            return self.index.tree().tables()
        leaves = self.vector_dim + len(self._settings.sizes) - 1
        return self.index.tree(column=leaves).tables() | self.natural.parents()

    def facts(self) -> dict[str, Any]:
        """Return the weights of the ensemble."""
        weights = self.ensemble.detach().tolist()
        kept = weights if self.ensemble_items else [*weights[:-1], [1.0, 0.0, 0.0]]
        return {"ensemble": kept, "begun": self.index.ready}

    # Nodes

    def assign(self, items: Tensor, alpha: float) -> list[Assigned]:
        """Return where items (B x di codes) are at each level."""
        if self.natural is not None:
            return self.natural.assign(items, list(self.index.levels))
        return self.index.assign(items[:, : self.vector_dim], alpha)

    def node_logits(self, users: Tensor, vectors: list[Tensor]) -> list[Tensor]:
        """Return each level's B x T logits, for B users and, of each level, B node vectors."""
        found: list[Tensor] = []
        for level, (scorer, nodes) in enumerate(zip(self.level_scorers, vectors, strict=True)):
            own = scorer(users, nodes)
            found.append(self._combined(level, own, found[-1]) if found else own)
        return found

    def _combined(self, level: int, own: Tensor, above: Tensor) -> Tensor:
        weight, before, bias = self.ensemble[level].unbind()
        return weight * own + before * above + bias

    def alpha(self, progress: float) -> float:
        """Return the inverse temperature after `progress` (0 to 1) of the training."""
        return self._settings.max_alpha * max(progress, 1e-3) ** self._settings.exponent

    def index_weight(self, progress: float) -> float:
        """Return the weight of the nodes' losses: up linearly from .01 where nodes begin to 1."""
        return min(1.0, (progress - self._settings.start) / max(self._settings.warmup, 1e-9) + 1e-2)

    # Training

    def objective(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the items' logits, and the loss of items and, once there are nodes, theirs."""
        users, items = self.codes(batch)
        logits = self.rows(users, items)
        loss = self.loss(logits, batch)
        progress = self.trainer.global_step / max(float(self.trainer.estimated_stepping_batches), 1.0)
        self.recent.add(items[:, : self.vector_dim])
        if progress >= self._settings.start:
            if not self.index.ready:
                self._begin()
            weight = self.index_weight(progress)
            parts, assigned = node_losses(self, users, items, batch, progress)
            self._unobserved = (items.detach(), assigned)
            self.log_dict({f"train_{name}": value.detach() for name, value in parts.items()}, on_epoch=False)
            loss = loss + weight * torch.stack(list(parts.values())).sum()
        return logits, loss

    def _begin(self) -> None:
        """Make the nodes; their scorers begin as the items' where they have its sizes."""
        if self.natural is None:
            self.index.begin(self.recent.known())
        self.index.get_buffer("begun").fill_(True)
        if self._level_configs is None:
            for scorer in self.level_scorers:
                scorer.load_state_dict(self.scorer.state_dict())

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step; then count how nodes are used and revive dead ones, which backward may not see."""
        super().optimizer_step(*args, **kwargs)
        if self._unobserved is not None:
            self._observe(*self._unobserved)
            self._unobserved = None

    @torch.no_grad()
    def _observe(self, items: Tensor, assigned: list[Assigned]) -> None:
        self.index.observe(items[:, : self.vector_dim], assigned)
        if self.natural is not None:
            self.natural.note(assigned)

    # Evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the metrics of items and of nodes."""
        users, items = self.codes(batch)
        self.evaluated("val").add(self.rows(users, items), batch)
        if not self.index.ready or self.tasks > 1:
            return
        assigned = self.assign(items, self.alpha(1.0))
        for kind in KINDS:
            vectors = [one.soft if kind else one.hard for one in assigned]
            self.node_metrics.add(kind, self.node_logits(users, vectors), batch)
        self.node_metrics.count([one.node for one in assigned])

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        super().on_validation_epoch_end()
        for name, value in self.node_metrics.take().items():
            self.log(f"val_{name}", value)
