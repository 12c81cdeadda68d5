"""The Avazu click log (Kaggle, 2014)."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from recloom.data.formats.base import Column, RawBlock
from recloom.data.formats.text import TextFormat

_HOUR = r"^[0-9]{2}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])([01][0-9]|2[0-3])$"
_CATEGORIES = (
    "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category", "device_id",
    "device_ip", "device_model", "device_type", "device_conn_type", *(f"C{index}" for index in range(14, 22)),
)  # fmt: skip


class Avazu(TextFormat):
    """Comma, 24 columns: id, click, hour (YYMMDDHH), then 21 categories; a header line or none. No column is dense.

    `id` (beyond 64 bits, unique) is left out. `hour` gives `timestamp`, the unix seconds of the hour taken as UTC, and
    the categories `hour_of_day` and `weekday`. In C20, -1 is a value like any other.
    """

    name: str = "avazu"
    separator: str = ","
    fields: tuple[Column, ...] = (
        Column("id", "ignore"),
        Column("click", "label", "int"),
        Column("hour", "raw"),
        *(Column(name, "sparse") for name in _CATEGORIES),
    )
    derived: tuple[Column, ...] = (
        Column("hour_of_day", "sparse"),
        Column("weekday", "sparse"),
        Column("timestamp", "timestamp", "int"),
    )

    def derive(self, block: RawBlock) -> None:
        """Compute the time, the hour of the day and the weekday (0: Monday) of `hour`."""
        hour = block.columns["hour"].dictionary_encode()
        digits = pc.fill_null(hour.dictionary, "")
        good = pc.match_substring_regex(digits, _HOUR)
        times = pc.strptime(pc.if_else(good, digits, None), "%y%m%d%H", "s", error_is_null=True)
        if hour.null_count or times.null_count:
            wrong = pc.invert(pc.is_valid(times.take(hour.indices)))
            block.reject(wrong, "hour", "is no hour YYMMDDHH", block.columns["hour"])
        block.columns["timestamp"] = times.cast(pa.int64()).take(hour.indices)
        block.columns["hour_of_day"] = pc.utf8_slice_codeunits(digits, 6, 8).take(hour.indices)
        block.columns["weekday"] = pc.day_of_week(times).cast(pa.string()).take(hour.indices)
