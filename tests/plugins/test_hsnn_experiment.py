"""`recloom reproduce hsnn` and `recloom bench hsnn` with few rows: their course, not their results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recloom.testing import run_cli
from recloom_hsnn import experiments
from recloom_hsnn.compare import Setting


def test_it_measures_and_judges(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = {"items": 1200, "sizes": (4, 16), "large": 2000, "large_sizes": (4, 32)}
    tiny = Setting(rows=8192, evaluated=2000, queries=6, large_queries=3, **sizes)
    monkeypatch.setitem(experiments.SETTINGS, "small", tiny)
    done = run_cli(["reproduce", "hsnn", "--out", str(tmp_path), "--seeds", "0"])
    assert done.code == 0, done.err
    claims = {claim["id"]: claim for claim in json.loads((tmp_path / "claims.json").read_text())}
    assert claims["deleted"]["measured"] == 0
    assert claims["deleted"]["holds"]
    assert 0 < claims["recall-3.5"]["measured"] <= 1
    assert claims["upsert"]["measured"] > 0
    report = (tmp_path / "report.md").read_text()
    assert "cascade: two tower, then the ranker" in report


def test_the_benchmark_prints_its_table() -> None:
    done = run_cli(["bench", "hsnn", "--items", "1500", "--queries", "2", "--nodes", "4,16", "--shares", "0.1"])
    assert done.code == 0, done.err
    assert "HSNN, 10% scored" in done.out
    assert "two tower HNSW" in done.out
