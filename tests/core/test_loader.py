"""Batches from blocks: order, ranks, resuming, workers, errors."""

import os
import random
import signal
import subprocess
import sys
from itertools import chain

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recloom.batch import Batch, KeyedJaggedTensor
from recloom.data.loader import BatchLoader, BlockSource
from recloom.data.plan import EpochPlan
from recloom.errors import DataError


class Numbers(BlockSource):
    """Rows numbered from 0; blocks are shuffled by epoch; a bag of row number r holds r % 3 ids."""

    def __init__(self, sizes, fault=None):
        self.sizes = list(sizes)
        self.fault = fault

    def _order(self, epoch):
        order = list(range(len(self.sizes)))
        random.Random(epoch).shuffle(order)
        return order

    def block_rows(self, epoch):
        return [self.sizes[block] for block in self._order(epoch)]

    def load(self, epoch, index):
        block = self._order(epoch)[index]
        if self.fault == "error" and index == 1:
            raise DataError("shard 7: it is broken", "Mend it.")
        if self.fault == "death" and index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        start = sum(self.sizes[:block])
        row = torch.arange(start, start + self.sizes[block])
        lengths = torch.cat([row % 3, torch.ones_like(row)])
        ids = torch.cat([torch.repeat_interleave(row, row % 3), row]).int()
        sparse = KeyedJaggedTensor(["bag", "one"], ids, lengths, weights=ids * 0.5)
        return Batch(row[:, None].float(), sparse, row.float(), extras={"row": row})


def loader(source, size=10, drop_last=True, **options):
    return BatchLoader(source, size, drop_last=drop_last, **options)


def rows(batches):
    return [batch.extras["row"].tolist() for batch in batches]


def check(batch):
    """All columns of a batch belong to the same rows."""
    row, sparse = batch.extras["row"], batch.sparse_features
    assert torch.equal(batch.labels, row.float())
    ids, lengths = sparse["bag"]
    assert torch.equal(lengths, row % 3)
    assert torch.equal(ids, torch.repeat_interleave(row, row % 3))
    assert torch.equal(sparse["one"][0], row)
    assert sparse.values.dtype == torch.int64
    assert torch.equal(sparse.weights, sparse.values * 0.5)


def test_batches_cross_blocks_and_keep_their_columns_together():
    batches = list(loader(Numbers([7, 23, 4, 1, 18]), drop_last=False))
    for batch in batches:
        check(batch)
    assert [len(batch) for batch in batches] == [10, 10, 10, 10, 10, 3]
    assert sorted(chain(*rows(batches))) == list(range(53))


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    size=st.integers(1, 12),
    ranks=st.integers(1, 5),
    by_rows=st.booleans(),
    drop_last=st.booleans(),
)
def test_ranks_share_the_rows_in_equally_many_batches(sizes, size, ranks, by_rows, drop_last):
    split = "rows" if by_rows else "blocks"
    try:
        plans = [EpochPlan(sizes, size, rank, ranks, split, drop_last) for rank in range(ranks)]
    except DataError:
        few = sum(sizes) < (size * ranks if drop_last else ranks)
        assert few or (size == 1 and sum(sizes) % ranks)
        return
    assert len({len(plan) for plan in plans}) == 1
    spans = [plan.span(index) for plan in plans for index in range(len(plan))]
    lengths = [end - start for start, end in spans]
    seen = sorted(row for start, end in spans for row in range(start, end))
    assert len(set(seen)) == len(seen) == plans[0].used
    if drop_last:
        assert set(lengths) == {size}
        assert sum(sizes) - len(seen) < size * ranks
    else:
        assert seen == list(range(sum(sizes)))
        assert min(lengths) >= 1
        assert max(lengths) <= size


@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_split_by_rows_see_what_one_rank_sees(drop_last):
    source = Numbers([31, 50, 9, 40])
    whole = rows(loader(source, 30, drop_last))
    parts = [rows(loader(source, 10, drop_last, rank=rank, world_size=3, rank_split="rows")) for rank in range(3)]
    assert [list(chain(*batches)) for batches in zip(*parts, strict=True)] == whole


def test_epochs_are_reshuffled_and_follow_set_epoch():
    batches = loader(Numbers([10] * 6))
    first, second = rows(batches), rows(batches)
    assert first != second
    batches.set_epoch(0)
    assert rows(batches) == first
    assert rows(batches) == second


@pytest.mark.parametrize("split", ["blocks", "rows"])
def test_resumes_at_every_position(split):
    source = Numbers([7, 23, 4, 1, 18])
    options = {"rank": 1, "world_size": 2, "rank_split": split, "size": 4}
    whole = loader(source, **options)
    epochs = [rows(whole), rows(whole)]
    for taken in range(len(whole) + 1):
        stopped, resumed = loader(source, **options), loader(source, **options)
        iterator = iter(stopped)
        for _ in range(taken):
            next(iterator)
        resumed.load_state_dict(stopped.state_dict())
        expected = epochs[0][taken:] or epochs[1]
        assert rows(resumed) == expected


def test_resuming_with_another_batch_size_keeps_the_place(caplog):
    stopped, resumed = loader(Numbers([50, 50]), 10), loader(Numbers([50, 50]), 5)
    iterator = iter(stopped)
    for _ in range(4):
        next(iterator)
    resumed.load_state_dict(stopped.state_dict())
    assert len(rows(resumed)) == 12
    assert "had 10 in the checkpoint" in caplog.text


def test_workers_change_nothing_and_leave_the_global_generator_alone():
    source = Numbers([7, 23, 4, 1, 18])
    expected = loader(source, 5, drop_last=False)
    expected = [rows(expected), rows(expected)]
    batches = loader(source, 5, drop_last=False, num_workers=2)
    state = torch.get_rng_state()
    assert [rows(batches), rows(batches)] == expected
    assert torch.equal(torch.get_rng_state(), state)
    iterator = iter(batches)  # an epoch left in the middle does not leak into the next one
    next(iterator)
    batches.set_epoch(0)
    assert rows(batches) == expected[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_error_in_a_worker_arrives_as_it_was_raised(workers):
    with pytest.raises(DataError) as caught:
        list(loader(Numbers([20, 20, 20], "error"), num_workers=workers))
    assert str(caught.value) == "shard 7: it is broken\n  Mend it."


def test_a_worker_that_dies_is_explained():
    with pytest.raises(DataError, match=r"died.*\n.*shm"):
        list(loader(Numbers([20, 20, 20], "death"), num_workers=1))


def test_too_few_rows_say_so():
    with pytest.raises(DataError, match="9 rows are too few for a batch of 10"):
        loader(Numbers([4, 5]))


@pytest.mark.parametrize("stop", [3, 4, 10])
@pytest.mark.parametrize("limit", [1.0, 4])
def test_lightning_resumes_in_mid_epoch_and_between_epochs(tmp_path, stop, limit):
    """After `stop` steps: in the middle of an epoch, at its end if limited, at its end if whole."""
    # not at the top: each worker imports this module to find Numbers
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Recorder(LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen = []

        def training_step(self, batch, batch_idx):
            self.seen.append((self.current_epoch, batch.extras["row"].tolist()))
            return (self.weight * batch.labels.mean()).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    def fit(folder, ckpt=None):
        module = Recorder()
        checkpoints = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = Trainer(max_epochs=3, callbacks=[checkpoints], limit_train_batches=limit, **quiet)
        trainer.fit(module, loader(Numbers([25, 40, 35])), ckpt_path=ckpt)
        return module.seen

    whole = fit(tmp_path / "a")
    assert whole[0][1] != whole[len(whole) // 3][1]
    assert fit(tmp_path / "b", ckpt=tmp_path / "a" / f"step={stop}.ckpt") == whole[stop:]


ORPHANS = """
import multiprocessing, time, torch
from recloom.data.synthetic import SyntheticClicks

if __name__ == "__main__":
    data = SyntheticClicks(num_train=400_000, num_workers=2)
    loader = data.train_dataloader()
    batches = iter(loader)
    next(batches)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_killed_training_leaves_no_workers_behind(tmp_path):
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3  # the fork server and two workers
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
