"""`recloom reproduce nasrec`, so small that only its course is tested, not its results."""

from __future__ import annotations

import json

import pytest
from scipy import stats

from recloom.experiment import run_experiment
from recloom_nasrec import experiments
from recloom_nasrec.comparison import Setting
from recloom_nasrec.sampling import STRATEGIES


def tiny() -> Setting:
    world = {"cardinalities": (12, 10, 8, 6), "multi_hot": {}}
    sizes = {"epochs": 1, "steps": 3, "trials": 6, "finetune_steps": 2, "retrain": 2, "candidates": 4}
    return Setting("small", 2, (8, 16), (4, 8), (2048, 1024, 1024), world, arches=((8,), (8,)), **sizes)


def test_the_experiment_compares_searches_and_supernets(tmp_path, monkeypatch):
    monkeypatch.setitem(experiments.SETTINGS, "medium", tiny)
    experiment = experiments.NASRecExperiment()
    run_experiment("nasrec", experiment, tmp_path, seeds=[0])
    claims = {c["id"]: c for c in json.loads((tmp_path / "claims.json").read_text())}
    assert len(claims) == 8
    run = json.loads(next((tmp_path / "measured").glob("search-seed0*.json")).read_text())["value"]
    models = run["models"]
    for name in ("DLRM", "DCN V2", "random search"):
        gap = models[name]["test"] - models["found"]["test"]
        assert run["ahead"][name][0] == pytest.approx(gap, abs=1e-5)
        assert run["ahead"][name][1] <= gap <= run["ahead"][name][2]
    assert claims["beats-dlrm"]["measured"] == pytest.approx(
        100 * (models["DLRM"]["test"] / models["found"]["test"] - 1), abs=1e-3
    )
    assert list(run["ranked"]) == list(STRATEGIES)
    assert len({tuple(ranked) for ranked in run["ranked"].values()}) == 3
    taus = [stats.kendalltau(run["ranked"][s], run["scratch"]).statistic for s in STRATEGIES]
    assert claims["tau-single-connection"]["measured"] == pytest.approx(taus[0] - taus[1])
    report = (tmp_path / "report.md").read_text()
    for word in ("above the best possible", "any-operator any-connection", "paired bootstrap"):
        assert word in report
