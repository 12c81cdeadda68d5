"""What embedding collections that translate ids have in common: checks, and rows value by value."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from recloom import rowgrad
from recloom.embedding import EmbeddingBagConfig, FusedEmbeddingBag
from recloom.errors import RecloomError
from recloom.rowlayout import RowLayout, bag_of_values, stack_layout
from recloom.tracing import is_exporting


def table_layout(tables: Sequence[EmbeddingBagConfig]) -> RowLayout:
    """Return the layout of whole tables: the ranges of ids and the poolings."""
    return stack_layout([(table.num_embeddings, table.feature_names, table.pooling) for table in tables])


def check_ids(values: Tensor, offsets: Tensor | None, layout: RowLayout) -> Tensor | None:
    """Raise DataError for an id outside its table; return the feature of each of the N values, None if one-hot."""
    if not is_exporting():
        rowgrad.check(values, offsets, layout)
    if offsets is None:
        return None
    return bag_of_values(values, offsets) // ((offsets.shape[0] - 1) // layout.num_features)


def value_rows(bag: nn.Module, ids: Tensor, offsets: Tensor | None) -> Tensor:
    """Return the rows of a FusedEmbeddingBag value by value, un-pooled, with row gradients: N x D."""
    if not isinstance(bag, FusedEmbeddingBag):
        raise RecloomError(
            f"rows of bags are needed one by one, and {type(bag).__name__} only gives pooled ones",
            "With sharded tables use operation add or concat, or one-hot data.",
        )
    rows, _ = bag.layout.rows_and_bags(ids, offsets, bags=False)
    if is_exporting():
        return F.embedding(rows, bag.weight)
    whole = RowLayout(("rows",), (0,), (bag.weight.shape[0],), ("sum",), (0,))
    return rowgrad.lookup(bag.weight, rows, None, None, whole).squeeze(1)


def pool_values(vectors: Tensor, values: Tensor, offsets: Tensor, weights: Tensor | None, layout: RowLayout) -> Tensor:
    """Return B x F x D, the bags of N x D `vectors`, pooled as `layout` says."""
    if layout.weighted and weights is None:
        raise RecloomError(
            "a table has weighted pooling, and the batch has no value weights", "Use pooling sum or mean."
        )
    scale = layout.coefficients(values, offsets, weights)
    if scale is not None:
        vectors = vectors * scale[:, None]
    bag, batch = bag_of_values(values, offsets), (offsets.shape[0] - 1) // layout.num_features
    feature = bag // batch
    out = vectors.new_zeros(batch, layout.num_features, vectors.shape[1])
    return out.index_put((bag - feature * batch, feature), vectors, accumulate=True)
