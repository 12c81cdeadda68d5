"""Wide & Deep (Cheng et al. 2016, arXiv 1606.07792): a linear part that memorises beside an MLP that generalises.

    dense, ids, crossed ids -> linear ------------------------\\
                                                               + -> logit
    dense, embeddings concatenated -> MLP(1024-512-256) -> 1 -/
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recloom.embedding import EmbeddingBagConfig, EmbeddingFactory, FusedEmbeddingBag, Pooling, bag_configs
from recloom.errors import RecloomError, unknown
from recloom.features import FeatureSchema
from recloom.model import RankingModule
from recloom.optim import OptimizerConfig
from recloom_rmc.mlp import mlp
from recloom_rmc.ncf import one_hot_ids


class Wide(nn.Module):
    """The wide part: w^T [x, phi(x)] + b for T labels (equation 1 and its cross-product transformations).

    A crossed pair of ids is one id of a hashed table.

    Args:
        schema: The data's features.
        crosses: Pairs of one-hot categories.
        cross_rows: Rows of each pair's table.
        embedding: Makes the tables.
        pooling: Pooling of bags.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        crosses: Sequence[tuple[str, str]],
        cross_rows: int,
        embedding: EmbeddingFactory,
        pooling: Pooling,
    ) -> None:
        super().__init__()
        labels = len(schema.labels)
        _check(schema, crosses)
        self.schema, self.crosses, self.cross_rows = schema, [tuple(pair) for pair in crosses], cross_rows
        self.ids = embedding(bag_configs(schema, labels, pooling))
        names = [f"{a} x {b}" for a, b in self.crosses]
        tables = [EmbeddingBagConfig(name, labels, cross_rows, (name,)) for name in names]
        self.crossed = embedding(tables) if tables else None
        self.dense = nn.Linear(len(schema.dense), labels)

    def forward(self, dense: Tensor, values: Tensor, offsets: Tensor | None, weights: Tensor | None) -> Tensor:
        """Return B x T."""
        logits = self.dense(dense) + self.ids(values, offsets, weights).sum(1)
        if self.crossed is None:
            return logits
        pairs = []
        for a, b in self.crosses:
            first, second = (one_hot_ids(self.schema, name, values, offsets) for name in (a, b))
            pairs.append((first * 0x9E3779B1 + second * 0x85EBCA77) % self.cross_rows)
        return logits + self.crossed(torch.cat(pairs)).sum(1)


class WideAndDeep(RankingModule):
    """What Wide & Deep models of one and of several tasks have in common: the wide part, and the deep part's input.

    Args:
        schema: Feature schema of the data; filled in from the data module.
        embedding_dim: Width of the embeddings, D.
        crosses: Pairs of one-hot categories whose combinations the wide part has weights for.
        cross_rows: Rows of a crossed pair's hashed table.
        embedding: Makes the tables.
        pooling: Pooling of bags.
        optimizer: Optimizers and learning rates.
    """

    def __init__(
        self,
        schema: dict[str, Any] | None,
        embedding_dim: int,
        crosses: Sequence[tuple[str, str]],
        cross_rows: int,
        embedding: EmbeddingFactory,
        pooling: Pooling,
        optimizer: OptimizerConfig | None,
    ) -> None:
        super().__init__(schema, optimizer)
        if not self.schema.sparse:
            text = f"{type(self).__name__} needs at least one sparse feature, and the schema has none"
            raise RecloomError(text, "Check the data.")
        self.wide = Wide(self.schema, crosses, cross_rows, embedding, pooling)
        self.sparse_arch = embedding(bag_configs(self.schema, embedding_dim, pooling))
        self.num_inputs = len(self.schema.dense) + self.sparse_arch.num_features * self.sparse_arch.output_dim

    @abstractmethod
    def deep_logits(self, inputs: Tensor) -> Tensor:
        """Return B x T of the dense features and all embeddings side by side, B x `num_inputs`."""

    def forward(
        self, dense: Tensor, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Return B logits, or B x T when the schema has T > 1 labels; inputs as in `RankingModule`."""
        vectors = self.sparse_arch(values, offsets, weights).flatten(1)  # B x F D
        logits = self.deep_logits(torch.cat([dense, vectors], dim=1)) + self.wide(dense, values, offsets, weights)
        return logits.squeeze(1) if logits.shape[1] == 1 else logits


class WideDeep(WideAndDeep):
    """Wide & Deep: linear in categories, dense features and crossed categories, plus an MLP on embeddings.

    Args:
        schema: Feature schema of the data; filled in from the data module.
        embedding_dim: Width of the embeddings, D.
        widths: Widths of the deep part's layers; the logits are added to them.
        crosses: Pairs of one-hot categories whose combinations the wide part has weights for: [[c0, c1], ...].
        cross_rows: Rows of a crossed pair's hashed table.
        embedding: Embedding tables: FusedEmbeddingBag, or any other EmbeddingBagCollection.
        pooling: Pooling of bags: sum, mean, or weighted.
        optimizer: Optimizers and learning rates.
    """

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        embedding_dim: int = 32,
        widths: Sequence[int] = (1024, 512, 256),
        crosses: Sequence[tuple[str, str]] = (),
        cross_rows: int = 100_000,
        embedding: EmbeddingFactory = FusedEmbeddingBag,
        pooling: Pooling = "sum",
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(schema, embedding_dim, crosses, cross_rows, embedding, pooling, optimizer)
        self.deep = mlp(self.num_inputs, widths, "widths")
        self.head = nn.Linear(widths[-1], len(self.schema.labels))

    def deep_logits(self, inputs: Tensor) -> Tensor:
        """Return B x T."""
        return self.head(self.deep(inputs))


def _check(schema: FeatureSchema, crosses: Sequence[tuple[str, str]]) -> None:
    lengths = {feature.name: feature.max_length for feature in schema.sparse}
    for pair in crosses:
        if len(pair) != 2:
            raise RecloomError(f"crosses has {list(pair)}", "Give pairs: [[c0, c1], [c0, c2]].")
        for name in pair:
            if name not in lengths:
                raise unknown("category", name, lengths)
            if lengths[name] != 1:
                raise RecloomError(f"crosses names {name!r}, which is a bag of ids", "Cross one-hot categories.")
