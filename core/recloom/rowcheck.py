"""Checks of a lookup's arguments: their lengths, and that each id is inside its table."""

from __future__ import annotations

import torch
from torch import Tensor

from recloom.errors import DataError
from recloom.rowlayout import RowLayout


def check_lengths(ids: Tensor, offsets: Tensor | None, weights: Tensor | None, layout: RowLayout) -> None:
    """Raise DataError when the tensors' lengths do not fit one another."""
    bags = len(ids) if offsets is None else len(offsets) - 1
    if bags % layout.num_features:
        raise DataError(
            f"{bags} bags cannot be split over {layout.num_features} features", "Ids are key-major, F*B bags."
        )
    if weights is not None and len(weights) != len(ids):
        raise DataError(f"{len(ids)} ids have {len(weights)} weights", "Give every id its weight.")


def check(ids: Tensor, offsets: Tensor | None, layout: RowLayout) -> None:
    """Raise DataError for an id outside its table; on CUDA assert on the device instead of waiting for it."""
    inside = (ids >= 0) & (ids < layout.per_value("rows", ids, offsets))
    if ids.device.type == "cpu":
        if not bool(inside.all()):
            raise outside(layout, ids, offsets, int(inside.logical_not().nonzero()[0]))
    elif ids.device.type != "meta":
        torch._assert_async(inside.all(), "an embedding id is outside its table")


def outside(layout: RowLayout, ids: Tensor, offsets: Tensor | None, position: int) -> DataError:
    """Return the error for the id at `position` of `ids`."""
    ends = None if offsets is None else offsets[:: (len(offsets) - 1) // layout.num_features][1:].contiguous()
    per_feature = len(ids) // layout.num_features
    index = position // per_feature if ends is None else int(torch.searchsorted(ends, position, right=True))
    name, rows = layout.features[index], layout.rows[index]
    return DataError(
        f"feature {name!r}: id {int(ids[position])} is outside its table of {rows} rows",
        "Ids go from 0 to rows - 1: prepare the data and build the model with the same schema.",
    )
