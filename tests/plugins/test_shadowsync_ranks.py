"""The strategies on several ranks under Lightning: exact where they can be, ends, checkpoints, tables, Hogwild."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from distributed_ranks import run_ranks
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import MeanMetric

from recloom import checkpoint
from recloom.data.synthetic import SyntheticClicks
from recloom.optim import OptimizerConfig
from recloom.testing import run_cli
from recloom_dlrm.model import DLRM
from recloom_dlrm.sharding import ShardedEmbeddingBag
from recloom_shadowsync import named as strategies
from recloom_shadowsync.algorithms import MA
from recloom_shadowsync.members import Members, make_store
from recloom_shadowsync.replica import Exchange
from recloom_shadowsync.transport import GroupTransport

COLLECTIVES = ("broadcast", "broadcast_object_list", "all_reduce", "all_gather", "all_gather_object", "barrier")


class Rows(IterableDataset):
    """Batches of a linear problem; as many as asked for, each rank's own, at a place that checkpoints keep."""

    def __init__(self, count, rank):
        self.count, self.rank = count, rank

    def __iter__(self):
        generator = torch.Generator().manual_seed(100 + self.rank)
        weights = torch.arange(8.0)
        for _ in range(self.count):
            x = torch.randn(16, 8, generator=generator)
            yield x, x @ weights


class Linear(pl.LightningModule):
    """Any LightningModule: none of recloom's."""

    def __init__(self, delay=0.0):
        super().__init__()
        self.layer = nn.Linear(8, 1)
        self.norm = nn.BatchNorm1d(8)
        self.metric = MeanMetric()
        self.delay = delay
        self.evaluated = []

    def training_step(self, batch, index):
        time.sleep(self.delay)
        loss = nn.functional.mse_loss(self.layer(self.norm(batch[0])).squeeze(1), batch[1])
        self.log("loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch, index):
        self.metric.update(nn.functional.mse_loss(self.layer(self.norm(batch[0])).squeeze(1), batch[1]))

    def on_validation_epoch_end(self):
        self.evaluated.append((self.layer.weight.detach().clone(), float(self.metric.compute())))
        self.metric.reset()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def trainer(strategy, folder, **options):
    return pl.Trainer(
        **{
            "accelerator": "cpu", "devices": dist_world(), "strategy": strategy, "max_epochs": 1, "logger": False,
            "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
            "num_sanity_val_steps": 0, "default_root_dir": folder, "log_every_n_steps": 5, **options,
        }
    )  # fmt: skip


def dist_world():
    return int(os.environ["WORLD_SIZE"])


class Calls(Callback):
    """Counts collectives on the main thread, from the first batch on."""

    def __init__(self):
        self.counts, self._real = Counter(), {}

    def on_train_batch_start(self, trainer, module, batch, index):
        if index == 0 and not self._real:
            for name in COLLECTIVES:
                self._real[name] = getattr(dist, name)
                setattr(dist, name, self._counted(name))

    def on_validation_start(self, trainer, module):
        self._restore()  # ranks that meet to validate do so by collectives

    def on_train_end(self, trainer, module):
        self._restore()

    def _restore(self):
        for name, function in self._real.items():
            setattr(dist, name, function)

    def _counted(self, name):
        def call(*args, **kwargs):
            self.counts[name] += 1
            return self._real[name](*args, **kwargs)

        return call


def _uneven(rank, folder):
    """Each strategy: ranks with 20 and 45 batches, logging and a torchmetrics metric as users write them."""
    for name in ("ShadowMA", "ShadowBMUF", "ShadowEASGD", "LocalSGD", "FixedRateEASGD"):
        torch.manual_seed(rank)  # unequal initial weights: rank 0's count
        model, calls = Linear(delay=0.002), Calls()
        strategy = getattr(strategies, name)(min_interval=0.004, cpu_budget=1.0)
        done = trainer(strategy, folder, callbacks=[calls])
        val = DataLoader(Rows(6, 7 + rank), batch_size=None)
        done.fit(model, DataLoader(Rows((20, 45)[rank], rank), batch_size=None), val)
        done.save_checkpoint(f"{folder}/{name}.ckpt")
        saved = {
            "weights": torch.cat([p.detach().flatten() for p in model.parameters()]),
            "calls": dict(calls.counts),
            "steps": done.global_step,
            "evaluated": model.evaluated,
            "stats": strategy.stats(),
            "tracked": int(model.norm.num_batches_tracked),
        }
        torch.save(saved, f"{folder}/{name}-{rank}.pt")


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uneven")
    run_ranks(_uneven, 2, str(folder), group=False)
    return folder


@pytest.mark.parametrize("name", ["ShadowMA", "ShadowBMUF", "ShadowEASGD", "LocalSGD", "FixedRateEASGD"])
def test_ranks_with_different_numbers_of_batches_end_with_one_model(uneven, name):
    first, second = (torch.load(uneven / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert (first["steps"], second["steps"]) == (20, 45)
    assert torch.equal(first["weights"], second["weights"])
    assert bool(torch.isfinite(first["weights"]).all())
    # no collective on the main thread, though the model logs with sync_dist and Lightning would broadcast every batch
    assert first["calls"] == second["calls"] == {}
    # both validated the same model, and the metric is that of both ranks' rows
    (weights, value), (others, same) = first["evaluated"][0], second["evaluated"][0]
    assert torch.equal(weights, others)
    assert value == same
    assert first["stats"]["sync_rounds"] >= 3
    assert 0.3 < second["stats"]["sync_gap"] <= 45
    assert first["stats"]["example_parallelism"] == 32
    assert first["stats"]["sync_megabytes"] > 0
    assert first["tracked"] == second["tracked"]  # an integer buffer: rank 0's, not a mean
    stored = checkpoint.read(uneven / f"{name}.ckpt")["state_dict"]
    model = torch.cat([stored[k].flatten() for k in ("layer.weight", "layer.bias", "norm.weight", "norm.bias")])
    assert torch.equal(model, first["weights"])


def _averager(rank, folder):
    torch.manual_seed(0)
    model, reference = Linear(), Linear()
    reference.load_state_dict(model.state_dict())
    trainer(strategies.FixedRateMA(every=4), folder).fit(model, DataLoader(Rows(18, rank), batch_size=None))
    optimizer = torch.optim.SGD(reference.parameters(), 0.01)
    averager = PeriodicModelAverager(period=4, warmup_steps=0)
    averager.step = 1  # torch averages before the first step of a period, this strategy after its last
    for batch in Rows(18, rank):
        optimizer.zero_grad()
        nn.functional.mse_loss(reference.layer(reference.norm(batch[0])).squeeze(1), batch[1]).backward()
        optimizer.step()
        averager.average_parameters(reference.parameters())
    for parameter in reference.parameters():  # what the strategy does at the end
        dist.all_reduce(parameter.data)
        parameter.data /= 2
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_foreground_averaging_is_torchs_periodic_model_averager_to_the_bit(tmp_path):
    run_ranks(_averager, 2, str(tmp_path), group=False)


class Save(Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit_dlrm(rank, folder, strategy, steps=24, middle=None, resume=None, **options):
    pl.seed_everything(5)
    data = SyntheticClicks(4000, 1000, 0, 40, 301, 0, cardinalities=(300, 40, 30), multi_hot={"c1": 2.0})
    optimizer = OptimizerConfig("Adagrad", 0.02, {}, "rowwise_adagrad", 0.1)
    model = DLRM(data.schema, 8, (16,), (16,), optimizer=optimizer, **options)
    callbacks = [] if middle is None else [Save(middle, f"{folder}/middle.ckpt")]
    done = trainer(strategy, folder, max_steps=steps, max_epochs=-1, callbacks=callbacks)
    done.fit(model, data, ckpt_path=resume)
    return model, done


def _resume(rank, folder):
    for name, make in (
        ("bmuf", lambda: strategies.FixedRateBMUF(algorithm=strategies.BMUF(0.9, 0.3), alpha=0.7, tables="synced")),
        ("int8", lambda: strategies.FixedRateMA(compression="int8", tables="synced")),
        ("shared", lambda: strategies.FixedRateMA(tables="shared", exclude=["over_arch"])),
    ):
        where = Path(folder) / name
        where.mkdir(exist_ok=True)
        whole, _ = fit_dlrm(rank, where, make(), middle=12)
        resumed, _ = fit_dlrm(rank, where, make(), resume=f"{where}/middle.ckpt")
        if name == "shared":
            continue  # Hogwild: not to the bit
        for (key, a), (_, b) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
            assert torch.equal(a, b), f"{name}: {key}"


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path):
    """With rounds every 5 steps, from step 12, in between: replicas differ there, and so does what each rank wrote."""
    run_ranks(_resume, 2, str(tmp_path), group=False)
    for name in ("bmuf", "int8", "shared"):
        stored = checkpoint.read(tmp_path / name / "middle.ckpt")
        part = checkpoint.read(tmp_path / name / "middle.ckpt.ranks" / "1.ckpt")
        assert not torch.equal(stored["shadowsync"]["replica"], part["shadowsync"]["replica"])
        assert torch.equal(stored["shadowsync"]["reference"], part["shadowsync"]["reference"])
        assert "state_dict" not in part
    sizes = [len(entry) for entry in part["optimizer_states"][0]["state"].values()]
    assert len(stored["optimizer_states"][0]["state"]) == len(sizes) + 1  # the shared table's state, once


def _sharded(rank, folder):
    model, done = fit_dlrm(rank, folder, strategies.ShadowMA(cpu_budget=1.0), embedding=ShardedEmbeddingBag)
    assert model.sparse_arch.world_size == 2
    assert model.sparse_arch.row_gradient_factor == 1.0
    assert done.strategy.stats()["sync_rounds"] >= 1
    dense = torch.cat([p.detach().flatten() for n, p in model.named_parameters() if "sparse" not in n])
    assert len(dense) <= done.strategy._weights.view.flat.numel() < len(dense) + 8 * 16
    both = [torch.empty_like(dense), torch.empty_like(dense)]
    dist.all_gather(both, dense)
    assert torch.equal(*both)
    done.save_checkpoint(f"{folder}/sharded.ckpt")


def test_sharded_tables_stay_sharded_and_the_dense_part_is_synchronised(tmp_path):
    run_ranks(_sharded, 2, str(tmp_path), group=False)
    stored = checkpoint.read(tmp_path / "sharded.ckpt")
    assert stored["state_dict"]["sparse_arch.weight"].shape == (370, 8)


def _hogwild(rank, folder, server):
    for kind in (strategies.ShadowMA, strategies.ShadowEASGD):
        torch.manual_seed(0)
        model = Linear(delay=0.002)
        servers = [server] if kind is strategies.ShadowEASGD else None
        strategy = kind(hogwild=2, cpu_budget=1.0, compression="bf16", servers=servers)
        trainer(strategy, folder).fit(model, DataLoader(Rows(15 + 5 * rank, rank), batch_size=None))
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        everyone = [torch.empty_like(weights) for _ in range(4)]
        dist.all_gather(everyone, weights)
        assert all(torch.equal(weights, other) for other in everyone)
        assert strategy.stats()["example_parallelism"] == 64
        assert strategy._weights.group == [rank // 2 * 2, rank // 2 * 2 + 1]
        sent = torch.tensor(strategy.stats()["sync_megabytes"])
        assert (sent > 0) == (rank % 2 == 0)  # one of the two that share a replica speaks for it


def test_hogwild_ranks_share_a_replica_and_a_server_of_ones_own_serves_them(tmp_path):
    command = [
        sys.executable,
        "-m",
        "recloom.cli.main",
        "sync-server",
        "--listen",
        "127.0.0.1:0",
        "--algorithm",
        "EASGD",
    ]
    server = subprocess.Popen([*command, "--options", '{"alpha": 0.4}'], stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().split()[-1]
        run_ranks(_hogwild, 4, str(tmp_path), address, group=False)
    finally:
        server.kill()
        server.communicate()


def _compressed(rank, folder):
    timeout = timedelta(seconds=20)
    for kind, error in (("none", 1e-6), ("bf16", 1e-2), ("int8", 1e-2)):
        members = Members(make_store(rank, 3, timeout), rank, 3)
        transport = GroupTransport(members, lambda *_: True, kind, 1.0, timeout)
        reference = torch.randn(700, generator=torch.Generator().manual_seed(0))
        given = [reference + torch.rand(700, generator=torch.Generator().manual_seed(r)) for r in (1, 2)]
        values = None if rank == 0 else given[rank - 1]
        mean = transport.exchange(Exchange(values, 700, reference, 2))
        torch.testing.assert_close(mean, (given[0] + given[1]) / 2, atol=error, rtol=0)
        same = [torch.empty_like(mean) for _ in range(3)]
        dist.all_gather(same, mean)
        assert torch.equal(same[0], same[1])
        assert torch.equal(same[0], same[2])
        share = {"none": 1.0, "bf16": 0.6, "int8": 0.35}[kind]
        assert transport.sent <= share * 2 * 2 * 700 * 4 // 3 * 1.5
        dist.barrier()
        transport.close()


def test_compressed_means_are_the_same_on_all_ranks(tmp_path):
    run_ranks(_compressed, 3, str(tmp_path))


def test_a_name_and_its_options_from_yaml(tmp_path):
    common = ["fit", "--model=DLRM", "--data=SyntheticClicks", f"--run_dir={tmp_path}/run", "--trainer.devices=1"]
    found = run_cli([*common, "--trainer.strategy.class_path=ShadowMA", "--trainer.strategy.init_args.alpha=2"])
    assert found.code == 2
    assert "strategy: alpha is 2.0" in found.err
    found = run_cli([*common, "--trainer.strategy.class_path=ShadowMA", "--trainer.strategy.init_args.servers=[a:1]"])
    assert "MA needs no servers" in found.err
    assert strategies.ShadowMA(algorithm=MA(), servers=None).setting.alpha == 0.5
