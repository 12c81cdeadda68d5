"""The composite optimizer: dense and row parameters together, its states, its learning rates, several ranks."""

from __future__ import annotations

import gc
import io
import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from recloom import rowgrad
from recloom.embedding import EmbeddingBagConfig, FusedEmbeddingBag
from recloom.errors import RecloomError
from recloom.optim import CompositeOptimizer, OptimizerConfig, build_optimizer, clip_dense_norm, lr_policy

OPTIMIZERS = [("SGD", "sgd", {"momentum": 0.9}), ("Adam", "rowwise_adagrad", {}), ("Adagrad", "adagrad", {})]


class Model(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.rows = FusedEmbeddingBag([EmbeddingBagConfig(n, 8, 30, (n,)) for n in ("a", "b")])
        self.over = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 1))

    def forward(self, ids):
        return self.over(self.rows(ids).flatten(1)).squeeze(1)


def batch(step, samples=8):
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 30, (2, samples), generator=generator)
    return ids, (ids.sum(0) % 2).float()


def train(model, optimizer, steps, scheduler=None):
    losses = []
    for step in steps:
        ids, labels = batch(step)

        def closure(ids=ids, labels=labels):
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(model(ids.view(-1)), labels)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
        if scheduler is not None:
            scheduler.step()
    return losses


@pytest.mark.parametrize(("dense", "sparse", "options"), OPTIMIZERS)
def test_a_resumed_run_equals_an_uninterrupted_one(dense, sparse, options):
    config = OptimizerConfig(dense, 0.02, options, sparse, 0.05, warmup_steps=6, decay_steps=20)

    def fresh():
        model = Model()
        optimizer, policy = build_optimizer(model, config)
        return model, optimizer, LambdaLR(optimizer, policy)

    whole = fresh()
    losses = train(whole[0], whole[1], range(12), whole[2])
    first = fresh()
    assert train(first[0], first[1], range(5), first[2]) == losses[:5]
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    second = fresh()
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert train(second[0], second[1], range(5, 12), second[2]) == losses[5:]
    assert second[1].param_groups[0]["lr"] == second[1]._inner.param_groups[0]["lr"] == whole[1].param_groups[0]["lr"]
    assert all(torch.equal(p, q) for p, q in zip(whole[0].parameters(), second[0].parameters(), strict=True))


def test_dense_part_equals_torch_and_tables_have_no_grad():
    model, twin = Model(), Model()
    optimizer, policy = build_optimizer(model, OptimizerConfig("Adam", 0.01, {"weight_decay": 0.1}, sparse_lr=0.01))
    assert policy is None
    assert [g["lr"] for g in optimizer.param_groups] == [0.01, 0.01]
    dense = torch.optim.Adam(twin.over.parameters(), lr=0.01, weight_decay=0.1)
    table = CompositeOptimizer([], [twin.rows.weight], OptimizerConfig(sparse_lr=0.01))
    train(model, optimizer, range(4))
    for step in range(4):
        ids, labels = batch(step)
        dense.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(twin(ids.view(-1)), labels).backward()
        dense.step()
        table.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert model.rows.weight.grad is None


def test_accumulated_passes_equal_one_large_batch():
    """The reference throws away all but the last micro-batch; here they add up."""
    one, many = Model(), Model()
    first, _ = build_optimizer(one, OptimizerConfig(sparse="rowwise_adagrad"))
    second, _ = build_optimizer(many, OptimizerConfig(sparse="rowwise_adagrad"))
    for step in range(3):
        ids, labels = batch(step, 12)
        one.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(one(ids.view(-1)), labels).backward()
        first.step()
        second.zero_grad()
        for part in range(0, 12, 4):
            logits = many(ids[:, part : part + 4].reshape(-1))
            (nn.functional.binary_cross_entropy_with_logits(logits, labels[part : part + 4]) / 3).backward()
        second.step()
    for p, q in zip(one.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_zero_grad_drops_row_gradients_and_step_uses_them_up():
    model = Model()
    optimizer, _ = build_optimizer(model, OptimizerConfig())
    ids, _ = batch(0)
    before = model.rows.weight.detach().clone()
    model(ids.view(-1)).sum().backward()
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(before, model.rows.weight)
    model(ids.view(-1)).sum().backward()
    optimizer.step()
    once = model.rows.weight.detach().clone()
    assert not torch.equal(before, once)
    optimizer.step()
    assert torch.equal(once, model.rows.weight)


def test_a_frozen_table_stays_as_it_is():
    model = Model()
    model.rows.weight.requires_grad_(False)
    optimizer, _ = build_optimizer(model, OptimizerConfig())
    before = model.rows.weight.clone()
    train(model, optimizer, range(3))
    assert torch.equal(before, model.rows.weight)
    assert model.rows.weight.row_gradients == []


def test_clipping_scales_dense_gradients_only():
    model = Model()
    ids, _ = batch(0)
    (1000 * model(ids.view(-1)).sum()).backward()
    rows = model.rows.weight.row_gradients[0].bags.clone()
    clip_dense_norm(model.parameters(), 0.5)
    norm = torch.stack([p.grad.norm() for p in model.over.parameters()]).norm()
    assert norm == pytest.approx(0.5, rel=1e-4)
    assert torch.equal(rows, model.rows.weight.row_gradients[0].bags)
    optimizer, _ = build_optimizer(model, OptimizerConfig(clip_norm=0.1, dense_lr=1.0))
    before = [p.detach().clone() for p in model.over.parameters()]
    optimizer.step()
    moved = torch.stack([(p.detach() - b).norm() for p, b in zip(model.over.parameters(), before, strict=True)]).norm()
    assert moved == pytest.approx(0.1, rel=1e-3)


def test_policy_warms_up_holds_and_decays_without_a_jump():
    """The reference holds at (w-1)/w of the rate, jumps at the decay's start and never decays to the floor."""
    factor = lr_policy(OptimizerConfig(warmup_steps=4, decay_start=8, decay_steps=4), lr=1.0)
    values = [factor(step) for step in range(14)]
    assert values[:9] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert values[9:] == pytest.approx([0.5625, 0.25, 0.0625, 1e-7, 1e-7])
    assert lr_policy(OptimizerConfig(decay_steps=2), lr=10.0)(5) == pytest.approx(1e-8)
    assert lr_policy(OptimizerConfig(decay_steps=2), lr=0.0)(1) == 0.25  # a table that stays as it is
    with pytest.raises(RecloomError, match="decay_start 2 is before the end of the warm-up"):
        lr_policy(OptimizerConfig(warmup_steps=4, decay_start=2, decay_steps=4), lr=1.0)


def test_mistakes_in_the_configuration_are_explained():
    with pytest.raises(RecloomError, match="Did you mean 'Adagrad'"):
        build_optimizer(Model(), OptimizerConfig("adagrad"))
    with pytest.raises(RecloomError, match="momentun"):
        build_optimizer(Model(), OptimizerConfig(dense_options={"momentun": 0.9}))
    for wrong in ({"dense_lr": -1.0}, {"sparse_lr": float("nan")}, {"clip_norm": 0.0}, {"warmup_steps": -1}):
        with pytest.raises(RecloomError, match=f"optimizer.{next(iter(wrong))} is"):
            OptimizerConfig(**wrong)


def _rank(rank, port, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank, timeout=timedelta(seconds=60))
    model = Model()
    ignored = [name for name, _ in rowgrad.row_parameters(model)]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
    replica = nn.parallel.DistributedDataParallel(model)
    optimizer, _ = build_optimizer(model, OptimizerConfig(sparse="rowwise_adagrad"))
    for step in range(5):
        ids, labels = batch(step, 12)
        mine = slice(0, 6) if rank == 0 else slice(6, 12)
        optimizer.zero_grad()
        logits = replica(ids[:, mine].reshape(-1))
        nn.functional.binary_cross_entropy_with_logits(logits, labels[mine]).backward()
        optimizer.step()
    torch.save(model.state_dict(), f"{path}/{rank}.pt")
    different = Model(seed=rank)
    other, _ = build_optimizer(different, OptimizerConfig())
    with pytest.raises(RecloomError, match="rank 1 has other embedding rows than rank 0"):
        other.step()
    second = FusedEmbeddingBag([EmbeddingBagConfig("second", 8, 30, ("c",))], seed=rank)
    both, _ = build_optimizer(nn.ModuleList([model.rows, second]), OptimizerConfig())
    with pytest.raises(RecloomError, match="rank 1 has other embedding rows than rank 0"):
        both.step()
    # DDP's reducer first: if it is the last to hold the process group, its end waits, with the interpreter's lock, for
    # a thread that may be waiting for that lock
    del replica
    gc.collect()
    dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path):
    port = 20_000 + os.getpid() % 20_000
    context = mp.spawn(_rank, args=(port, str(tmp_path)), nprocs=2, join=False)
    model = Model()
    optimizer, _ = build_optimizer(model, OptimizerConfig(sparse="rowwise_adagrad"))
    for step in range(5):
        ids, labels = batch(step, 12)
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(ids.view(-1)), labels).backward()
        optimizer.step()
    while not context.join():
        pass
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, value in model.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], value, atol=1e-6, rtol=1e-5)
