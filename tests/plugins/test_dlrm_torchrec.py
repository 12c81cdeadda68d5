"""The TorchRec backend: equal to the default one on one rank, and to one rank on several; its checkpoints."""

from __future__ import annotations

import copy

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from distributed_ranks import run_ranks
from torch import nn

from recloom import checkpoint
from recloom.data.synthetic import SyntheticClicks
from recloom.embedding import EmbeddingBagConfig, FusedEmbeddingBag
from recloom.errors import DataError, RecloomError
from recloom.optim import OptimizerConfig, build_optimizer
from recloom.strategy import prepare_for_ddp
from recloom_dlrm.model import DLRM
from recloom_dlrm.strategy import HybridParallelStrategy

pytest.importorskip("torchrec")

from recloom_dlrm.torchrec_backend import TorchRecEmbeddingBag

STEPS = 20
# a shared table, every pooling, a table that is split by rows between tables that are not
TABLES = [
    EmbeddingBagConfig("b", 8, 70, ("b",), "mean"),
    EmbeddingBagConfig("a", 8, 301, ("a", "a2"), "sum"),
    EmbeddingBagConfig("c", 8, 40, ("c",), "weighted"),
    EmbeddingBagConfig("d", 8, 2, ("d",), "sum"),
]
ROWS = [70, 301, 301, 40, 2]
ADAGRAD = OptimizerConfig("Adagrad", 0.02, {}, "rowwise_adagrad", 0.1)
CASES = {  # bags (two batches a step), un-pooled rows too, optimizer, options
    "mixed": (True, False, ADAGRAD, {"sharding": "table_wise", "overrides": {"a": "row_wise"}}),
    "lookup": (True, True, ADAGRAD, {"sharding": "table_wise"}),
    "one-hot": (False, False, OptimizerConfig("SGD", 0.1, {}, "sgd", 0.1), {}),
    "rows": (True, False, OptimizerConfig("SGD", 0.1, {}, "adagrad", 0.1), {"sharding": "row_wise"}),
}


class Model(nn.Module):
    """Pooled features, and in part un-pooled rows of one, under a linear layer."""

    def __init__(self, collection, lookup=False, **options):
        super().__init__()
        torch.manual_seed(0)
        self.sparse, self.lookup = collection(TABLES, seed=3, **options), lookup
        self.dense, self.over = nn.Linear(4, 8), nn.Linear(8 * 7, 1)

    def forward(self, dense, values, offsets, weights):
        finish = self.sparse.start(values, offsets, weights)
        bottom = self.dense(dense)
        last = self.sparse.lookup("b", (dense[:, 0] * 7).int().abs().long()) if self.lookup else bottom
        return self.over(torch.cat([bottom, last, finish().flatten(1)], 1).sin()).squeeze(1)


def batch(step, bags, rank=0, world=1):
    """Return this rank's part of global batch `step`: of 11 to 13 samples, so that ranks have different numbers."""
    generator = torch.Generator().manual_seed(step)
    size = 11 + step % 3
    cut = slice(size * rank // world, size * (rank + 1) // world)
    dense, labels = torch.randn(size, 4, generator=generator), torch.rand(size, generator=generator).round()
    lengths = torch.randint(0, 5, (5, size), generator=generator) if bags else torch.ones(5, size, dtype=torch.int64)
    values, weights = [], []
    for rows, counts in zip(ROWS, lengths.tolist(), strict=True):
        values += torch.randint(0, rows, (sum(counts),), generator=generator).split(counts)[cut]
        weights += torch.rand(sum(counts), generator=generator).split(counts)[cut]
    offsets = F.pad(lengths[:, cut].reshape(-1).cumsum(0), (1, 0)) if bags else None
    return dense[cut], torch.cat(values), offsets, torch.cat(weights), labels[cut]


def train(model, forward, config, bags, rank=0, world=1):
    """Train; with bags every step accumulates two batches. Return the optimizer."""
    passes = 1 + bags
    optimizer, policy = build_optimizer(model, config)
    schedule = None if policy is None else torch.optim.lr_scheduler.LambdaLR(optimizer, policy)
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(passes * step, passes * (step + 1)):
            *inputs, labels = batch(part, bags, rank, world)
            loss = F.binary_cross_entropy_with_logits(forward(*inputs), labels) / passes
            (loss * getattr(model.sparse, "batch_share", 1.0)).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return optimizer


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bags", [True, False])
@pytest.mark.parametrize("rule", ["sgd", "rowwise_adagrad", "adagrad"])
def test_one_rank_equals_the_default(rule, bags):
    mine, theirs = Model(FusedEmbeddingBag), copy.deepcopy(Model(TorchRecEmbeddingBag))
    *inputs, _ = batch(0, bags)
    close(theirs(*inputs), mine(*inputs))
    theirs = copy.deepcopy(theirs)  # one whose TorchRec modules exist already
    assert torch.equal(theirs.sparse.weight, mine.sparse.weight)
    config = OptimizerConfig("SGD", 0.1, {}, rule, 0.1, warmup_steps=2 * STEPS)
    optimizers = [train(model, model, config, bags) for model in (mine, theirs)]
    close(theirs.state_dict(), mine.state_dict())  # plain tensors under the default's names
    close(optimizers[1].state_dict()["state"], optimizers[0].state_dict()["state"])
    (kernel,) = theirs.sparse.backend.get(theirs.sparse.weight, theirs.sparse.plan).kernels
    assert kernel.get_learning_rate() == pytest.approx(0.05)  # TorchRec's optimizer made the last step
    assert kernel.optimizer.value == f"exact_{rule.replace('rowwise_', 'row_wise_')}"
    mine.load_state_dict(theirs.state_dict())


def test_gradients_of_rows_and_of_value_weights_on_one_rank():
    models = [Model(kind, lookup=True) for kind in (FusedEmbeddingBag, TorchRecEmbeddingBag)]
    dense, values, offsets, weights, _ = batch(0, True)
    learned = [weights.clone().requires_grad_() for _ in models]
    for model, mine in zip(models, learned, strict=True):
        model(dense, values, offsets, mine).sum().backward()
        train(model, model, ADAGRAD, True)
    close(learned[1].grad, learned[0].grad)
    close(models[1].state_dict(), models[0].state_dict())


def fit(folder, name, world, strategy, embedding, resume=None, steps=20):
    """Train on `world` ranks and write NAME.ckpt."""
    pl.seed_everything(5)
    data = SyntheticClicks(
        9000, 300, 0, 60 // world, 301, 0, cardinalities=(900, 40, 30, 20, 50), multi_hot={"c3": 2.0}, rank_split="rows"
    )
    optimizer = OptimizerConfig("Adagrad", 0.02, {}, "rowwise_adagrad", 0.1, warmup_steps=10)
    model = DLRM(data.schema, 8, (16,), (16,), optimizer=optimizer, embedding=embedding)
    trainer = pl.Trainer(
        accelerator="cpu", devices=world, strategy=strategy, max_steps=steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, data, ckpt_path=None if resume is None else f"{folder}/{resume}.ckpt")
    trainer.save_checkpoint(f"{folder}/{name}.ckpt")


def _train_cases(rank, folder):
    for name, (bags, lookup, config, options) in CASES.items():
        model = Model(TorchRecEmbeddingBag, lookup, **options)
        model.sparse.place()
        prepare_for_ddp(model)
        train(model, nn.parallel.DistributedDataParallel(model), config, bags, rank, 2)
        torch.save((model.sparse.plan.spans(rank), model.state_dict()), f"{folder}/{name}-{rank}.pt")


def _refusals(rank):
    model = Model(TorchRecEmbeddingBag, sharding="row_wise")
    dense, values, offsets, weights, _ = batch(0, True, rank, 2)
    good = model(dense, values, offsets, weights)
    bad = torch.cat([values[:-1], torch.tensor([5])])
    with pytest.raises(RecloomError, match="feature 'd': id 5 is outside" if rank else "rank 1 stopped before"):
        model(dense, bad if rank else values, offsets, weights)
    with pytest.raises(RecloomError, match="no gradients to value weights"):
        model(dense, values, offsets, weights.requires_grad_())
    assert torch.equal(model(dense, values, offsets, weights.detach()), good)  # nothing was left on its way
    empty = dense[:0], values[:0], torch.zeros(1, dtype=torch.int64), weights[:0].detach()
    assert len(model(*(empty if rank else (dense, values, offsets, weights.detach())))) == (0 if rank else len(dense))
    narrow = TorchRecEmbeddingBag([EmbeddingBagConfig("few", 8, 1, ("few",))], sharding="row_wise")
    with pytest.raises(RecloomError, match=r"cannot split the 1 rows of table 'few' over 2 ranks.*\n.*few: table_wise"):
        narrow.place()


def _ranks(rank, folder):
    fit(folder, "hybrid", 2, HybridParallelStrategy(), TorchRecEmbeddingBag)
    fit(folder, "ddp", 2, "ddp", TorchRecEmbeddingBag, resume="one", steps=30)
    _train_cases(rank, folder)
    _refusals(rank)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What two ranks have trained, and one."""
    folder = tmp_path_factory.mktemp("runs")
    fit(folder, "one", 1, "auto", FusedEmbeddingBag)
    run_ranks(_ranks, 2, str(folder), group=False)
    fit(folder, "back", 1, "auto", FusedEmbeddingBag, resume="hybrid", steps=30)
    fit(folder, "on", 1, "auto", FusedEmbeddingBag, resume="one", steps=30)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_give_the_weights_of_one(runs, name):
    bags, lookup, config, _ = CASES[name]
    one = Model(FusedEmbeddingBag, lookup)
    before = one.sparse.weight.detach().clone()
    train(one, one, config, bags)
    assert (one.sparse.weight - before).abs().max() > 1e-3
    whole, held = one.state_dict(), []
    for rank in range(2):
        spans, state = torch.load(runs / f"{name}-{rank}.pt", weights_only=True)
        rows = [row for first, count in spans for row in range(first, first + count)]
        close(state, {**whole, "sparse.weight": whole["sparse.weight"][rows]})
        held += rows
    assert sorted(held) == list(range(413))  # each row is on one rank


@pytest.mark.parametrize(("name", "expected"), [("hybrid", "one"), ("ddp", "on"), ("back", "on")])
def test_strategies_give_the_checkpoint_of_one_rank_and_the_default(runs, name, expected):
    actual, one = checkpoint.read(runs / f"{name}.ckpt"), checkpoint.read(runs / f"{expected}.ckpt")
    close(dict(actual["state_dict"]), dict(one["state_dict"]))
    states = [stored["optimizer_states"][0]["state"] for stored in (actual, one)]
    assert any("sum" in entry and entry["sum"].shape == (1040,) for entry in states[0].values())
    close(*states)


def test_what_torchrec_cannot_do_is_refused():
    with pytest.raises(RecloomError, match="a multiple of 4, not 6"):
        TorchRecEmbeddingBag([EmbeddingBagConfig("a", 6, 3, ("a",))])
    with pytest.raises(DataError, match="feature 'b': id 70 is outside its table of 70 rows"):
        TorchRecEmbeddingBag(TABLES)(torch.tensor([70, 0, 0, 0, 0]), None, torch.ones(5))
    for offsets in ([0, 1, 2, 3, 4, 9], [0, 2, 1, 3, 4, 5], [1, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 4]):
        with pytest.raises(DataError, match="offsets of 5 ids do not rise"):
            TorchRecEmbeddingBag(TABLES)(torch.zeros(5, dtype=torch.int64), torch.tensor(offsets), torch.ones(5))
