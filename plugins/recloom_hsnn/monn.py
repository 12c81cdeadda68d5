"""MoNN (arXiv 2408.06653, section 4.1): user, item and interaction towers and an over arch.

    user features -> user tower -> nu embeddings, once a request --\\
    item features -> item tower -> ni embeddings, stored ----------- over arch -> a logit a task
                     interaction tower -> nx embeddings, a pair ----/

Letters in shapes: B rows, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from recloom.errors import RecloomError
from recloom.optim import OptimizerConfig
from recloom.retrieval.module import Encoder, RetrievalModule, side_schema
from recloom_hsnn.overarch import Sizes
from recloom_hsnn.scorer import MoNNConfig, PairScorer, ScoreMany, item_width, spans, user_width
from recloom_hsnn.towers import Tower, TowerFactory

ITEM_SCALE = 0.1  # of how an item's embeddings begin


def default_optimizer() -> OptimizerConfig:
    """Return Adam for dense layers and row-wise Adagrad for embeddings."""
    return OptimizerConfig(dense="Adam", dense_lr=0.002, sparse="rowwise_adagrad", sparse_lr=0.05)


class MoNN(RetrievalModule):
    """Modular neural network: a user's part computed once a request, items' parts stored, an over arch that joins them.

    Args:
        schema: Feature schema of the data; filled in from the data module.
        item_features: Features that describe the item; unset: those that the data name.
        monn: Sizes.
        user_tower: Makes the user tower: any RankingModule, of any plugin; unset: an MLP beside an attentional
            factorisation machine.
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
        user_tower: TowerFactory | None = None,
        item_tower: TowerFactory | None = None,
        task_weights: Sequence[float] | None = None,
        loss_weights: Sequence[float] | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(schema, item_features, optimizer or default_optimizer())
        self.monn = monn or MoNNConfig()
        self.item_sizes = self.monn.sizes()
        self.tasks = len(self.schema.labels)
        self.user_sides = self._user_sizes()
        user, item = self.sides.schemas
        widths = [user_width(sizes) for sizes in self.user_sides]
        made = (user_tower or Tower)(side_schema(user, sum(widths)))
        if isinstance(made, Tower):
            for sizes, end in zip(self.user_sides, accumulate(widths), strict=True):
                made.separate(spans(end - user_width(sizes), sizes.user, sizes.dim))
        self.user_encoder = Encoder.of(made)
        made = (item_tower or Tower)(side_schema(item, item_width(self.item_sizes)))
        if isinstance(made, Tower):
            made.separate(spans(0, self.item_sizes.item, self.item_sizes.dim), ITEM_SCALE)
        self.item_encoder = Encoder.of(made, [(0, self.item_sizes.item * self.item_sizes.dim)], self._item_ids())
        self.item_dim = item_width(self.item_sizes)
        self.scorer = PairScorer(self.monn, self.tasks, (0, widths[0]), self.item_dim, self.item_sizes)
        for name, weights in (("task_weights", task_weights), ("loss_weights", loss_weights)):
            if weights is not None and len(weights) != self.tasks:
                raise RecloomError(f"{name} has {len(weights)} numbers for {self.tasks} tasks", "Give one a label.")
        first = [1.0] + [0.0] * (self.tasks - 1)
        self.register_buffer("task_weights", torch.tensor(list(task_weights or first)), persistent=False)
        self.loss_weights = list(loss_weights or [1.0] * self.tasks)

    def _user_sizes(self) -> list[Sizes]:
        """Return the sizes of the scorers that the user's code has a part for, the item level's first."""
        return [self.item_sizes]

    def _item_ids(self) -> Sequence[str]:
        """Return the item's features whose ids its code has."""
        return ()

    def rows(self, users: Tensor, items: Tensor) -> Tensor:
        """Return B logits, or B x T."""
        return self._squeezed(self.scorer(users, items))

    def scorers(self) -> dict[str, nn.Module]:
        """Return the scorer of items."""
        return {"score": ScoreMany(self.scorer, self.get_buffer("task_weights"))}

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the mean cross-entropy, of several tasks the weighted sum."""
        if self.tasks == 1:
            return super().loss(logits, batch)
        weights = None if batch.weights is None else batch.weights[:, None].expand_as(logits)
        losses = nn.functional.binary_cross_entropy_with_logits(
            logits.float(), batch.labels, weights, reduction="none"
        ).sum(0) / (len(logits) if weights is None else batch.weights.sum())
        return (losses * losses.new_tensor(self.loss_weights)).sum()

    def _squeezed(self, logits: Tensor) -> Tensor:
        return logits.squeeze(1) if self.tasks == 1 else logits
