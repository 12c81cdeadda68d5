"""KDD Cup 2012, track 2: the search advertising log of Tencent's soso.com."""

from __future__ import annotations

import argparse
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recloom.data.formats.base import Column, RawBlock
from recloom.data.formats.text import TextFormat

_CATEGORIES = (
    "DisplayURL", "AdID", "AdvertiserID", "Depth", "Position",
    "QueryID", "KeywordID", "TitleID", "DescriptionID", "UserID",
)  # fmt: skip


class KDD12(TextFormat):
    """training.txt: TAB, no header, 12 columns: Click, Impression, then 10 categories (DisplayURL ... UserID).

    The contest's pages name the columns; their order here is from memory and was not checked against the file.

    A line sums up several impressions of one ad for one query and user. It becomes one row, with the label clicks /
    impressions and the weight impressions; or with `--expand` a clicked row of weight clicks and one without click of
    weight impressions - clicks (the same log loss, and labels that are 0 or 1).
    """

    name: str = "kdd12"
    labels: Literal["binary", "rate", "any"] = "rate"
    fields: tuple[Column, ...] = (
        Column("Click", "raw", "int"),
        Column("Impression", "raw", "int"),
        *(Column(name, "sparse") for name in _CATEGORIES),
    )
    derived: tuple[Column, ...] = (Column("label", "label", "float"), Column("weight", "weight", "float"))

    def __init__(self, expand: bool = False) -> None:
        self.expand = expand

    def derive(self, block: RawBlock) -> None:
        """Compute label and weight; with `expand`, also the second row of a line."""
        clicks = block.columns["Click"].fill_null(-1).to_numpy()
        impressions = block.columns["Impression"].fill_null(0).to_numpy()
        block.reject(impressions < 1, "Impression", "is not a positive number", block.columns["Impression"])
        block.reject(
            (clicks < 0) | (clicks > impressions), "Click", "is not in 0 .. Impression", block.columns["Click"]
        )
        if not self.expand:
            block.columns["label"] = pa.array(clicks / np.maximum(impressions, 1))
            block.columns["weight"] = pa.array(impressions.astype(np.float64))
            return
        weights = np.stack([clicks, impressions - clicks], axis=1)  # rows x (clicked, not clicked)
        kept = (weights > 0) | (block.rejected[:, None] & [True, False])
        row, column = np.nonzero(kept)
        block.take(row)
        block.columns["label"] = pc.cast(pa.array(column == 0), pa.float64())
        block.columns["weight"] = pa.array(weights[row, column].astype(np.float64))

    @classmethod
    def add_arguments(cls, parser: argparse._ArgumentGroup) -> None:
        """Add `--expand`."""
        parser.add_argument("--expand", action="store_true", help="rows with labels 0 and 1 instead of click rates")

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """Return the format, with `--expand` or without."""
        return cls(expand=arguments.expand)
