"""PIM's experiment at a size at which it shows nothing but that it runs, and its claims."""

from __future__ import annotations

import json

import pytest

from recloom.experiment import run_experiment
from recloom.search.program import Program
from recloom_pim import codesign, experiments
from recloom_pim.cost import PIMCost
from recloom_pim.fitting import costs_of, crossbars_of, precise
from recloom_pim.setting import Setting


def tiny():
    return Setting(
        2,
        (16, 32),
        (16,),
        (4096, 1024, 1024),
        4,
        8,
        finetune_steps=1,
        retrain=1,
        retrain_together=1,
        epochs=1,
        repeats=2,
    )


def test_the_experiment_measures_both_searches_and_judges_the_claims(tmp_path, monkeypatch):
    monkeypatch.setitem(experiments.SETTINGS, "medium", tiny)
    rows = run_experiment("pim", experiments.PIMExperiment(), tmp_path, seeds=[0])
    claims = {row["id"]: row for row in rows}
    assert {"isaac-throughput", "isaac-density", "isaac-efficiency"} <= {i for i, row in claims.items() if row["holds"]}
    assert (claims["flops"]["paper"], claims["energy"]["paper"], claims["speed"]["paper"]) == (2.0, 1.8, 1.5)
    measured = {path.stem: json.loads(path.read_text())["value"] for path in (tmp_path / "measured").glob("*.json")}
    alone, both = measured["accuracy-seed0"], measured["together-seed0"]
    ratio = alone["costs"]["energy_nj"] / both["costs"]["energy_nj"]
    assert claims["energy"]["measured"] == pytest.approx(ratio)
    assert both["costs"]["area_mm2"] <= alone["costs"]["area_mm2"] * (1 + 1e-9)
    assert alone["val_ne"] == min(alone["ne"]["mapped"]["val"], alone["ne"]["trained for it"]["val"])
    again = measured["anew-seed0"]
    assert len(again["design"]) == len(again["reference"]) == 2
    mean = {name: sum(values) / 2 for name, values in again.items()}
    assert claims["equal-ne-anew"]["measured"] == pytest.approx(mean["design"] / mean["reference"])
    crossbars = crossbars_of(both["architecture"])
    assert crossbars.rows == both["architecture"]["crossbars.rows"]
    assert len(crossbars.bits) in (0, 2)
    same = alone["same model"]
    assert same["costs"]["area_mm2"] <= alone["costs"]["area_mm2"]
    assert claims["energy-hardware"]["measured"] == pytest.approx(
        alone["costs"]["energy_nj"] / same["costs"]["energy_nj"]
    )
    report = (tmp_path / "report.md").read_text()
    for word in ("trained for it", "by crossbars and bits alone", "Energy by component", "shift_add"):
        assert word in report


def test_gain_is_how_many_times_less_all_costs_are_together():
    reference = {"costs": {"macs": 100.0, "energy_nj": 100.0, "latency_ns": 100.0}}
    assert codesign.gain({"macs": 50.0, "energy_nj": 25.0, "latency_ns": 100.0}, reference) == pytest.approx(2.0)


def test_the_most_precise_crossbars_within_limits():
    program = Program()
    program.add("fc", "matmul", 300, 50, 16)
    loose = {"energy_nj": 1e9, "latency_ns": 1e9, "area_mm2": 1e9}
    best = precise(program, loose)
    assert (best.weight_bits, best.activation_bits, best.adc_bits) == (8, 8, best.lossless_adc_bits)
    costs = costs_of(PIMCost().prices(program, [best]))
    tight = precise(program, {**loose, "energy_nj": costs["energy_nj"] / 2})
    assert min(tight.weight_bits, tight.activation_bits) < 8
    assert costs_of(PIMCost().prices(program, [tight]))["energy_nj"] <= costs["energy_nj"] / 2
    assert precise(program, {**loose, "area_mm2": 0.0}) is None
