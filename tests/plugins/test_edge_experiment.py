"""`recloom reproduce edge` and `recloom bench edge`, made small."""

from __future__ import annotations

import json
from pathlib import Path

from recloom.data.streams.module import PowerLawEvents
from recloom.data.streams.powerlaw import PowerLawStream
from recloom.testing import run_cli
from recloom_edge import experiments


def test_the_experiment(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        experiments, "PowerLawStream", lambda **options: PowerLawStream(2000, 100, 50, 0.8, 1.0, **options)
    )
    monkeypatch.setitem(experiments.GENERATED, "medium", {})
    monkeypatch.setitem(experiments.EPOCHS, "medium", {"generated": 1})
    few = {"events": 1000, "sources": 100, "destinations": 50}
    monkeypatch.setattr(experiments, "PowerLawEvents", lambda **options: PowerLawEvents(**{**few, **options}))
    monkeypatch.setitem(experiments.TIMED_EPOCHS, "medium", 1)
    monkeypatch.setattr(experiments, "SHARES", (0.0, 0.05, 0.1))
    monkeypatch.setattr(experiments, "_TARGETS", {0.05: 40.0})
    result = run_cli(["reproduce", "edge", "--out", str(tmp_path / "out")])
    assert result.code == 0, result.err
    claims = {claim["id"]: claim for claim in json.loads((tmp_path / "out" / "claims.json").read_text())}
    assert {
        "steps-power-law-5",
        "steps-power-law-5-waiting",
        "generated-mrr-5",
        "generated-matching-10",
        "generated-matching-10-learned",
        "generated-jodie-mrr",
        "timed-mrr-1",
    } <= claims.keys()
    assert all(0 < claims[f"generated-mrr-{share}"]["measured"] < 2 for share in (5, 10))
    assert "most recent" in (tmp_path / "out" / "report.md").read_text()


def test_the_benchmark(tmp_path: Path) -> None:
    options = ["--events", "600", "--window", "60", "--rounds", "1", "--dim", "16", "--large", "20000"]
    result = run_cli(["bench", "edge", *options, "--out", str(tmp_path / "out.json")])
    assert result.code == 0, result.err
    (found,) = json.loads((tmp_path / "out.json").read_text()).values()
    assert [row["contender"] for row in found["rows"]][-1] == "JODIE, event by event"
    assert found["rows"][-1]["ratios"]["JODIE, event by event"] == 1
    assert {row["window"] for row in found["rows"]} <= {60, 30, 15}, "what goes by t-batches has its fastest window"
    assert "EXTRAPOLATED, not measured" in result.out
