"""Pooling with one weight a row: how much an id counts in its bags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from recloom.embedding import EmbeddingBagCollection, EmbeddingBagConfig, FusedEmbeddingBag
from recloom.errors import RecloomError, unknown
from recloom_dlrm.values import check_ids, table_layout, value_rows


class WeightedPoolingEmbeddingBag(EmbeddingBagCollection):
    """Bags as weighted sums, each id with a weight of its own (the reference's --weighted-pooling).

    A bag's vector is sum_i w[id_i] E[id_i], times the values' weights or over the bag's length as the table's
    pooling says. The weights are 1 at first.

    `table_weight` gives a table's rows E under its name, num_embeddings x D, and their weights w under
    "NAME/weights", num_embeddings x 1.

    Args:
        tables: The tables, all of one width.
        learned: Train the weights, as rows of tables of width 1; otherwise they stay as they are.
        seed: Seed of the initial values; by default the global seed (`seed_everything`).
    """

    def __init__(self, tables: Sequence[EmbeddingBagConfig], learned: bool = True, seed: int | None = None) -> None:
        super().__init__(tables)
        self.layout = table_layout(self.tables)
        self.rows = FusedEmbeddingBag([replace(table, pooling="weighted") for table in self.tables], seed)
        scalars = [replace(t, name=f"{t.name}/weights", embedding_dim=1, pooling="sum") for t in self.tables]
        self.row_weights = FusedEmbeddingBag(scalars, seed)
        if self.row_weights.weight.device.type != "meta":
            self.row_weights.weight.detach().fill_(1.0)
        self.row_weights.requires_grad_(learned)

    def forward(self, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Return the pooled rows, B x F x D; see the base class."""
        check_ids(values, offsets, self.layout)
        if self.layout.weighted and weights is None:
            raise RecloomError(
                "a table has weighted pooling, and the batch has no value weights", "Use pooling sum or mean."
            )
        own = value_rows(self.row_weights, values, offsets).squeeze(1)  # N
        scale = self.layout.coefficients(values, offsets, weights)
        return self.rows(values, offsets, own if scale is None else own * scale)

    def lookup(self, feature: str, ids: Tensor) -> Tensor:
        """Return the weighted rows of `ids`, ids.shape x D; see the base class."""
        if feature not in self.feature_names:
            raise unknown("feature", feature, self.feature_names)
        return self.rows.lookup(feature, ids) * self.row_weights.lookup(feature, ids)

    def table_weight(self, name: str) -> Tensor:
        """Return a table's rows, or their weights: a view; see above."""
        return (self.row_weights if name.endswith("/weights") else self.rows).table_weight(name)
