"""The two sides of a schema: features of who asks, and features of the candidate item. Imports no Lightning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from recloom.batch import Batch, KeyedJaggedTensor
from recloom.errors import RecloomError, suggest
from recloom.features import FeatureSchema


def split_schema(schema: FeatureSchema, item_features: Sequence[str] = ()) -> tuple[FeatureSchema, FeatureSchema]:
    """Return the schemas of the user's side and the item's, without labels.

    Histories, the time and the group are the user's.

    Args:
        schema: Feature schema of the data.
        item_features: Names of the item's features; by default those that the schema names.

    Raises:
        RecloomError: There are none, a name is unknown, or a side has no sparse feature.
    """
    names = tuple(item_features) or schema.item_features
    known = [*(feature.name for feature in schema.dense), *schema.sparse_names]
    if not names:
        raise RecloomError(
            "the data do not say which features describe the item",
            "Name them: --model.item_features '[item, category]'.",
        )
    for name in names:
        if name not in known:
            raise RecloomError(f"item_features: the data have no feature {name!r}", suggest(name, known))
    item = FeatureSchema(
        dense=tuple(feature for feature in schema.dense if feature.name in names),
        sparse=tuple(feature for feature in schema.sparse if feature.name in names),
        labels=(),
        item_features=names,
        item_id=schema.item_id,
    )
    user = dataclasses.replace(
        schema,
        dense=tuple(feature for feature in schema.dense if feature.name not in names),
        sparse=tuple(feature for feature in schema.sparse if feature.name not in names),
        labels=(),
        weight="",
        item_features=(),
        item_id="",
        info={},
    )
    for side, found in (("user", user), ("item", item)):
        if not found.sparse:
            raise RecloomError(f"the {side}'s side has no sparse feature", "Each side of the data needs one at least.")
    return user, item


class Sides:
    """Splits batches of a schema into the user's side and the item's.

    Args:
        schema: Feature schema of the data.
        item_features: See `split_schema`.
    """

    def __init__(self, schema: FeatureSchema, item_features: Sequence[str] = ()) -> None:
        self.schemas = split_schema(schema, item_features)
        dense = [feature.name for feature in schema.dense]
        self._dense = [[dense.index(feature.name) for feature in side.dense] for side in self.schemas]
        self._names = schema.sparse_names

    def tensors(
        self, dense: Tensor, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor, Tensor | None, Tensor | None], ...]:
        """Return (dense, values, offsets, weights) of the user's side and of the item's."""
        sparse = KeyedJaggedTensor(self._names, values, offsets=offsets, weights=weights)
        found = []
        for columns, side in zip(self._dense, self.schemas, strict=True):
            part = sparse.select(side.sparse_names)
            found.append((_columns(dense, columns), part.values, part.bag_offsets, part.weights))
        return tuple(found)

    def batch(self, batch: Batch, side: int) -> Batch:
        """Return the user's side (0) or the item's (1) of `batch`, labels and all rows kept."""
        return dataclasses.replace(
            batch,
            dense_features=_columns(batch.dense_features, self._dense[side]),
            sparse_features=batch.sparse_features.select(self.schemas[side].sparse_names),
            sequences=batch.sequences if side == 0 else {},
            timestamps=batch.timestamps if side == 0 else None,
        )


def _columns(dense: Tensor, columns: list[int]) -> Tensor:
    if columns and columns == list(range(columns[0], columns[-1] + 1)):
        return dense[:, columns[0] : columns[-1] + 1]
    return dense[:, columns]
