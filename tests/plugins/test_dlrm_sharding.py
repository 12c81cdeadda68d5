"""Sharded tables: the plan, and training on several ranks beside training on one."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from distributed_ranks import run_ranks
from torch import nn

from recloom.embedding import EmbeddingBagConfig, FusedEmbeddingBag
from recloom.errors import DataError, RecloomError
from recloom.features import DenseFeature, FeatureSchema, SparseFeature
from recloom.optim import OptimizerConfig, build_optimizer
from recloom.strategy import prepare_for_ddp
from recloom_dlrm.exchange import Transfer
from recloom_dlrm.model import DLRM
from recloom_dlrm.planner import make_plan
from recloom_dlrm.sharding import ShardedEmbeddingBag

STEPS = 50
# more ranks than table d has rows, a shared table, and every pooling
TABLES = [
    EmbeddingBagConfig("a", 8, 300, ("a", "a2"), "sum"),
    EmbeddingBagConfig("b", 8, 70, ("b",), "mean"),
    EmbeddingBagConfig("c", 8, 40, ("c",), "weighted"),
    EmbeddingBagConfig("d", 8, 2, ("d",), "sum"),
]
ROWS = [300, 300, 70, 40, 2]
CASES = [
    ("bags adagrad", True, OptimizerConfig("Adagrad", 0.02, {}, "rowwise_adagrad", 0.1), {}),
    ("one-hot sgd", False, OptimizerConfig("SGD", 0.1, {}, "sgd", 0.1), {}),
    (
        "by rows",
        False,
        OptimizerConfig("SGD", 0.1, {}, "rowwise_adagrad", 0.1, clip_norm=0.2),
        {"sharding": "row_wise"},
    ),
]


class Model(nn.Module):
    """Pooled features, learned value weights, and un-pooled rows of one feature, under a linear layer."""

    def __init__(self, collection, **options):
        super().__init__()
        torch.manual_seed(0)
        self.sparse = collection(TABLES, seed=3, **options)
        self.dense = nn.Linear(4, 8)
        self.over = nn.Sequential(nn.Linear(8 * 7, 16), nn.ReLU(), nn.Linear(16, 1))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, dense, values, offsets, weights):
        finish = self.sparse.start(values, offsets, weights * self.scale)
        bottom = self.dense(dense)
        history = self.sparse.lookup("b", (dense[:, :3] * 7).int().abs().long()).sum(1)
        return self.over(torch.cat([bottom, history, finish().flatten(1)], 1)).squeeze(1)


def batch(step, bags, rank=0, world=1):
    """Return this rank's part of global batch `step`: of 11 to 13 samples, so that ranks have different numbers."""
    generator = torch.Generator().manual_seed(step)
    size = 11 + step % 3
    cut = slice(size * rank // world, size * (rank + 1) // world)
    dense, labels = torch.randn(size, 4, generator=generator), torch.rand(size, generator=generator).round()
    lengths = torch.randint(0, 5, (5, size), generator=generator) if bags else torch.ones(5, size, dtype=torch.int64)
    values, weights = [], []
    for rows, counts in zip(ROWS, lengths.tolist(), strict=True):
        ids = torch.randint(0, rows, (sum(counts),), generator=generator).split(counts)
        values += ids[cut]
        weights += torch.rand(sum(counts), generator=generator).split(counts)[cut]
    offsets = F.pad(lengths[:, cut].reshape(-1).cumsum(0), (1, 0)) if bags else None
    return dense[cut], torch.cat(values), offsets, torch.cat(weights), labels[cut]


def train(model, forward, config, bags, rank=0, world=1):
    """Train; with bags every step accumulates two batches. Return the losses."""
    passes = 1 + bags
    optimizer, _ = build_optimizer(model, config)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(passes * step, passes * (step + 1)):
            *inputs, labels = batch(part, bags, rank, world)
            loss = F.binary_cross_entropy_with_logits(forward(*inputs), labels) / passes
            (loss * getattr(model.sparse, "batch_share", 1.0)).backward()
            losses.append(loss.item() * len(labels))
        optimizer.step()
    return losses


def _train_cases(rank, world, path):
    for name, bags, config, options in CASES[: 5 - world]:
        model = Model(ShardedEmbeddingBag, **options)
        model.sparse.place()
        prepare_for_ddp(model)
        losses = train(model, nn.parallel.DistributedDataParallel(model), config, bags, rank, world)
        held = model.sparse.plan.spans(rank)
        torch.save((losses, held, model.state_dict()), f"{path}/{name}-{rank}.pt")


@pytest.mark.parametrize("world", [2, 3])
def test_several_ranks_give_the_losses_and_weights_of_one(world, tmp_path):
    run_ranks(_train_cases, world, world, str(tmp_path))
    for name, bags, config, _ in CASES[: 5 - world]:
        one = Model(FusedEmbeddingBag)
        losses = torch.tensor(train(one, one, config, bags))
        ranks = [torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in range(world)]
        together = torch.tensor([losses for losses, _, _ in ranks]).sum(0)
        torch.testing.assert_close(together, losses, atol=1e-5, rtol=1e-5)
        whole = one.state_dict()
        held = []
        for _, spans, state in ranks:
            parts = {**whole, "sparse.weight": torch.cat([whole["sparse.weight"][f : f + n] for f, n in spans])}
            for key, value in state.items():
                torch.testing.assert_close(value, parts[key], atol=1e-5, rtol=0, msg=lambda m, k=key: f"{k}: {m}")
            held += [row for first, count in spans for row in range(first, first + count)]
        assert sorted(held) == list(range(412))  # each row is on one rank


def _outside(rank):
    model = Model(ShardedEmbeddingBag)
    dense, values, offsets, weights, _ = batch(0, True, rank, 2)
    good = model(dense, values, offsets, weights)
    if rank == 1:
        with pytest.raises(DataError, match=r"feature 'd': id 5 is outside its table of 2 rows"):
            model(dense, torch.cat([values[:-1], torch.tensor([5])]), offsets, weights)
        with pytest.raises(DataError, match="do not rise"):
            model(dense, values, offsets.flip(0), weights)
    else:
        for _ in range(2):
            with pytest.raises(RecloomError, match="rank 1 stopped before the lookup of this batch"):
                model(dense, values, offsets, weights)
    assert torch.equal(model(dense, values, offsets, weights), good)  # nothing was left on its way


def test_an_id_outside_its_table_stops_all_ranks():
    run_ranks(_outside, 2)


def _overlap(rank):
    events, launch, wait = [], Transfer.launch, Transfer.wait
    Transfer.launch = lambda *args: events.append("send") or launch(*args)
    Transfer.wait = lambda self: events.append("wait") or wait(self)
    schema = FeatureSchema(
        tuple(DenseFeature(f"d{i}") for i in range(4)), tuple(SparseFeature(n, 9) for n in "xyz"), labels=("click",)
    )
    model = DLRM(schema.to_dict(), 4, (8,), (8,), embedding=ShardedEmbeddingBag)
    model.dense_arch.register_forward_hook(lambda *_: events.append("dense arch"))
    logits = model(torch.randn(5, 4), torch.randint(0, 9, (15,)))
    assert events == ["send", "wait", "send", "dense arch", "wait"]  # ids; pooled rows
    events.clear()
    model.dense_arch[0].weight.register_post_accumulate_grad_hook(lambda _: events.append("dense arch"))
    logits.sum().backward()
    assert events == ["send", "dense arch", "wait"]  # gradients of pooled rows


def test_rows_travel_while_the_dense_arch_runs():
    run_ranks(_overlap, 2)


def test_one_rank_is_the_fused_collection():
    sharded, fused = Model(ShardedEmbeddingBag), Model(FusedEmbeddingBag)
    *inputs, _ = batch(0, True)
    assert torch.equal(sharded(*inputs), fused(*inputs))
    assert sharded.state_dict().keys() == fused.state_dict().keys()
    fresh = Model(ShardedEmbeddingBag)
    fused.sparse.table_weight("c").fill_(1.0)
    fresh.load_state_dict(fused.state_dict())
    assert torch.equal(fresh.sparse.table_weight("c"), torch.ones(40, 8))


def test_plan_splits_large_tables_and_balances_the_others():
    rows = {"huge": 4_000_000, "b": 300_000, "c": 300_000, "d": 250_000, "e": 200_000, "tiny": 3}
    tables = [EmbeddingBagConfig(name, 16, count, (name,)) for name, count in rows.items()]
    plan = make_plan(tables, 4)
    kinds = {table.table.name: table.kind for table in plan.tables}
    assert kinds == {"huge": "row_wise", **dict.fromkeys(["b", "c", "d", "e", "tiny"], "table_wise")}
    sizes = [sum(count for _, count in plan.spans(rank)) for rank in range(4)]
    assert sum(sizes) == 5_050_003
    assert max(sizes) / (sum(sizes) / 4) < 1.05
    spans = sorted(span for rank in range(4) for span in plan.spans(rank))
    assert all(first + count == after for (first, count), (after, _) in itertools.pairwise(spans))
    shown = [line.split() for line in plan.report().splitlines()]
    assert shown[1] == "huge 4,000,000 16 256.0 1 row_wise 0-3, 1,000,000 rows each".split()
    assert shown[-1] == "rank 3: 76.8 MB, 2.25 lookups a sample".split()
    # a table that is looked up often weighs more than its bytes say, and tables can be pinned
    busy = make_plan(tables[1:], 4, lookups={"tiny": 40.0})
    assert {t.ranks for t in busy.tables if t.table.name != "tiny"}.isdisjoint({busy.tables[-1].ranks})
    pinned = make_plan(tables, 4, "table_wise", {"b": "row_wise"})
    assert [table.kind for table in pinned.tables].count("row_wise") == 1
    with pytest.raises(RecloomError, match="Did you mean 'tiny'"):
        make_plan(tables, 4, overrides={"tinny": "row_wise"})
    with pytest.raises(RecloomError, match="column_wise"):
        make_plan(tables, 4, "column_wise")


def test_more_ranks_than_rows_or_tables():
    plan = make_plan([EmbeddingBagConfig("a", 4, 3, ("a",))], 5, "row_wise")
    assert [plan.spans(rank) for rank in range(5)] == [((0, 1),), ((1, 1),), ((2, 1),), (), ()]
