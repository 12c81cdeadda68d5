"""`recloom reproduce rankitect`, with so few rows that only its course is tested, not its results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recloom.testing import run_cli
from recloom_rankitect import contest, experiments
from recloom_rankitect.contest import Race


def test_it_measures_methods_and_judges_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = Race(trials=4, rows=1024, eval_rows=1024, steps=2, batch=2, explored=8)
    methods, spaces = ("random", "evolution", "oneshot", "dnas"), ("EngineersSpace",)
    setting = experiments.Setting((4096, 1024, 1024), quick, methods, spaces, retrained=3)
    monkeypatch.setitem(experiments.SETTINGS, "small", setting)
    monkeypatch.setattr(experiments, "GRAPHS", 20)
    monkeypatch.setattr(contest, "WORST_NE", 2.0)
    code, out, err = run_cli(["reproduce", "rankitect", "--out", str(tmp_path / "out")])
    assert code == 0, err
    claims = {claim["id"]: claim for claim in json.loads((tmp_path / "out/claims.json").read_text())}
    beats = [f"engineers-{method}" for method in methods[1:]]
    assert list(claims)[: 2 + len(beats)] == ["graphs", "sampling", *beats]
    assert claims["graphs"]["measured"] == 20
    measured = {p.stem: json.loads(p.read_text())["value"] for p in (tmp_path / "out/measured").glob("*.json")}
    random, oneshot = measured["EngineersSpace-random-seed0"], measured["EngineersSpace-oneshot-seed0"]
    assert random["samples"] == 4 * 1024
    assert oneshot["samples"] == 2 * 2 * 512 + 2 * 1024
    assert claims["engineers-oneshot"]["measured"] == pytest.approx(oneshot["hypervolume"] / random["hypervolume"])
    report = (tmp_path / "out/report.md").read_text()
    for part in ("Methods on EngineersSpace", "million samples", "Wukong-like", "found 3", "The oracle's NE"):
        assert part in report
    assert "claims hold" in out
