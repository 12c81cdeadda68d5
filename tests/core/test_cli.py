"""The command line from outside: fit, resume, interrupt, mistakes."""

from __future__ import annotations

import contextlib
import csv
import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from recloom.batch import Batch, KeyedJaggedTensor
from recloom.errors import DataError
from recloom.evaluation import EvaluationMetrics, window_metrics
from recloom.testing import run_cli
from recloom.testing.helpers import CliResult

TINY = [
    "--data.num_train=40000",
    "--data.num_val=4000",
    "--data.batch_size=256",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=10",
    "--checkpoint.every_n_steps=20",
]


def command(root: Path, *arguments: str) -> list[str]:
    config = str(root / "configs/dlrm/synthetic.yaml")
    return [sys.executable, "-W", "ignore", "-m", "recloom.cli.main", "fit", "--config", config, *TINY, *arguments]


def fit(root: Path, folder: Path, *arguments: str) -> CliResult:
    """Fit in this process, which has imported everything, as if called in `folder`."""
    with contextlib.chdir(folder):
        return run_cli(command(root, *arguments)[5:])


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.pop("samples_per_second")
    return rows


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    argv = command(root, "--trainer.max_epochs=2", "--run_dir=run")
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "best possible NE" in done.stdout
    return folder / "run"


def test_a_run_leaves_its_folder(whole: Path) -> None:
    found = {path.relative_to(whole).as_posix() for path in whole.rglob("*")}
    assert {"config.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv", "report.html"} <= found
    assert any(name.startswith("tensorboard/events") for name in found)
    last = metrics(whole)[-1]
    assert float(last["val_oracle_ne"]) < float(last["val_ne"]) < 1.05
    assert not [name for name in found if name.endswith(".part")]


@pytest.mark.parametrize(("how", "epoch"), [(signal.SIGKILL, 1), (signal.SIGINT, 0)])
def test_an_interrupted_run_goes_on_to_the_same_end(
    root: Path, whole: Path, tmp_path: Path, how: signal.Signals, epoch: int
) -> None:
    arguments = ["--trainer.max_epochs=2", "--run_dir=run"]
    process = subprocess.Popen(
        command(root, *arguments), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wanted = 4 if epoch == 0 else 22
    table, checkpoint = tmp_path / "run/metrics.csv", tmp_path / "run/checkpoints/last.ckpt"
    deadline = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < deadline:
        if table.exists() and checkpoint.exists() and table.read_text().count("\n") > wanted:
            break
        time.sleep(0.002)
    process.send_signal(how)
    error = process.communicate(timeout=60)[1]
    if process.returncode == 0:
        pytest.skip("the run ended before it could be interrupted")
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), error
    resumed = fit(root, tmp_path, *arguments, "--ckpt_path=last")
    assert resumed.code == 0, resumed.err
    rows, expected = metrics(tmp_path / "run"), metrics(whole)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    # a window of training metrics that the interruption cut holds the rest of its steps only
    different = [row["step"] for row, other in zip(rows, expected, strict=True) if row != other]
    assert len(different) <= (1 if how == signal.SIGINT else 0)
    assert not any(row["val_ne"] for row in rows if row["step"] in different)


def test_a_damaged_checkpoint_is_refused_before_training_goes_on(root: Path, whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    last = run / "checkpoints/last.ckpt"
    damaged = bytearray(last.read_bytes())
    damaged[len(damaged) // 2] ^= 1  # in the middle of the weights
    last.write_bytes(damaged)
    done = run_cli([*command(root, f"--run_dir={run}", "--trainer.max_epochs=3", "--ckpt_path=last")[5:]])
    assert done.code == 2
    assert "last.ckpt: it is damaged" in done.err


def test_runs_get_folders_of_their_own(root: Path, tmp_path: Path) -> None:
    for limit in ("--trainer.max_steps=3", "--trainer.max_epochs=null"):
        few = ("--trainer.limit_train_batches=3", "--trainer.limit_val_batches=1")
        assert fit(root, tmp_path, limit, *few).code == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["dlrm-synthetic", "dlrm-synthetic-2"]
    taken = fit(root, tmp_path, "--run_dir=runs/dlrm-synthetic")
    assert taken.code == 2
    assert "already holds a run" in taken.err
    config = tmp_path / "runs/dlrm-synthetic-2/config.yaml"
    before = config.read_text()
    assert "max_epochs: 1\n" in before  # no limit is one pass, not Lightning's thousand
    (tmp_path / "runs/dlrm-synthetic-3").mkdir()  # a start that failed before its first checkpoint is not the last run
    shutil.copy(config, tmp_path / "runs/dlrm-synthetic-3")
    other = fit(root, tmp_path, "--ckpt_path=last", "--model.interaction=CrossNet")
    assert other.code == 2
    assert "dlrm-synthetic-2/checkpoints/last.ckpt: its weights do not fit the model: inter_arch" in other.err
    assert config.read_text() == before, "a resumption that failed changed the run"
    with contextlib.chdir(tmp_path):
        done = run_cli(["predict", "--run", "runs/dlrm-synthetic-2"])
    assert done.code == 0, done.err
    assert (tmp_path / "runs/dlrm-synthetic-2/predictions.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model.interaction", "CrossNett"], ["'CrossNett'", "'CrossNet'"]),
        (["--model.interaction", "DLRM"], ["DLRM is a model", "CrossNet, DotInteraction"]),
        (["--model.optimizer.sparse_lr", "-1"], ["optimizer.sparse_lr is -1"]),
        (["--model.optimizer.sparse", "adam"], ["model.optimizer.sparse", "'sgd', 'rowwise_adagrad' or 'adagrad'"]),
        (["--checkpoint.mode", "maximum"], ["checkpoint.mode", "'min' or 'max'"]),
        (["--model.embeding_dim", "3"], ["DLRM has no option 'embeding_dim'", "'embedding_dim'"]),
        (["--model.optimizer.dense_lrr", "3"], ["OptimizerConfig has no option", "'dense_lr'"]),
        (["--model.interaction.itslf", "true"], ["DotInteraction has no option 'itslf'", "'itself'"]),
        (["--trainer.max_epoch", "3"], ["'trainer.max_epoch'", "'max_epochs'"]),
        (["--model", "DLRMM"], ["'DLRMM'", "'DLRM'"]),
        (["--data.batch_size", "x"], ["data.batch_size", "int"]),
        (["--data.batch_size", "0"], ["batch_size is 0"]),
        (["--ckpt_path", "last"], ["there is no run here"]),
    ],
)
def test_mistakes_get_one_cause_and_a_hint(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: list[str],
) -> None:
    from recloom.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning's handler holds an earlier test's stream
    assert main(["fit", "--config", str(root / "configs/dlrm/synthetic.yaml"), *arguments]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in said), error
    assert "Traceback" not in error
    assert error.count("\n") <= 3


def test_a_broken_config_file_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from recloom.cli.main import main

    file = tmp_path / "broken.yaml"
    file.write_text("model:\n  class_path: DLRM\n data: [\n")
    assert main(["fit", "--config", str(file)]) == 2
    assert f"{file}:3:2" in capsys.readouterr().err
    file.write_text("model:\n  class_path: DLMR\ndata:\n  class_path: SyntheticClicks\n")
    assert main(["fit", "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert str(file) in error
    assert "'DLRM'" in error


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (
            "model:\n  class_path: DLRM\n  init_args:\n    embedding_dim: eight\n",
            4,
            "Expected an int. Got value: eight",
        ),
        ("model:\n  class_path: DLRM\n  init_args:\n\n    embeding_dim: 8\n", 5, "DLRM has no option 'embeding_dim'"),
        ("model:\n  class_path: DLRM\n  init_args:\n    optimizer:\n      dense_lr: fast\n", 5, "Expected a float"),
        ("trainer:\n  max_epoch: 3\nmodel: DLRM\n", 2, "unknown option 'trainer.max_epoch'"),
    ],
)
def test_mistakes_in_files_are_told_with_the_line(text: str, line: int, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text + "data: SyntheticClicks\n")
    for command in ("fit", "cost")[: 1 if "trainer" in text else 2]:
        done = run_cli([command, "--config", str(file)])
        assert done.code == 2
        assert f"{file}, line {line}: " in done.err, done.err
        assert said in done.err
    if said.startswith("Expected"):  # what the command line gives is in no file
        given = run_cli(["fit", "--config", str(file), "--model.embedding_dim=nine", "--model.optimizer.dense_lr=x"])
        assert given.code == 2
        assert ", line" not in given.err


def test_labels_beyond_rates_and_losses_beyond_numbers_stop_a_run(root: Path, tmp_path: Path) -> None:
    for labels in ([0.0, 1.0, 4.0], [0.0, float("nan")], [-0.5]):
        rows, nothing = torch.tensor(labels), KeyedJaggedTensor([], torch.empty(0))
        with pytest.raises(DataError, match=r"a label of (4|nan|-0\.5), where it must be between 0 and 1"):
            window_metrics([(torch.zeros(len(rows)), rows, None)])
        with pytest.raises(DataError, match="--positive"):
            EvaluationMetrics().add(torch.zeros(len(rows)), Batch(rows[:, None], nothing, rows))
    lost = fit(root, tmp_path, "--model.optimizer.dense=SGD", "--model.optimizer.dense_lr=1e30")
    assert lost.code == 2
    assert "the loss is no longer finite at step 10" in lost.err


def test_a_monitor_that_nothing_logs_is_refused_before_training(root: Path, tmp_path: Path) -> None:
    unknown = fit(root, tmp_path, "--checkpoint.monitor=val_auccc", "--trainer.num_sanity_val_steps=1")
    assert unknown.code == 2
    assert "no metric 'val_auccc' is logged" in unknown.err
    assert "'val_auc'" in unknown.err
    assert not list(tmp_path.rglob("last.ckpt")), "it was found before training"
    short = ["--data.num_train=4096", "--data.num_val=512", "--trainer.num_sanity_val_steps=1", "--run_dir=by_training"]
    assert fit(root, tmp_path, *short, "--checkpoint.monitor=train_ne").code == 0, "which no check can have logged"
    assert (tmp_path / "by_training/checkpoints/best.ckpt").exists()


def test_a_run_goes_on_with_its_own_optimizer_alone(root: Path, tmp_path: Path) -> None:
    short = ["--data.num_train=4096", "--data.num_val=512", "--run_dir=run"]
    assert fit(root, tmp_path, *short).code == 0
    for option in ("dense=SGD", "sparse=sgd"):
        other = fit(root, tmp_path, *short, "--trainer.max_epochs=2", "--ckpt_path=last", f"--model.optimizer.{option}")
        assert other.code == 2
        assert "last.ckpt: its optimizer's state is of one with betas and rowwise_adagrad" in other.err
    assert fit(root, tmp_path, *short, "--trainer.max_epochs=2", "--ckpt_path=last").code == 0
