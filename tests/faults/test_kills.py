"""kill -9 at random moments of every command that leaves something: nothing lost, nothing doubled, the same end."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import shutil
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from killing import ROOT, Victim, finish, kill, recloom, survive

from recloom import checkpoint
from recloom.errors import DataError
from recloom.retrieval.retriever import Retriever

pytestmark = pytest.mark.timeout(1800)

SMALL = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def tree(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Prepare(Victim):
    """A raw log to shards: a folder is whole, or it is not there for readers."""

    def __init__(self, raw: Path) -> None:
        self.raw = raw

    def argv(self, folder: Path) -> list[str]:
        more = ["--overwrite"] if (folder / "manifest.json").exists() else []
        files = ["--input", str(self.raw), "--output", str(folder)]
        return ["prepare", "criteo", *files, "--split", "random:0.8,0.1,0.1", *more]

    def result(self, folder: Path) -> Any:
        found = tree(folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        return manifest, {name: digest for name, digest in found.items() if name.endswith(".parquet")}

    def check(self, folder: Path, expected: Any) -> None:
        if (folder / "manifest.json").exists():
            assert self.result(folder) == expected


class PrepareOther(Victim):
    """The same of histories and of streams, which other code writes."""

    def __init__(self, form: str, raw: Path, *options: str) -> None:
        self.form, self.raw, self.options = form, raw, options

    def argv(self, folder: Path) -> list[str]:
        more = ["--overwrite"] if (folder / "manifest.json").exists() else []
        return ["prepare", self.form, "--input", str(self.raw), "--output", str(folder), *self.options, *more]

    def result(self, folder: Path) -> Any:
        return tree(folder)

    def check(self, folder: Path, expected: Any) -> None:
        if (folder / "manifest.json").exists():
            assert self.result(folder) == expected


class Fit(Victim):
    """Training: goes on after the last checkpoint, to the same weights and metrics."""

    def argv(self, folder: Path) -> list[str]:
        sizes = ["--data.num_train=100000", "--data.num_val=4000", "--data.batch_size=256", "--trainer.max_epochs=2"]
        head = ["fit", "--config", str(ROOT / "configs/dlrm/synthetic.yaml"), *SMALL, *sizes]
        more = ["--ckpt_path=last"] if (folder / "checkpoints/last.ckpt").exists() else []
        return [*head, "--checkpoint.every_n_steps=25", "--trainer.log_every_n_steps=25", f"--run_dir={folder}", *more]

    def result(self, folder: Path) -> Any:
        state = checkpoint.read(folder / "checkpoints/last.ckpt")
        weights = {name: digest(value) for name, value in state["state_dict"].items()}
        with (folder / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["step"]) for row in rows] == sorted({int(row["step"]) for row in rows})
        return state["global_step"], weights, [(row["step"], row["val_ne"]) for row in rows if row["val_ne"]]

    def check(self, folder: Path, expected: Any) -> None:
        path = folder / "checkpoints/last.ckpt"
        if path.exists():
            assert checkpoint.read(path)["global_step"] <= expected[0]


class FitOnTwoRanks(Fit):
    """Training with tables sharded over two processes, which are killed together."""

    def argv(self, folder: Path) -> list[str]:
        sizes = ["--data.num_train=60000", "--data.num_val=4000", "--data.batch_size=128", "--trainer.max_epochs=1"]
        head = ["fit", "--config", str(ROOT / "configs/dlrm/hybrid.yaml"), *SMALL, *sizes]
        more = ["--ckpt_path=last"] if (folder / "checkpoints/last.ckpt").exists() else []
        return [*head, "--checkpoint.every_n_steps=25", "--trainer.log_every_n_steps=25", f"--run_dir={folder}", *more]


class Search(Victim):
    """A search: every trial once, with its own result, and the same model in the end."""

    def __init__(self, config: Path) -> None:
        self.config = config

    def argv(self, folder: Path) -> list[str]:
        more = ["--resume"] if (folder / "config.yaml").exists() else []
        return ["search", "--config", str(self.config), f"--run_dir={folder}", *more]

    def result(self, folder: Path) -> Any:
        with (folder / "trials.csv").open(newline="") as file:
            rows = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
        return rows, yaml.safe_load((folder / "found.yaml").read_text())["model"]


class Build(Victim):
    """Building an index: it is whole, or not there."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def argv(self, folder: Path) -> list[str]:
        return ["index", "build", "--run", str(self.run), "--out", str(folder), "--index", "HNSW"]

    def result(self, folder: Path) -> Any:
        return items(folder)

    def check(self, folder: Path, expected: Any) -> None:
        if folder.exists():  # it was killed after the last step
            assert items(folder) == expected
            shutil.rmtree(folder)


class Delete(Victim):
    """Removing items: what is searched is the old index, or the new one."""

    def __init__(self, built: Path) -> None:
        self.built, self.before = built, items(built)

    def argv(self, folder: Path) -> list[str]:
        if not folder.exists():
            shutil.copytree(self.built, folder)
        return ["index", "delete", "--path", str(folder), "--ids", "0,1,2,3"]

    def result(self, folder: Path) -> Any:
        return items(folder)

    def check(self, folder: Path, expected: Any) -> None:
        assert items(folder) in (self.before, expected)


def digest(value: torch.Tensor) -> str:
    """Return the sha256 of a tensor's bytes."""
    return hashlib.sha256(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def items(folder: Path) -> tuple[list[int], list[list[int]]]:
    """Return the ids in an index, and those that a search of its example users finds."""
    index = Retriever.load(folder)
    users = index.read_users(folder / "example_users.parquet")
    return index.index.ids().tolist(), index.search(users, 5).ids.tolist()


def write_raw(path: Path, rows: int) -> Path:
    """Write a log in Criteo's format."""
    rng = random.Random(0)
    with path.open("w") as file:
        for _ in range(rows):
            counts = "\t".join(str(rng.randrange(50)) for _ in range(13))
            categories = "\t".join(f"{rng.randrange(5000):08x}" for _ in range(26))
            file.write(f"{rng.randrange(2)}\t{counts}\t{categories}\n")
    return path


def others(form: str, folder: Path) -> PrepareOther:
    """Write a log of behaviour, or of a stream's events; return what prepares it."""
    rng, raw = random.Random(0), folder / "raw.csv"
    with raw.open("w") as file:
        if form == "taobao":
            for _ in range(60_000):
                user, item, kind = rng.randrange(3000), rng.randrange(2000), rng.randrange(40)
                file.write(f"{user},{item},{kind},pv,{rng.randrange(1511539200, 1512316799)}\n")
            return PrepareOther(form, raw, "--negatives", "uniform:1")
        file.write("user_id,item_id,timestamp,state_label,comma_separated_list_of_features\n")
        for number in range(100_000):
            file.write(f"{rng.randrange(3000)},{rng.randrange(500)},{number},0,{rng.random():.4f},1\n")
    return PrepareOther(form, raw)


def test_prepare(tmp_path: Path) -> None:
    survive(Prepare(write_raw(tmp_path / "raw.tsv", 60_000)), tmp_path)


@pytest.mark.parametrize("form", ["taobao", "jodie"])
def test_prepare_histories_and_streams(form: str, tmp_path: Path) -> None:
    survive(others(form, tmp_path), tmp_path)


def test_fit(tmp_path: Path) -> None:
    survive(Fit(), tmp_path)


def test_fit_on_two_ranks(tmp_path: Path) -> None:
    survive(FitOnTwoRanks(), tmp_path, kills=6)


def test_search(tmp_path: Path) -> None:
    import test_search_run

    config = test_search_run.write(tmp_path / "toy.yaml", trials=12, retrain=1, scratch={"rows": 1000})
    survive(Search(config), tmp_path)


def test_index(tmp_path: Path) -> None:
    sizes = ["--data.num_items=600", "--data.num_users=200", "--data.num_train=4000", "--data.num_val=500"]
    config = str(ROOT / "configs/hsnn/two_tower.yaml")
    finish("fit", "--config", config, *SMALL, *sizes, "--data.batch_size=256", f"--run_dir={tmp_path / 'run'}")
    survive(Build(tmp_path / "run"), tmp_path / "build")
    finish(*Build(tmp_path / "run").argv(tmp_path / "index"))
    survive(Delete(tmp_path / "index"), tmp_path / "delete")


def test_serve(tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    config = str(ROOT / "configs/dlrm/synthetic.yaml")
    run = tmp_path / "run"
    sizes = ["--data.num_train=2000", "--data.num_val=1000", "--trainer.max_steps=5"]
    finish("fit", "--config", config, *SMALL, *sizes, f"--run_dir={run}")
    rng, answers, served = random.Random(0), set(), 0
    for number in range(21):
        server = recloom("serve", "--run", str(run), "--port", str(port))
        try:
            if number % 4 == 3:  # while it starts
                time.sleep(rng.uniform(0, 4))
                continue
            body = json.dumps(ask(port, "model")["example"]).encode()
            until = time.monotonic() + rng.uniform(0, 0.5)
            while time.monotonic() < until or number == 20:
                answers.add(json.dumps(ask(port, "predict", body)))
                served += 1
                if number == 20:
                    break
        finally:
            kill(server)
    assert served > 20
    assert len(answers) == 1  # the same before and after every kill


def ask(port: int, page: str, body: bytes | None = None) -> Any:
    until = time.monotonic() + 90
    while True:
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/{page}", data=body)
            with urllib.request.urlopen(request, timeout=30) as got:
                return json.loads(got.read())
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def test_a_half_written_checkpoint_is_never_last(tmp_path: Path) -> None:
    """What is read is whole even if every write was cut: the file is renamed into place after it is on the disk."""
    victim = Fit()
    process = recloom(*victim.argv(tmp_path / "run"))
    last = tmp_path / "run/checkpoints/last.ckpt"
    until = time.monotonic() + 120
    while not last.exists() and time.monotonic() < until:
        time.sleep(0.005)
    kill(process)
    assert torch.is_tensor(next(iter(checkpoint.read(last)["state_dict"].values())))
    cut = tmp_path / "cut.ckpt"
    shutil.copy(last, cut)
    with cut.open("rb+") as file:
        file.truncate(last.stat().st_size // 2)
    with pytest.raises(DataError, match=r"cut\.ckpt"):
        checkpoint.read(cut)
