"""`recloom reproduce dlrm`, with so few rows that only its course is tested, not its results."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from recloom.testing import run_cli
from recloom_dlrm import experiments


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = experiments.SETTINGS["small"]
    small = dataclasses.replace(setting, rows=(4096, 1024, 1024), batch_size=512, validations=2)
    monkeypatch.setitem(experiments.SETTINGS, "small", small)


def test_it_measures_every_model_and_judges_claims(few_rows: None, tmp_path: Path) -> None:
    code, out, err = run_cli(["reproduce", "dlrm", "--out", str(tmp_path / "out")])
    assert code == 0, err
    claims = {claim["id"]: claim for claim in json.loads((tmp_path / "out/claims.json").read_text())}
    assert list(claims) == ["near-oracle", "dlrm-over-fm", "dlrm-over-lr", "dlrm-over-dcn"]
    measured = {p.stem: json.loads(p.read_text())["value"] for p in (tmp_path / "out/measured").glob("*.json")}
    assert len(measured) == 8, "four models, two candidate learning rates"
    best = min((measured[f"DLRM-{rates}-seed0"] for rates in ("slow", "fast")), key=lambda run: run["val_ne"])
    assert claims["near-oracle"]["measured"] == pytest.approx(best["above_oracle"])
    assert claims["near-oracle"]["measured"] > 1
    assert "DCN V2" in (tmp_path / "out/report.md").read_text()
    assert "claims hold" in out


def test_without_the_dcn_plugin_that_claim_is_not_made(few_rows: None, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(experiments.CONTENDERS, "DCN V2", ("DLRM", "NotInstalled"))
    one = {"slow": experiments.SETTINGS["small"].optimizers["slow"]}
    monkeypatch.setitem(
        experiments.SETTINGS, "small", dataclasses.replace(experiments.SETTINGS["small"], optimizers=one)
    )
    code, _, err = run_cli(["reproduce", "dlrm", "--out", str(tmp_path)])
    assert code == 0, err
    assert "dlrm-over-dcn" not in (tmp_path / "claims.json").read_text()


def test_the_full_budget_asks_for_data(tmp_path: Path) -> None:
    code, _, err = run_cli(["reproduce", "dlrm", "--budget", "full", "--out", str(tmp_path)])
    assert code == 2
    assert "needs real data" in err
    assert not (tmp_path / "claims.json").exists()
