"""The tables of `recloom bench rmc`."""

from __future__ import annotations

from typing import Any

from recloom.document import Report
from recloom_rmc.bench import breakdown

CACHES = (100, 1_000, 10_000)
"""Rows of the LRU caches of the hit curves."""


def tell(report: Report, results: list[dict[str, Any]]) -> None:
    """Put the tables of `results` into a report."""
    report.section("Operators and floors")
    header = (
        "preset",
        "batch",
        "ms",
        "samples/s",
        *breakdown.KINDS,
        "FC floor ms",
        "gather floor ms",
        "binds",
        "x floor",
    )
    rows = [
        (
            item["preset"],
            r["batch"],
            round(r["milliseconds"], 3),
            round(r["samples_per_second"]),
            *(f"{r['shares'][kind]:.0%}" for kind in breakdown.KINDS),
            *(round(r["floors_ms"][name], 4) for name in ("FC", "gather")),
            r["binds"],
            round(r["x_floor"], 2),
        )
        for item in results
        for r in item["sweep"]
    ]
    report.table(header, rows)
    report.section("Gather and FC beside what the machine allows")
    report.table(
        ("preset", "GFLOP/s peak", "FC of peak at 256", "random row ns", "gather ns", "x floor", "x FBGEMM"),
        [
            (
                item["preset"],
                round(item["matrix_peak"] / 1e9, 1),
                round(item["fc_of_peak"], 3),
                round(item["random_row_ns"], 1),
                round(item["gather"]["nanoseconds"], 1),
                round(item["gather"]["x_floor"], 2),
                "not installed" if item["gather"]["x_fbgemm"] is None else round(item["gather"]["x_fbgemm"], 2),
            )
            for item in results
        ],
        "`gather`: a lookup of this framework's tables at batch 64; `x FBGEMM`: how many times as fast as its "
        "table-batched embeddings.",
    )
    report.section("Locality")
    report.table(
        ("preset", "trace", "unique", *(f"LRU {size:,}" for size in CACHES), "cold ns", "warm ns", "replayed ns"),
        [
            (
                item["preset"],
                r["trace"],
                round(r["unique"], 3),
                *(round(share, 3) for share in r["hits"].values()),
                *(round(r[name], 1) for name in ("cold_ns", "warm_ns", "replayed_ns")),
            )
            for item in results
            for r in item["locality"]
        ],
        "A lookup at batch 64: after the caches were emptied, after the same trace went through, the same ids again. "
        "LRU: the share of 20,000 accesses of one table that a cache of so many rows holds.",
    )
