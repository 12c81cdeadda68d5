"""Neural collaborative filtering, NeuMF (He et al. 2017, arXiv 1708.05031, section 3.4).

    user, item -> MF tables  -> product ---------\\
                                                  concatenated -> linear -> logit
    user, item -> MLP tables -> MLP(256-128-64) -/

DeepRecSys's NCF reads the MF tables twice on CPU, and adds the two vectors that the paper multiplies (eq. 8).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recloom.embedding import EmbeddingBagConfig, EmbeddingFactory, FusedEmbeddingBag, bag_configs
from recloom.errors import RecloomError, unknown
from recloom.features import FeatureSchema
from recloom.model import RankingModule
from recloom.optim import OptimizerConfig
from recloom_rmc.mlp import mlp


class NCF(RankingModule):
    """Neural collaborative filtering (NeuMF): a generalised matrix factorization and an MLP, on two features.

    Every other feature, dense ones too, is left aside.

    Args:
        schema: Feature schema of the data, with one label; filled in from the data module.
        user: Name of the user's feature; by default the first.
        item: Name of the item's feature; by default the second.
        embedding_dim: Width of the factors, and of the MLP's own embeddings.
        widths: Widths of the MLP's layers.
        embedding: Embedding tables: FusedEmbeddingBag, or any other EmbeddingBagCollection.
        optimizer: Optimizers and learning rates.
    """

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        user: str | None = None,
        item: str | None = None,
        embedding_dim: int = 64,
        widths: Sequence[int] = (256, 128, 64),
        embedding: EmbeddingFactory = FusedEmbeddingBag,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(schema, optimizer)
        names = self.schema.sparse_names
        if len(names) < 2 or len(self.schema.labels) != 1:
            raise RecloomError(
                f"NCF needs a user, an item and one label; the data have {len(names)} categories and "
                f"{len(self.schema.labels)} labels",
                "Check the data.",
            )
        for name in (user, item):
            if name is not None and name not in names:
                raise unknown("category", name, names)
        pair = (user or names[0], item or names[1])
        if pair[0] == pair[1]:
            raise RecloomError(f"NCF's user and item are both {pair[0]!r}", "Name two features.")
        for name in pair:
            if self.schema.sparse[names.index(name)].max_length != 1:
                raise RecloomError(f"NCF's feature {name!r} is a bag of ids", "A sample has one user and one item.")
        self.pair = pair
        tables = _tables(bag_configs(self.schema, embedding_dim), pair)
        self.factors = embedding(tables)
        self.sparse_arch = embedding(tables)
        self.over_arch = mlp(2 * self.sparse_arch.output_dim, widths, "widths")
        self.head = nn.Linear(self.factors.output_dim + widths[-1], 1)

    def forward(
        self, dense: Tensor, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Return B logits; inputs as in `RankingModule`."""
        user, item = (one_hot_ids(self.schema, name, values, offsets) for name in self.pair)  # B each
        product = self.factors.lookup(self.pair[0], user) * self.factors.lookup(self.pair[1], item)  # B x D
        rows = [self.sparse_arch.lookup(self.pair[0], user), self.sparse_arch.lookup(self.pair[1], item)]
        return self.head(torch.cat([product, self.over_arch(torch.cat(rows, dim=1))], dim=1)).squeeze(1)


def one_hot_ids(schema: FeatureSchema, name: str, values: Tensor, offsets: Tensor | None) -> Tensor:
    """Return the B ids of a feature that has exactly one a sample, from the key-major ids of all features."""
    place, count = schema.sparse_names.index(name), len(schema.sparse)
    if offsets is None:
        return values.view(count, -1)[place]
    batch = (offsets.shape[0] - 1) // count
    return values.index_select(0, offsets[place * batch : place * batch + batch])


def _tables(tables: list[EmbeddingBagConfig], pair: tuple[str, str]) -> list[EmbeddingBagConfig]:
    """Return the tables of the two features, cut down to them."""
    found = []
    for table in tables:
        names = tuple(name for name in table.feature_names if name in pair)
        if names:
            found.append(EmbeddingBagConfig(table.name, table.embedding_dim, table.num_embeddings, names))
    return found
