"""The hybrid strategy under Lightning: equal to one rank and to ddp; its checkpoints on any number of ranks."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
from distributed_ranks import run_ranks
from lightning.pytorch.callbacks import Callback

from recloom import checkpoint, dcp, sharded_checkpoint
from recloom.data.synthetic import SyntheticClicks
from recloom.dcp import RowSpans
from recloom.errors import DataError
from recloom.optim import OptimizerConfig
from recloom_dlrm.model import DLRM
from recloom_dlrm.sharding import ShardedEmbeddingBag
from recloom_dlrm.strategy import HybridParallelStrategy

BATCH = 60  # of all ranks together


class Save(Callback):
    """Saves a checkpoint after an optimizer step."""

    def __init__(self, step, path):
        self.step, self.path, self.saved = step, path, False

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.step and not self.saved:
            self.saved = True
            trainer.save_checkpoint(self.path)


def fit(rank, world, folder, name, strategy, steps, resume=None, middle=None, **options):
    """Train on `world` ranks and write NAME.ckpt and rank 0's metrics."""
    pl.seed_everything(5)
    data = SyntheticClicks(
        9000, 1000, 0, BATCH // world, 301, 0, cardinalities=(900, 40, 30, 20, 50), multi_hot={"c3": 2.0},
        rank_split="rows",
    )  # fmt: skip
    optimizer = OptimizerConfig("Adagrad", 0.02, {}, "rowwise_adagrad", 0.1, warmup_steps=30)
    model = DLRM(data.schema, 8, (16,), (16,), optimizer=optimizer, **options)
    callbacks = [] if middle is None else [Save(middle, f"{folder}/{name}-{middle}.ckpt")]
    trainer = pl.Trainer(
        accelerator="cpu", devices=world, strategy=strategy, max_steps=steps, callbacks=callbacks, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=10,
        accumulate_grad_batches=2, gradient_clip_val=0.3, val_check_interval=1.0,
        num_sanity_val_steps=0, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(model, data, ckpt_path=None if resume is None else f"{folder}/{resume}.ckpt")
    metrics = trainer.validate(model, data, verbose=False)[0]
    trainer.save_checkpoint(f"{folder}/{name}.ckpt")
    torch.save(metrics, f"{folder}/{name}-{rank}.metrics")


def _hybrid(rank, folder):
    fit(rank, 2, folder, "hybrid", HybridParallelStrategy(), 50, middle=20)
    fit(rank, 2, folder, "resumed", HybridParallelStrategy(), 50, resume="hybrid-20")
    fit(rank, 2, folder, "replanned", HybridParallelStrategy("row_wise"), 50, resume="one-20")
    fit(rank, 2, folder, "ddp", "ddp", 50, resume="hybrid-20")


def _three(rank, folder):
    fit(rank, 3, folder, "three", HybridParallelStrategy(), 50, resume="hybrid-20", embedding=ShardedEmbeddingBag)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All runs: on one rank and on several, whole and resumed."""
    folder = tmp_path_factory.mktemp("runs")
    fit(0, 1, folder, "one", "auto", 50, middle=20)
    run_ranks(_hybrid, 2, str(folder), group=False)
    run_ranks(_three, 3, str(folder), group=False)
    fit(0, 1, folder, "gathered", "auto", 50, resume="hybrid-20")
    return folder


def _whole(path):
    stored = checkpoint.read(path)
    state = stored["optimizer_states"][0]["state"]
    tensors = {f"{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}
    return stored, {**stored["state_dict"], **tensors}


@pytest.mark.parametrize("name", ["hybrid", "resumed", "replanned", "ddp", "three", "gathered"])
def test_every_way_gives_the_weights_and_states_of_one_rank(runs, name):
    one, expected = _whole(runs / "one.ckpt")
    stored, tensors = _whole(runs / f"{name}.ckpt")
    assert stored["global_step"] == one["global_step"] == 50
    assert tensors.keys() == expected.keys()
    assert sum(value.ndim == 1 and len(value) == 1040 for value in tensors.values()) == 1  # row-wise Adagrad's
    for key, value in tensors.items():
        torch.testing.assert_close(value, expected[key], atol=1e-5, rtol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(runs):
    whole, resumed = _whole(runs / "hybrid.ckpt")[1], _whole(runs / "resumed.ckpt")[1]
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_validation_agrees_across_ranks_and_with_one(runs):
    one = torch.load(runs / "one-0.metrics", weights_only=True)
    for name in ("hybrid-0", "hybrid-1", "ddp-1", "three-2"):
        assert torch.load(runs / f"{name}.metrics", weights_only=True) == pytest.approx(one, abs=1e-5)


def test_shards_are_beside_the_file_and_only_the_last_are_kept(runs, tmp_path):
    (folder,) = (runs / "hybrid.ckpt.shards").iterdir()
    assert sorted(file.name for file in folder.iterdir()) == [".metadata", "__0_0.distcp", "__1_0.distcp"]
    assert "sparse_arch.weight" not in torch.load(runs / "hybrid.ckpt", weights_only=True)["state_dict"]
    whole = checkpoint.read(runs / "hybrid.ckpt")
    assert whole["state_dict"]["sparse_arch.weight"].shape == (1040, 8)


def test_a_checkpoint_moved_without_its_shards_or_damaged_is_explained(runs, tmp_path):
    shutil.copy(runs / "hybrid.ckpt", tmp_path)
    with pytest.raises(DataError, match=r"the shards of this checkpoint are not here[^.]*\n.*Copy the .ckpt.shards"):
        checkpoint.read(tmp_path / "hybrid.ckpt")
    shutil.copytree(runs / "hybrid.ckpt.shards", tmp_path / "hybrid.ckpt.shards")
    (file,) = tmp_path.glob("hybrid.ckpt.shards/*/__1_0.distcp")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=r"__1_0\.distcp: it is cut short or damaged"):
        checkpoint.read(tmp_path / "hybrid.ckpt")


class _Evil:
    def __reduce__(self):
        return print, ("this must never run",)


def test_an_index_that_would_run_code_is_refused(tmp_path, capsys):
    rows = torch.arange(12.0).view(6, 2)
    dcp.save(tmp_path / "shards", {"state_dict/w": (rows[2:4], RowSpans(6, ((1, 2),)))})
    index = dcp.read_index(tmp_path / "shards")
    assert index.state_dict_metadata["state_dict/w"].size == (6, 2)
    later = pickle.dumps(index, protocol=2).replace(b"cpathlib\n", b"cpathlib._local\n")  # as Python 3.13 writes it
    assert b"pathlib._local" in later
    (tmp_path / "shards" / ".metadata").write_bytes(later)
    assert dcp.read_index(tmp_path / "shards") == index
    index.planner_data = _Evil()
    (tmp_path / "shards" / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(DataError, match=r"it names builtins\.print"):
        dcp.read_index(tmp_path / "shards")
    assert "never" not in capsys.readouterr().out


def test_large_tensors_travel_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(dcp, "CHUNK_BYTES", 64)
    rows = torch.arange(120.0).view(40, 3)
    dcp.save(tmp_path / "shards", {"w": (rows, RowSpans.all(40))})
    assert len(dcp.read_index(tmp_path / "shards").state_dict_metadata["w"].chunks) == 8
    spans = RowSpans(40, ((3, 4), (17, 20)))
    local = torch.zeros(24, 3)
    dcp.load(tmp_path / "shards", {"w": (local, spans)})
    assert torch.equal(local, spans.take(rows))
    with pytest.raises(DataError, match=r"w is \(40, 3\) there, \(41, 3\) here"):
        dcp.load(tmp_path / "shards", {"w": (local, RowSpans(41, spans.spans))})


def test_a_save_that_is_cut_short_leaves_the_earlier_checkpoint_whole(tmp_path):
    path = tmp_path / "last.ckpt"

    def save_shards(step):
        folder = sharded_checkpoint.new_folder(path, step)
        dcp.save(folder, {"state_dict/w": (torch.full((6, 2), float(step)), RowSpans.all(6))})
        return folder

    def stored():
        found = checkpoint.read(path)
        return found["step"], found["state_dict"]["w"].unique().tolist()

    sharded_checkpoint.write({"step": 1, "state_dict": {}}, path, save_shards(1))
    second = save_shards(2)
    assert stored() == (1, [1.0])  # killed before the file was written
    (tmp_path / "last.ckpt.part").write_bytes(b"half a file")
    assert stored() == (1, [1.0])  # killed while it was written
    sharded_checkpoint.write({"step": 2, "state_dict": {}}, path, second)
    assert stored() == (2, [2.0])
    assert list(sharded_checkpoint.folder_of(path).iterdir()) == [second]


BAD_CLICKS = """
import os
from recloom.data.synthetic import SyntheticClicks

class BadClicks(SyntheticClicks):
    def train_dataloader(self):
        for index, batch in enumerate(super().train_dataloader()):
            if index == 3 and os.environ["LOCAL_RANK"] == "1":
                batch.sparse_features.values[7] = 99
            yield batch
"""


def test_the_command_ends_soon_when_one_rank_meets_bad_data(tmp_path, root):
    """Launched by Lightning from a config: rank 1 tells its id, rank 0 that rank 1 stopped; none waits for ever."""
    (tmp_path / "bad_clicks.py").write_text(BAD_CLICKS)
    command = [sys.executable, "-m", "recloom.cli.main", "fit", "--config", root / "configs/dlrm/hybrid.yaml"]
    options = ["--data", "bad_clicks.BadClicks", "--data.cardinalities", "[50]", "--data.multi_hot", "{}"]
    options += ["--data.num_train", "5000", "--data.num_workers", "0", "--data.batch_size", "100", "--run_dir", "run"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, env=environment, timeout=100, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "feature 'c0': id 99 is outside its table of 50 rows" in done.stderr
    assert "row_wise 0-1, 25 rows each" in " ".join(done.stderr.split())  # the plan, in the log
    assert not list((tmp_path / "run").rglob("*.part"))
