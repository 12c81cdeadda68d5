"""`recloom reproduce rankitect`, with so few rows that only its course is tested, not its results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from recloom.testing import run_cli
from recloom_rankitect import experiments
from recloom_rankitect.contest import Race
from recloom_rankitect.hand_made import Challenge


def test_it_measures_methods_and_judges_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = Race(trials=4, rows=1024, eval_rows=1024, steps=2, batch=2, initial=2, explored=8)
    methods, spaces = ("random", "evolution", "oneshot", "dnas"), ("EngineersSpace",)
    against = Challenge(trials=4, rows=1024, eval_rows=1024, population=2, retrained=3)
    setting = experiments.Setting((4096, 1024, 1024), quick, against, methods, spaces, challenges=1, graphs=20)
    monkeypatch.setitem(experiments.SETTINGS, "medium", setting)
    monkeypatch.setattr(experiments, "WORST_NE", 2.0)
    code, out, err = run_cli(["reproduce", "rankitect", "--seeds", "0,1", "--out", str(tmp_path / "out")])
    assert code == 0, err
    claims = {claim["id"]: claim for claim in json.loads((tmp_path / "out/claims.json").read_text())}
    beats = [f"engineers-{method}" for method in methods[1:]]
    assert list(claims)[: 2 + len(beats)] == ["graphs", "sampling", *beats]
    assert claims["graphs"]["measured"] == 20
    measured = {p.stem: json.loads(p.read_text())["value"] for p in (tmp_path / "out/measured").glob("*.json")}
    random, oneshot = ([measured[f"EngineersSpace-{m}-seed{s}"] for s in (0, 1)] for m in ("random", "oneshot"))
    assert random[0]["samples"] == 4 * 1024
    assert oneshot[0]["samples"] == 2 * 2 * 128 + 3 * 1024
    over = np.median([a["hypervolume"] / b["hypervolume"] for a, b in zip(oneshot, random, strict=True)])
    assert claims["engineers-oneshot"]["measured"] == pytest.approx(over)
    shared = [measured[f"EngineersSpace-{m}-seed0"]["values"][:2] for m in ("random", "evolution")]
    assert shared[0] == shared[1]  # the first candidates are the same, and are trained once
    report = (tmp_path / "out/report.md").read_text()
    for part in (
        "Methods on EngineersSpace",
        "million samples",
        "Wukong-like",
        "best hand-made",
        "The best found model",
    ):
        assert part in report
    assert "claims hold" in out
