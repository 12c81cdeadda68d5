"""What the paper's model is compared with: logistic regression, and the factorization machine (Rendle 2010)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recloom.embedding import EmbeddingFactory, FusedEmbeddingBag, Pooling, bag_configs
from recloom.errors import RecloomError
from recloom.model import RankingModule
from recloom.optim import OptimizerConfig


class LogisticRegression(RankingModule):
    """A weight a category, a weight a dense feature, and a bias: no interactions at all.

    Args:
        schema: Feature schema of the data; filled in from the data module.
        embedding: Tables of the categories' weights: FusedEmbeddingBag, or any other EmbeddingBagCollection.
        pooling: Pooling of bags: sum, mean, or weighted.
        optimizer: Optimizers and learning rates.
    """

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        embedding: EmbeddingFactory = FusedEmbeddingBag,
        pooling: Pooling = "sum",
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(schema, optimizer)
        self.linear = _Linear(self, embedding, pooling)

    def forward(
        self, dense: Tensor, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Return B logits, or B x T when the schema has T > 1 labels; inputs as in `DLRM.forward`."""
        logits = self.linear(dense, values, offsets, weights)  # B x T
        return logits.squeeze(1) if logits.shape[1] == 1 else logits


class FactorizationMachine(RankingModule):
    """Second-order factorization machine (Rendle 2010, eq. 1): logistic regression plus <v_i, v_j> x_i x_j over pairs.

    Computed in linear time (lemma 3.1). A dense feature's vector is v_i x_i, so it takes part in the pairs. A bag is
    one feature with its pooled vector: pairs inside of a bag are left out.

    Args:
        schema: Feature schema of the data, with one label; filled in from the data module.
        embedding_dim: Length of the factors v.
        embedding: Tables of the factors: FusedEmbeddingBag, or any other EmbeddingBagCollection.
        pooling: Pooling of bags: sum, mean, or weighted.
        optimizer: Optimizers and learning rates.
    """

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        embedding_dim: int = 16,
        embedding: EmbeddingFactory = FusedEmbeddingBag,
        pooling: Pooling = "sum",
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(schema, optimizer)
        if len(self.schema.labels) != 1:
            raise RecloomError(
                f"FactorizationMachine has one logit, and the data {len(self.schema.labels)} labels", "Use DLRM."
            )
        self.linear = _Linear(self, FusedEmbeddingBag, pooling)
        self.factors = embedding(bag_configs(self.schema, embedding_dim, pooling))
        self.dense_factors = nn.Parameter(0.01 * torch.randn(len(self.schema.dense), self.factors.output_dim))

    def forward(
        self, dense: Tensor, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Return B logits; inputs as in `DLRM.forward`."""
        vectors = self.factors(values, offsets, weights)  # B x F x K
        scaled = dense.unsqueeze(2) * self.dense_factors  # B x (dense features) x K
        vectors = torch.cat([scaled, vectors], dim=1)
        pairs = 0.5 * (vectors.sum(1).square() - vectors.square().sum(1)).sum(1)  # B
        return self.linear(dense, values, offsets, weights).squeeze(1) + pairs


class _Linear(nn.Module):
    """w_0 + sum_i w_i x_i over dense features and categories, for T labels: tables of width T."""

    def __init__(self, module: RankingModule, embedding: EmbeddingFactory, pooling: Pooling) -> None:
        super().__init__()
        schema = module.schema
        if not schema.sparse:
            raise RecloomError(
                f"{type(module).__name__} needs at least one sparse feature, and the schema has none", "Check the data."
            )
        labels = len(schema.labels)
        self.weight = nn.Parameter(torch.zeros(len(schema.dense), labels))
        self.bias = nn.Parameter(torch.zeros(labels))
        self.sparse = embedding(bag_configs(schema, labels, pooling))
        if self.sparse.output_dim != labels:
            raise RecloomError(
                f"the embedding gives vectors of width {self.sparse.output_dim} for {labels} labels",
                "Use one that keeps the tables' width.",
            )

    def forward(self, dense: Tensor, values: Tensor, offsets: Tensor | None, weights: Tensor | None) -> Tensor:
        """Return B x T."""
        return self.bias + dense @ self.weight + self.sparse(values, offsets, weights).sum(1)
