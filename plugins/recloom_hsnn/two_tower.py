"""Two towers and an inner product: the paper's base line, and the first step of a cascade."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recloom.errors import RecloomError
from recloom.optim import OptimizerConfig
from recloom.retrieval.module import Encoder, RetrievalModule, side_schema
from recloom_hsnn.monn import ITEM_SCALE, default_optimizer
from recloom_hsnn.towers import Tower, TowerFactory


class InnerProduct(nn.Module):
    """Scores by the inner product of the codes."""

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Return U x L scores of users U x d and items U x L x d."""
        return torch.einsum("ud,uld->ul", users, items)


class TwoTower(RetrievalModule):
    """Two towers and the inner product of what they return, plus a number that all pairs share.

    Args:
        schema: Feature schema of the data; filled in from the data module.
        item_features: Features that describe the item; unset: those that the data name.
        dim: Width of the codes.
        user_tower: Makes the user tower: any RankingModule; unset: an MLP beside an attentional factorisation machine.
        item_tower: Makes the item tower: likewise.
        optimizer: Optimizers and learning rates; unset: Adam 0.002, row-wise Adagrad 0.05.
    """

    inner_product = True

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        item_features: Sequence[str] | None = None,
        dim: int = 40,
        user_tower: TowerFactory | None = None,
        item_tower: TowerFactory | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(schema, item_features, optimizer or default_optimizer())
        if len(self.schema.labels) != 1:
            raise RecloomError(f"TwoTower has one task, the data have {len(self.schema.labels)}", "Use MoNN.")
        user, item = self.sides.schemas
        towers = [(user_tower or Tower)(side_schema(user, dim)), (item_tower or Tower)(side_schema(item, dim))]
        for tower, scale in zip(towers, (1.0, ITEM_SCALE), strict=True):
            if isinstance(tower, Tower):  # begins as MoNN's do; here all of a user's interests share one embedding
                tower.separate([(0, dim)], scale)
        self.user_encoder, self.item_encoder = map(Encoder.of, towers)
        self.bias = nn.Parameter(torch.zeros(1))

    def rows(self, users: Tensor, items: Tensor) -> Tensor:
        """Return B logits."""
        return (users * items).sum(1) + self.bias

    def scorers(self) -> dict[str, nn.Module]:
        """Return the inner product."""
        return {"score": InnerProduct()}
