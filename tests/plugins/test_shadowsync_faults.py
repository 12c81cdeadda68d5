"""Deaths, hangs, signals and errors of ranks; random schedules of them; and the command with 2 processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from distributed_ranks import PRELOAD

from recloom import checkpoint
from recloom_shadowsync import soak
from recloom_shadowsync.soak import Schedule, run_schedule


def schedule(name, event, loss="continue", victim=1, step=15, ranks=3, **options):
    drawn = {"compression": "none", "validate": True, **options}
    return Schedule(
        0, name, ranks, (30, 30, 40)[:ranks], (0.004,) * ranks, loss, event=event, victim=victim, step=step, **drawn
    )


@pytest.fixture(autouse=True, scope="module")
def _server():
    multiprocessing.set_forkserver_preload([*PRELOAD, "recloom_shadowsync.soak"])


@pytest.mark.parametrize(
    "case",
    [
        schedule("ShadowMA", "kill", compression="int8"),  # the group is rebuilt
        schedule("ShadowMA", "hang"),  # noticed at the timeout of a round
        schedule("ShadowEASGD", "kill"),
        schedule("ShadowMA", "kill", victim=0),  # with rank 0 goes the store: the others end
        schedule("ShadowEASGD", "error", "stop", ranks=2),
        schedule("DiLoCoStrategy", "term", ranks=2),
    ],
    ids=lambda case: f"{case.name}-{case.event}-{case.loss}-{case.victim}",
)
def test_a_misfortune_of_one_rank_ends_in_time_and_as_configured(case):
    assert run_schedule(case) == ""


def test_random_schedules_never_deadlock():
    for seed in (3, 12):
        assert run_schedule(Schedule.draw(seed)) == "", seed


def test_a_deadlock_would_be_found(monkeypatch):
    """The soak test can fail: with a bound that is too short every schedule does."""
    assert "were still there" in run_schedule(schedule("ShadowMA", "none"), bound=0.3)
    monkeypatch.setattr(soak.Schedule, "survivors", [0, 1])
    assert "rank 0 did not go on" in run_schedule(schedule("FixedRateMA", "kill", "stop", ranks=2))


def start(folder, root, *options):
    command = [sys.executable, "-m", "recloom.cli.main", "fit", "--config", root / "configs/shadowsync/dlrm.yaml"]
    sizes = ["--data.num_train=60000", "--data.num_val=4000", "--data.num_workers=0", "--data.batch_size=100"]
    common = [*sizes, "--run_dir=run", "--checkpoint.every_n_steps=40", "--trainer.enable_progress_bar=false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *common, *options], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip


def child_of(process):
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    )
    return next(int(line.split()[0]) for line in listed.stdout.splitlines() if " fit " in line)


def until(path, process):
    end = time.monotonic() + 90
    while not path.exists():
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def test_kill_a_rank_of_the_command_in_mid_run_and_resume(tmp_path, root):
    process = start(tmp_path, root)
    until(tmp_path / "run/checkpoints/last.ckpt.ranks/1.ckpt", process)
    until(tmp_path / "run/checkpoints/last.ckpt", process)
    os.kill(child_of(process), signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2, out
    assert "rank 1 died or cannot be reached; training stops here too\n  Go on from the last checkpoint" in out
    first = checkpoint.read(tmp_path / "run/checkpoints/last.ckpt")["global_step"]
    assert 0 < first < 300
    process = start(tmp_path, root, "--ckpt_path=last")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert "validation NE" in out
    for part in ("last.ckpt", "last.ckpt.ranks/1.ckpt"):
        assert checkpoint.read(tmp_path / "run/checkpoints" / part)["global_step"] == 300
    assert "not all ranks' own states" not in out
