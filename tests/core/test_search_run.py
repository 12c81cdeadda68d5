"""`recloom search` and `Search`: from a config to a model that trains, whatever interrupts it."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from toy_search import ToySpace

from recloom.data.synthetic import SyntheticClicks
from recloom.errors import RecloomError
from recloom.search.compare import ne_difference
from recloom.search.drawing import boxes, draw_program
from recloom.search.evaluators.scratch import FromScratch
from recloom.search.evaluators.supernet import SupernetEvaluator
from recloom.search.methods.evolution import NSGA2
from recloom.search.methods.random import RandomSearch
from recloom.search.objective import Objective
from recloom.search.program import Program
from recloom.search.run import Search
from recloom.testing import run_cli

DATA = {"num_train": 12_000, "num_val": 3000, "num_test": 3000, "batch_size": 256, "num_workers": 0}
WORLD = {**DATA, "num_dense": 3, "cardinalities": [40, 30, 20], "multi_hot": {}}
ADAM = {"dense": "Adam", "dense_lr": 0.01, "sparse": "rowwise_adagrad", "sparse_lr": 0.1}
CONFIG = {
    "space": "toy_search.ToySpace",
    "data": {"class_path": "SyntheticClicks", "init_args": WORLD},
    "method": {"class_path": "RandomSearch"},
    "evaluator": {"class_path": "FromScratch", "init_args": {"rows": 2000}},
    "trials": 6,
    "batch": 2,
    "retrain": 2,
    "scratch": {"rows": 4000},
}


def search(folder: Path, finish: bool = True, **options: Any) -> Any:
    data = SyntheticClicks(**WORLD)
    chosen: dict[str, Any] = {"method": RandomSearch(), "evaluator": FromScratch(rows=1000), "trials": 6, "batch": 3}
    chosen |= {"scratch": FromScratch(rows=2000), "retrain": 2, **options}
    return Search(ToySpace(), data, **chosen).run(folder, progress=False, finish=finish)


def write(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**CONFIG, **changes}))
    return path


def trials(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def results(folder: Path) -> list[tuple[str, ...]]:
    return [tuple(value for name, value in row.items() if name != "seconds") for row in trials(folder)]


def test_the_command_finds_a_model_that_fit_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "toy.yaml", baselines={"DLRM": _dlrm()}, correlate=4, retrain_seeds=2)
    config = "toy.yaml"
    done = run_cli(
        ["search", "--config", config, "--method", "evolution", "--method.population=4", "--method.sample=2"]
    )
    assert done.code == 0, done.err
    folder = tmp_path / "runs/search-toy"
    told = json.loads((folder / "search.json").read_text())
    assert told["method"] == "RegularizedEvolution"
    assert (told["finished"], told["diverged"], len(trials(folder))) == (6, 0, 6)
    ranks = [np.mean([run["ne"] for run in model["val"]]) for model in told["retrained"]]
    assert ranks == sorted(ranks)
    assert [bool(model["test"]) for model in [*told["retrained"], *told["baselines"]]] == [True, False, True, True]
    random = told["baselines"][-1]
    assert random["name"] == "best of 4 random candidates"
    assert random["val"][0]["ne"] == min(told["correlation"]["scratch"]["ne"])
    assert told["times"]["search"]["samples"] == 6 * 1792
    report = (folder / "report.md").read_text()
    for part in ("the best possible NE", "Kendall", "paired bootstrap", "figures/architecture.svg", "sample passes"):
        assert part in report
    found = yaml.safe_load((folder / "found.yaml").read_text())
    assert found["model"] == ToySpace().model_config(ToySpace().from_json(told["retrained"][0]["architecture"]))
    assert found["trainer"]["limit_train_batches"] == 15, "of 256 rows: as many as it retrained on"
    options = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--run_dir=fit"]
    fit = run_cli(["fit", "--config", str(folder / "found.yaml"), *options])
    assert fit.code == 0, fit.err
    exported = run_cli(["export", "--config", str(folder / "found.yaml"), "--ckpt_path", str(folder / "found.ckpt")])
    assert exported.code == 0, exported.err


def test_a_killed_or_interrupted_search_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = str(write(tmp_path / "toy.yaml", trials=5, retrain=1, scratch={"rows": 1000}))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "recloom.cli.main", "search", "--config", config]
    process = subprocess.Popen([*command, f"--run_dir={tmp_path / 'killed'}"], env=environment)
    deadline = time.monotonic() + 90
    while finished(tmp_path / "killed/study.db") < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert run_cli(["search", "--config", config, f"--run_dir={tmp_path / 'whole'}"]).code == 0
    build, count = ToySpace.build, 0

    def interrupt(self: ToySpace, *arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return build(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ToySpace, "build", interrupt)
        stopped = run_cli(["search", "--config", config, f"--run_dir={tmp_path / 'stopped'}"])
    assert stopped.code == 130
    assert "--resume" in stopped.err
    changed = run_cli(["search", "--resume", f"--run_dir={tmp_path / 'killed'}", "--evaluator.rows=3000"])
    assert (changed.code, "evaluator is not what it was" in changed.err) == (2, True)
    for name in ("killed", "stopped"):
        assert not (tmp_path / name / "search.json").exists()
        resumed = run_cli(["search", "--resume", f"--run_dir={tmp_path / name}"])  # with its own config
        assert resumed.code == 0, resumed.err
        assert results(tmp_path / name) == results(tmp_path / "whole")
        assert (tmp_path / name / "found.yaml").read_text() == (tmp_path / "whole/found.yaml").read_text()


def test_two_workers_share_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = str(write(tmp_path / "toy.yaml", trials=10, batch=1, retrain=0))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    both = tmp_path / "both"
    done = run_cli(["search", "--config", config, "--run_dir", str(both), "--workers=2", "--evaluator.rows=1000"])
    assert done.code == 0, done.err
    assert len(list((both / "times").iterdir())) == 2
    alone = search(tmp_path / "one", False, trials=10, batch=1)
    told = [float(row["value_ne"]) for row in trials(both)]
    assert told == [o.values[0] for o in alone.study.observations()]  # random search: no matter who tried what


def test_mistakes_are_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = str(write(tmp_path / "toy.yaml", trials=2, retrain=0))
    for arguments, expected in (
        (["--trils", "3"], "trials"),
        (["--method", "RandomSerch"], "RandomSearch"),
        (["--method.childern", "3"], "children"),
        (["--evaluator.rowz", "3"], "rows"),
        (["--objective.minimize", "[nee]"], "Did you mean 'ne'"),
        (["--trials", "0"], "at least 1"),
        (["--resume", "--run_dir=none"], "no search here"),
    ):
        argv = ["search", "--config", config, "--method", "RegularizedEvolution", *arguments]
        done = run_cli(argv)
        assert done.code == 2, (arguments, done)
        assert expected in done.err, (arguments, done.err)
        assert done.err.count("\n") <= 3, done.err
    assert "required: space, data" in run_cli(["search"]).err
    unnamed = run_cli(["search", "--space=toy_search.ToySpace", "--data=SyntheticClicks", "--evaluator.rows=10"])
    assert "--evaluator NAME" in unnamed.err
    shown = run_cli(["search", "--config", config, "--print_config"])
    assert yaml.safe_load(shown.out)["trials"] == 2
    assert "SupernetEvaluator" in run_cli(["search", "--help"]).out


def test_several_objectives_retrain_the_front(tmp_path: Path) -> None:
    run = search(
        tmp_path,
        method=NSGA2(population=4),
        evaluator=SupernetEvaluator(steps=30, finetune_steps=5),
        objective=Objective(["ne", "macs"], limits={"macs": 500.0}),
        trials=12,
    )
    front = {run.context.space.canonical(o.genotype) for o in run.study.front()}
    retrained = [model.genotype for model in run.finished.retrained]
    assert len(front) >= 2
    assert set(retrained) <= front
    assert all(model.costs["macs"] <= 500 for model in run.finished.retrained)
    assert (tmp_path / "figures/fronts.svg").exists()
    assert "hypervolume" in (tmp_path / "figures/trajectory.svg").read_text()


def test_a_diverged_candidate_ranks_last_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ToySpace.model_config

    def wild(self: ToySpace, genotype: tuple[int, ...]) -> dict[str, Any]:
        found = config(self, genotype)
        if genotype[0]:
            found["init_args"]["optimizer"]["dense_lr"] = 1e30
        return found

    monkeypatch.setattr(ToySpace, "model_config", wild)
    run = search(tmp_path, correlate=5)
    bad = [o for o in run.study.observations() if o.genotype[0]]
    assert bad
    assert all(o.diverged and o.values == (math.inf,) for o in bad)
    assert not any(model.genotype[0] for model in run.finished.retrained)
    assert {row["diverged"] for row in trials(tmp_path)} == {"0", "1"}
    json.loads((tmp_path / "search.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_a_candidate_that_fails_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = ToySpace.build

    def broken(self: ToySpace, genotype: tuple[int, ...], schema: Any) -> Any:
        if genotype[0]:
            raise RuntimeError("out of memory")
        return build(self, genotype, schema)

    monkeypatch.setattr(ToySpace, "build", broken)
    run = search(tmp_path, False)
    assert len(run.study.failures()) + len(run.study.observations()) == 6
    assert set(run.study.failures().values()) == {"out of memory"}


def test_what_was_trained_with_other_options_is_trained_anew(tmp_path: Path) -> None:
    first = search(tmp_path, trials=2, retrain=1)
    same = search(tmp_path, trials=2, retrain=1)
    longer = search(tmp_path, trials=2, retrain=1, scratch=FromScratch(rows=4000))
    scores = [run.finished.retrained[0].runs[0]["ne"] for run in (first, same, longer)]
    assert scores[0] == scores[1] != scores[2]
    assert json.loads((tmp_path / "search.json").read_text())["times"]["retraining"]["samples"] == 1792 + 3840


def test_the_same_seed_repeats_a_search_and_another_does_not(tmp_path: Path) -> None:
    def found(name: str, seed: int) -> list[Any]:
        run = search(tmp_path / name, False, seed=seed, trials=4, evaluator=FromScratch(rows=300))
        return [(o.genotype, o.values) for o in run.study.observations()]

    assert found("a", 1) == found("b", 1)
    assert found("c", 2) != found("a", 1)


def test_a_paired_bootstrap_covers_the_difference() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 1, 20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-logits))).astype(float)
    worse = logits + rng.normal(0, 0.5, 20_000)
    found = ne_difference([worse], [logits], labels)
    assert 0 < found.low < found.mean < found.high
    assert found.clear
    same = ne_difference([logits], [logits], labels)
    assert (same.mean, same.low, same.high, same.clear) == (0, 0, 0, False)
    # against resampling row by row
    p = labels.mean()
    entropy = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    gaps = (np.logaddexp(0, worse) - np.logaddexp(0, logits) - labels * (worse - logits)) / entropy
    means = [gaps[rng.integers(20_000, size=20_000)].mean() for _ in range(500)]
    assert found.high - found.low == pytest.approx(np.quantile(means, 0.975) - np.quantile(means, 0.025), rel=0.15)


def test_a_program_is_drawn_by_its_groups() -> None:
    program = Program()
    tables = program.add("tables", "gather", 1, 16, 5, group="inputs")
    first = program.add("a.fc", "matmul", 80, 32, inputs=[tables], group="a")
    second = program.add("b.fc", "matmul", 32, 32, inputs=[first], group="b")
    program.add("head", "matmul", 64, 1, inputs=[first, second])
    parts = boxes(program)
    assert [(part.name, list(part.inputs), part.depth) for part in parts] == [
        ("inputs", [], 0),
        ("a", ["inputs"], 1),
        ("b", ["a"], 2),
        ("head", ["a", "b"], 3),
    ]
    drawing = draw_program(program)
    assert "fc  80 → 32" in drawing
    assert drawing.startswith("<svg")


def test_a_search_needs_a_metric_that_exists(tmp_path: Path) -> None:
    with pytest.raises(RecloomError, match="energy"):
        search(tmp_path, objective=Objective(["ne", "energy"]))
    assert not torch.is_inference_mode_enabled()


def _dlrm() -> dict[str, Any]:
    sizes = {"embedding_dim": 4, "dense_arch": [8], "over_arch": [8]}
    return {"class_path": "DLRM", "init_args": {**sizes, "optimizer": ADAM}}


def finished(database: Path) -> int:
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            return connection.execute("SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0]
    except sqlite3.OperationalError:  # it is not there yet
        return 0
