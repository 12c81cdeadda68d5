"""Experiments: claims judged from what was measured, resumed after an interruption, told plainly when they fail."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from recloom.catalog import Catalog
from recloom.experiment import Claim, Experiment, Lab, Target, run_experiment
from recloom.plugins import catalog
from recloom.testing import run_cli

FIELDS = ["id", "claim", "paper", "measured", "unit", "target", "holds", "seeds", "machine", "seconds"]


@pytest.mark.parametrize(
    ("target", "inside", "outside"),
    [
        (">= 1.0", (1.0, 2.0, math.inf), (0.999, math.nan)),
        ("<= 1.015", (1.015, -3.0), (1.016, math.nan)),
        ("> 0", (1e-9,), (0.0,)),
        ("<-2e-1", (-0.3,), (-0.2, 0.0)),
        ("0.9 .. 1.1", (0.9, 1.0, 1.1), (0.89, 1.11, math.nan)),
        ("-1..1", (-1.0, 0.0), (2.0,)),
    ],
)
def test_targets(target: str, inside: tuple[float, ...], outside: tuple[float, ...]) -> None:
    assert all(Target(target).holds(value) for value in inside)
    assert not any(Target(target).holds(value) for value in outside)


@pytest.mark.parametrize("target", ["about 1", "1", "== 1", ">= one", ">= 1 or so"])
def test_a_target_is_a_comparison_or_a_range(target: str) -> None:
    with pytest.raises(ValueError, match="neither a comparison"):
        Claim("x", "y", 1.0, target)


class Counting(Experiment):
    """Measures a number a seed; `stop_at` interrupts it there."""

    paper = "Somebody 2020, Of Numbers"
    summary = "Numbers are measured."
    scope = {"small": "two numbers", "medium": "a few numbers", "full": "many"}  # noqa: RUF012
    measured: list[str] = []  # noqa: RUF012
    stop_at: int | None = None

    def run(self, lab: Lab, report) -> list[Claim]:
        def measure(seed: int) -> dict[str, float]:
            if seed == self.stop_at:
                raise KeyboardInterrupt
            self.measured.append(f"{lab.budget}-{seed}")
            return {"value": 10.0 + seed}

        values = [result["value"] for result in lab.each_seed("value", measure)]
        report.table(("seed", "value"), list(zip(lab.seeds, values, strict=True)))
        return [
            Claim("large", "values are large", min(values), ">= 10", "points", paper=12.5),
            Claim("small", "values are small", max(values), "<= 1", "points"),
        ]


@pytest.fixture
def counting(monkeypatch) -> type[Counting]:
    """The experiment under the name `counting`, with nothing measured yet."""
    Counting.measured, Counting.stop_at = [], None
    fresh = Catalog("test")
    fresh.experiments.add("counting", f"{__name__}:Counting", summary="counts")
    monkeypatch.setitem(catalog().experiments._entries, "counting", fresh.experiments.get("counting"))
    return Counting


def test_reproduce_writes_claims_and_reports_and_tells_failures_plainly(counting, tmp_path: Path) -> None:
    argv = ["reproduce", "counting", "--seeds", "3,0", "--out", str(tmp_path)]
    done = run_cli(argv)
    assert done.code == 0, done.err  # it was measured: that the claim fails is a result
    assert "1 of 2 claims hold; these do not: small" in done.out
    claims = json.loads((tmp_path / "claims.json").read_text())
    assert [list(claim) for claim in claims] == [FIELDS, FIELDS]
    assert claims[0] == {
        **claims[0],
        "id": "large",
        "claim": "values are large",
        "paper": 12.5,
        "measured": 10.0,
        "unit": "points",
        "target": ">= 10",
        "holds": True,
        "seeds": [3, 0],
    }
    assert claims[1]["paper"] is None
    assert claims[1]["holds"] is False
    assert "CPUs" in claims[0]["machine"]
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text()
        assert "values are small" in text
        assert "a few numbers" in text
    assert run_cli([*argv, "--strict"]).code == 1


def test_an_interrupted_run_goes_on_and_a_finished_one_starts_anew(counting, tmp_path: Path) -> None:
    experiment = counting()
    experiment.stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        run_experiment("counting", experiment, tmp_path, seeds=[0, 1, 2])
    assert not (tmp_path / "claims.json").exists()
    experiment.stop_at = None
    rows = run_experiment("counting", experiment, tmp_path, seeds=[0, 1, 2])
    assert experiment.measured == ["medium-0", "medium-1", "medium-2"]
    assert [row["measured"] for row in rows] == [10.0, 12.0]
    run_experiment("counting", experiment, tmp_path, seeds=[0])
    assert experiment.measured[3:] == ["medium-0"]


def test_what_was_measured_with_another_budget_is_measured_again(counting, tmp_path: Path) -> None:
    experiment = counting()
    experiment.stop_at = 1
    with pytest.raises(KeyboardInterrupt):
        run_experiment("counting", experiment, tmp_path, seeds=[0, 1])
    experiment.stop_at = None
    run_experiment("counting", experiment, tmp_path, "full", seeds=[0])
    assert experiment.measured == ["medium-0", "full-0"]
    experiment.scope = {"small": "two numbers", "full": "many"}  # it is short: its small stands for medium
    run_experiment("counting", experiment, tmp_path / "short", seeds=[0])
    assert experiment.measured[2:] == ["small-0"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["reproduce", "countin"], "Did you mean 'counting'?"),
        (["reproduce"], "which experiment?"),
        (["reproduce", "counting", "--seeds", "a"], "no list of whole numbers"),
        (["reproduce", "counting", "--seeds", "1,1"], "names a seed twice"),
        (["bench", "nothing"], "there is no benchmark named 'nothing'"),
    ],
)
def test_mistakes(counting, argv: list[str], said: str) -> None:
    done = run_cli(argv)
    assert done.code == 2
    assert said in done.err


def test_lists(counting) -> None:
    assert "counts (plugin test)" in run_cli(["reproduce", "--list"]).out
    assert run_cli(["bench", "--list"]).code == 0


def measured(argv: list[str]) -> int:
    print("measured with", argv)
    return 3


def test_bench_hands_over_arguments_and_exit_code(monkeypatch) -> None:
    fresh = Catalog("test")
    fresh.benchmarks.add("speed", f"{__name__}:measured")
    monkeypatch.setitem(catalog().benchmarks._entries, "speed", fresh.benchmarks.get("speed"))
    done = run_cli(["bench", "speed", "--threads", "2", "--help"])
    assert done.code == 3
    assert "measured with ['--threads', '2', '--help']" in done.out
