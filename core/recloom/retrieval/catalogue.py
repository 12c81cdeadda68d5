"""The items and users of a data module, as indexes and searches take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule

from recloom.data.module import BlockDataModule
from recloom.errors import DataError, RecloomError
from recloom.features import FeatureSchema
from recloom.retrieval.index import Ids
from recloom.retrieval.module import RetrievalModule
from recloom.retrieval.rows import Rows, distinct


def items_of(data: LightningDataModule, module: RetrievalModule, item_id: str = "") -> Rows:
    """Return the items that `data` knows, or those that a click log mentions, each with its first row's features.

    Args:
        data: A data module with `item_rows`, or one of blocks of rows.
        module: The model, which knows which features are the item's.
        item_id: The feature that is the item's id in a log; "": as the schema says, or the only one there is.
    """
    if hasattr(data, "item_rows"):
        return data.item_rows()
    schema = module.sides.schemas[1]
    name, ones = _id_feature(schema, item_id)
    if not name:
        raise RecloomError(
            f"which of the item's features is its id? {', '.join(ones) or 'none has one id a row'}",
            "Say it: --item_id NAME. Or give the items: --items FILE.",
        )
    parts = []
    for batch in _blocks(data):
        side = module.sides.batch(batch, 1)
        parts.append(distinct(Rows(side.sparse_features[name][0].long(), side, schema)))
    return distinct(Rows.concat(parts))


def shown(data: LightningDataModule, module: RetrievalModule, ids: Ids) -> Ids | None:
    """Return how many training rows are of each of `ids`; None where the data do not tell.

    Args:
        data: A data module with `item_counts`, or one of blocks of rows.
        module: The model, which knows which features are the item's.
        ids: N ids of items.
    """
    if hasattr(data, "item_counts"):
        return data.item_counts()[ids]
    name, _ = _id_feature(module.sides.schemas[1], "")
    if not name or not isinstance(data, BlockDataModule):
        return None
    counts = np.zeros(int(ids.max(initial=-1)) + 1, np.int64)
    for batch in _blocks(data, ("train",)):
        rows = module.sides.batch(batch, 1).sparse_features[name][0].numpy()
        counts += np.bincount(rows[rows < len(counts)], minlength=len(counts))
    return counts[ids]


def _id_feature(schema: FeatureSchema, item_id: str) -> tuple[str, list[str]]:
    """Return the item's feature that is its id, "" if none is known to be, and those that may be."""
    ones = [feature.name for feature in schema.sparse if feature.max_length == 1]
    name = item_id or schema.item_id or (ones[0] if len(ones) == 1 else "")
    return (name if name in ones else ""), ones


def users_of(data: LightningDataModule, module: RetrievalModule, limit: int) -> Rows:
    """Return the users that `data` knows, or the sides of a log's rows, one of each user; at most `limit`.

    Of a log whose rows are in no groups, each row is a user.
    """
    if hasattr(data, "user_rows"):
        return data.user_rows(limit)
    parts: list[Rows] = []
    for batch in _blocks(data, ("test", "val", "train")):
        side = module.sides.batch(batch, 0)
        if "group" not in side.extras:
            return Rows(torch.arange(len(side)), side, module.sides.schemas[0]).slice(0, limit)
        parts.append(distinct(Rows(side.extras["group"].long(), side, module.sides.schemas[0])))
        if sum(map(len, parts)) >= limit:
            break
    return distinct(Rows.concat(parts)).slice(0, limit)


def _blocks(data: Any, splits: tuple[str, ...] = ("train", "val", "test")) -> Any:
    """Yield the blocks of the splits that there are."""
    if not isinstance(data, BlockDataModule):
        raise RecloomError(f"{type(data).__name__} tells no items", "Give them: --items FILE.")
    some = False
    for split in splits:
        if not data.has(split):
            continue
        source = data.source(split)
        for index in range(len(source.block_rows(0))):
            some = True
            yield source.load(0, index)
    if not some:
        raise DataError("the data have no rows", "Look at its path.")
