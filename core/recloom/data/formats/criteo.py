"""The Criteo display advertising logs: Kaggle (one file of 7 days) and Terabyte (24 files, a day each)."""

from __future__ import annotations

from recloom.data.formats.base import Column
from recloom.data.formats.text import TextFormat


class Criteo(TextFormat):
    """Kaggle's log: TAB, no header, 40 columns: label, 13 counts I1-I13 (I2 may be negative), 26 categories C1-C26.

    Categories are 8 hexadecimal digits. Rows are in the order of time, without times. Counts become log(x+1) with
    negative ones as 0, as in the DLRM reference; missing counts become 0.
    """

    name: str = "criteo"
    dense_transform: str = "log"
    default_split: str = "reference"
    fields: tuple[Column, ...] = (
        Column("label", "label", "int"),
        *(Column(f"I{index}", "dense", "int") for index in range(1, 14)),
        *(Column(f"C{index}", "sparse", "hex") for index in range(1, 27)),
    )


class CriteoTerabyte(Criteo):
    """The Terabyte log: the same columns; give the day files (day_0.gz ... day_23.gz) in order, a day each."""

    name: str = "criteo_terabyte"
