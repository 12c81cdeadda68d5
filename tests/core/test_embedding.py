"""Embedding tables against torch's own nn.EmbeddingBag, for the native kernels and the plain torch operations."""

from __future__ import annotations

import copy
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from recloom import native, rowgrad, rowkernels
from recloom.embedding import EmbeddingBagConfig, FusedEmbeddingBag, init_rows
from recloom.errors import DataError, RecloomError
from recloom.optim import CompositeOptimizer, OptimizerConfig, build_optimizer

POOLED = [("a", 7, ("fa",), "sum"), ("b", 50, ("fb1", "fb2"), "mean"), ("c", 3, ("fc",), "weighted")]
RULES = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}


@pytest.fixture(params=["native", "torch"])
def path(request, monkeypatch):
    """Run the test on the native kernels, then on the torch operations that stand in for them."""
    if request.param == "torch":
        monkeypatch.setattr(rowkernels, "_kernels", lambda: None)
    elif rowkernels._kernels() is None:
        pytest.skip("no C compiler")
    return request.param


def collection(width=8, tables=POOLED, **options):
    return FusedEmbeddingBag([EmbeddingBagConfig(n, width, r, f, p) for n, r, f, p in tables], seed=3, **options)


def jagged(samples=6, seed=0, rows=(7, 50, 50, 3)):
    """Bags of 0 to 5 ids with many duplicates: (values, offsets, weights)."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 6, (len(rows) * samples,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    counts = lengths.view(len(rows), samples).sum(1).tolist()
    ids = [torch.randint(0, r, (n,), generator=generator) for r, n in zip(rows, counts, strict=True)]
    return torch.cat(ids), offsets, torch.randn(int(offsets[-1]), generator=generator)


class Reference(nn.Module):
    """One dense nn.EmbeddingBag a table."""

    def __init__(self, bag: FusedEmbeddingBag) -> None:
        super().__init__()
        self.tables = bag.tables
        self.weights = nn.ParameterList(bag.table_weight(t.name).clone() for t in bag.tables)

    def forward(self, values, offsets, weights):
        samples, outputs, place = (len(offsets) - 1) // 4, [], 0
        for table, weight in zip(self.tables, self.weights, strict=True):
            for _ in table.feature_names:
                bounds = offsets[place * samples : (place + 1) * samples + 1]
                ids = values[bounds[0] : bounds[-1]]
                mode, scale = ("mean", None) if table.pooling == "mean" else ("sum", None)
                if table.pooling == "weighted":
                    scale = weights[bounds[0] : bounds[-1]]
                outputs.append(
                    nn.functional.embedding_bag(
                        ids, weight, bounds - bounds[0], mode=mode, per_sample_weights=scale, include_last_offset=True
                    )
                )
                place += 1
        return torch.stack(outputs, 1)


@pytest.mark.parametrize("width", [5, 8, 16, 24, 32, 64, 128])
def test_pooling_equals_torch(path, width):
    bag = collection(width)
    values, offsets, weights = jagged()
    assert (offsets.diff() == 0).any()
    with torch.no_grad():
        torch.testing.assert_close(bag(values, offsets, weights), Reference(bag)(values, offsets, weights))


@pytest.mark.parametrize("width", [5, 16])
@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("rule", ["sgd", "adagrad", "rowwise_adagrad"])
def test_updates_equal_a_dense_reference(path, rule, passes, width):
    """Three steps, each of one or several backward passes over bags with duplicates, then weights and states agree."""
    bag = collection(width)
    reference = Reference(bag)
    config = OptimizerConfig(sparse=rule, sparse_lr=0.3, sparse_eps=1e-8)
    optimizer = CompositeOptimizer([], [bag.weight], config)
    state = [torch.zeros(len(w)) for w in reference.weights]
    dense = RULES.get(rule, torch.optim.SGD)(
        reference.parameters(), lr=0.3, **({"eps": 1e-8} if rule == "adagrad" else {})
    )
    for step in range(3):
        reference.zero_grad()
        optimizer.zero_grad()
        for k in range(passes):
            batch = jagged(samples=6 + k, seed=10 * step + k)
            goal = torch.randn(6 + k, 4, width)
            (bag(*batch) * goal).sum().backward()
            (reference(*batch) * goal).sum().backward()
        if rule == "rowwise_adagrad":
            for weight, total in zip(reference.weights, state, strict=True):
                total += weight.grad.square().mean(1)
                weight.grad /= (total.sqrt() + 1e-8)[:, None]
        optimizer.step()
        dense.step()
    assert bag.weight.grad is None
    for table, weight in zip(bag.tables, reference.weights, strict=True):
        torch.testing.assert_close(bag.table_weight(table.name), weight.detach(), atol=2e-5, rtol=1e-4)


def test_gradient_of_value_weights(path):
    bag = collection(16)
    values, offsets, weights = jagged()
    mine, theirs = weights.clone().requires_grad_(), weights.clone().requires_grad_()
    goal = torch.randn(6, 4, 16)
    (bag(values, offsets, mine) * goal).sum().backward()
    (Reference(bag)(values, offsets, theirs) * goal).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
    assert mine.grad.count_nonzero() == offsets[-1] - offsets[18]


def test_one_hot_equals_bags_of_one(path):
    tables = [("a", 7, ("fa",), "sum"), ("b", 50, ("fb1", "fb2"), "mean"), ("c", 3, ("fc",), "weighted")]
    bag = collection(16, tables)
    ids = torch.stack([torch.randint(0, r, (9,)) for r in (7, 50, 50, 3)]).view(-1)
    weights = torch.rand(36)
    torch.testing.assert_close(bag(ids, None, weights), bag(ids, torch.arange(37), weights))


def test_strided_gradients_are_read_in_place(path):
    """The interaction's gradient is a slice of B x (F+1) x D; some losses give one that is expanded."""
    bag = collection(8, [("a", 7, ("fa",), "sum"), ("b", 9, ("fb",), "sum")])
    before = bag.weight.detach().clone()
    optimizer = CompositeOptimizer([], [bag.weight], OptimizerConfig(sparse_lr=1.0))
    values = torch.tensor([1, 2, 2, 3, 3, 4])
    torch.cat([torch.ones(3, 1, 8), bag(values)], 1).mul(torch.arange(72.0).view(3, 3, 8)).sum().backward()
    bag(values).sum().backward()
    optimizer.step()
    goal = torch.arange(72.0).view(3, 3, 8)[:, 1:] + 1
    expected = torch.zeros_like(before).index_add_(
        0, values + torch.tensor([0, 0, 0, 7, 7, 7]), goal.transpose(0, 1).reshape(6, 8)
    )
    torch.testing.assert_close(before - bag.weight.detach(), expected)


def test_lookup_of_single_rows(path):
    bag = collection(8)
    ids = torch.tensor([[0, 49, 7], [7, 7, 1]])
    rows = bag.lookup("fb2", ids)
    assert rows.shape == (2, 3, 8)
    torch.testing.assert_close(rows, bag.table_weight("b")[ids])
    before = bag.table_weight("b").clone()
    rows.sum().backward()
    bag(*jagged()).mul(0).sum().backward()
    CompositeOptimizer([], [bag.weight], OptimizerConfig(sparse_lr=1.0)).step()
    moved = (before - bag.table_weight("b"))[:, 0]
    torch.testing.assert_close(moved, torch.zeros(50).index_add_(0, ids.flatten(), torch.ones(6)))


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("rows", [(3, 2), (500, 900)])
@pytest.mark.parametrize("rule", ["sgd", "rowwise_adagrad", "adagrad"])
def test_the_same_bits_for_any_number_of_threads(rule, rows, threads):
    """By tables where they share out evenly (two tables, two threads), else by rows."""
    results = []
    previous = torch.get_num_threads()
    for count in (1, threads):
        torch.set_num_threads(count)
        try:
            bag = collection(16, [("a", rows[0], ("fa",), "sum"), ("b", rows[1], ("fb",), "mean")])
            optimizer = CompositeOptimizer([], [bag.weight], OptimizerConfig(sparse=rule))
            for seed in range(3):
                values, offsets, _ = jagged(300, seed, rows)
                bag(values, offsets).sin().sum().backward()
                optimizer.step()
            results.append(bag.weight.detach().clone())
        finally:
            torch.set_num_threads(previous)
    assert torch.equal(*results)


@pytest.mark.parametrize(("position", "feature", "bad"), [(0, "fa", 7), (5, "fb1", -1), (11, "fc", 3)])
@pytest.mark.parametrize("one_hot", [True, False])
def test_an_id_outside_its_table_is_named(path, one_hot, position, feature, bad):
    bag, values = collection(), torch.zeros(12, dtype=torch.int64)
    values[position] = bad
    offsets = None if one_hot else torch.arange(13)
    with pytest.raises(DataError, match=rf"feature '{feature}': id {bad} is outside its table of \d+ rows"):
        bag(values, offsets, torch.ones(12))


@pytest.mark.parametrize("offsets", [[0, 1, 2, 3, 99], [0, 2, 1, 3, 4], [-5, 1, 2, 3, 4]])
def test_bad_offsets_never_reach_memory(offsets):
    if rowkernels._kernels() is None:
        pytest.skip("torch's own operations check offsets")
    with pytest.raises(DataError, match="offsets of 4 ids do not rise"):
        collection()(torch.zeros(4, dtype=torch.int64), torch.tensor(offsets), torch.ones(4))
    with pytest.raises(DataError, match="5 bags cannot be split over 4 features"):
        collection()(torch.zeros(5, dtype=torch.int64), None, torch.ones(5))


def test_misuse_is_explained():
    with pytest.raises(RecloomError, match="no value weights"):
        collection()(torch.zeros(4, dtype=torch.int64))
    with pytest.raises(RecloomError, match=r"one width.*\[4, 8\]"):
        FusedEmbeddingBag([EmbeddingBagConfig("a", 4, 3, ("a",)), EmbeddingBagConfig("b", 8, 3, ("b",))])
    with pytest.raises(RecloomError, match="feature 'a' appears twice"):
        FusedEmbeddingBag([EmbeddingBagConfig("a", 4, 3, ("a",)), EmbeddingBagConfig("b", 4, 3, ("a",))])
    with pytest.raises(RecloomError, match="Did you mean 'mean'"):
        EmbeddingBagConfig("a", 4, 3, ("a",), "means")  # type: ignore[arg-type]


def test_initial_rows_depend_on_the_name_and_the_seed_alone():
    tables = [EmbeddingBagConfig(name, 4, rows, (name,)) for name, rows in (("a", 70_000), ("b", 40))]
    one, other = FusedEmbeddingBag(tables, seed=5), FusedEmbeddingBag(tables[::-1], seed=5)
    for name in ("a", "b"):
        assert torch.equal(one.table_weight(name), other.table_weight(name))
    bound = 70_000**-0.5
    assert 0.99 * bound < one.table_weight("a").abs().max() <= bound
    part = torch.empty(10_000, 4)
    init_rows(part, tables[0], 5, start=60_000)  # what a rank with these rows draws
    assert torch.equal(part, one.table_weight("a")[60_000:])
    assert not torch.equal(FusedEmbeddingBag(tables, seed=6).weight, one.weight)
    torch.manual_seed(5)
    assert torch.equal(FusedEmbeddingBag(tables).weight, one.weight)


def test_sparse_gradient_for_any_optimizer():
    bag, fused = collection(8, gradient="sparse"), collection(8)
    optimizer = torch.optim.SGD(bag.parameters(), lr=0.5)
    mine = CompositeOptimizer([], [fused.weight], OptimizerConfig(sparse_lr=0.5))
    batch = jagged()
    bag(*batch).square().sum().backward()
    fused(*batch).square().sum().backward()
    assert bag.weight.grad.is_sparse
    assert list(rowgrad.row_parameters(bag)) == []
    optimizer.step()
    mine.step()
    torch.testing.assert_close(bag.weight, fused.weight)


def test_copies_and_state_dicts_stand_on_their_own():
    bag = nn.Sequential(collection(8, [("a", 7, ("fa",), "sum")]))
    ids = torch.tensor([1, 2])
    bag(ids).sum().backward()
    twin = copy.deepcopy(bag)
    assert [name for name, _ in rowgrad.row_parameters(twin)] == ["0.weight"]
    assert twin[0].weight.row_gradients == []
    twin(ids).sum().backward()
    CompositeOptimizer([], [twin[0].weight], OptimizerConfig()).step()
    assert not torch.equal(twin[0].weight, bag[0].weight)
    buffer = io.BytesIO()
    torch.save(twin.state_dict(), buffer)
    buffer.seek(0)
    bag.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(twin[0].weight, bag[0].weight)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("rule", ["sgd", "rowwise_adagrad"])
def test_fbgemm_equals_the_default(rule, passes):
    """Copied first: a copy's tables must be its own."""
    pytest.importorskip("fbgemm_gpu")
    from recloom.embedding_fbgemm import FbgemmEmbeddingBag

    mine = collection(8)
    theirs = copy.deepcopy(FbgemmEmbeddingBag(mine.tables, seed=3))
    config = OptimizerConfig(sparse=rule, sparse_lr=0.03)
    optimizers = [CompositeOptimizer([], [bag.weight], config) for bag in (mine, theirs)]
    for step in range(4):
        for k in range(passes):
            batch = jagged(6 + k, seed=7 * step + k)
            outputs = [bag(*batch) for bag in (mine, theirs)]
            torch.testing.assert_close(*outputs, atol=1e-6, rtol=1e-6)
            for output in outputs:
                output.sin().sum().backward()
        if step % 2:
            for bag in (mine, theirs):
                bag.lookup("fb1", torch.tensor([[1, 2], [2, 3]])).sin().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(mine.weight, theirs.weight, atol=1e-6, rtol=1e-6)
    with pytest.raises(DataError, match="id 7 is outside its table of 7 rows"):
        theirs(torch.tensor([7, 0, 0, 0]), None, torch.ones(4))
    theirs(torch.zeros(4, dtype=torch.int64), None, torch.ones(4)).sum().backward()
    with pytest.raises(RecloomError, match="no update 'adagrad'"):
        CompositeOptimizer([], [theirs.weight], OptimizerConfig(sparse="adagrad")).step()


def test_a_compiled_model_trains_like_the_model():
    tables = [("a", 7, ("fa",), "sum")]
    weights, states = [], []
    for compiled in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(collection(8, tables), nn.Flatten(), nn.Linear(8, 1))
        optimizer, _ = build_optimizer(model, OptimizerConfig(sparse="rowwise_adagrad"))
        forward = torch.compile(model, backend="eager") if compiled else model
        for ids in (torch.tensor([1, 2, 2]), torch.tensor([2, 2, 6])):
            forward(ids).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append(model[0].weight.detach())
        states.append(optimizer.state[model[0].weight])
    changed = weights[0].ne(collection(8, tables).weight).any(1)
    assert changed.nonzero().ravel().tolist() == [1, 2, 6]
    torch.testing.assert_close(*weights)
    torch.testing.assert_close(*states)


def test_a_dense_gradient_of_a_table_is_refused_and_not_left_out():
    bag = collection(8)
    optimizer, _ = build_optimizer(bag, OptimizerConfig())
    bag.weight.square().sum().backward()
    with pytest.raises(RecloomError, match="has a dense gradient, which row updates would leave out"):
        optimizer.step()


@pytest.mark.parametrize("one_hot", [True, False])
def test_export_equals_eager(one_hot):
    bag = collection(8)
    samples = torch.export.Dim("samples", min=2)
    batch = jagged()
    inputs = (torch.zeros(24, dtype=torch.int64), None, torch.ones(24)) if one_hot else batch
    program = torch.export.export(
        bag,
        inputs,
        dynamic_shapes=(
            {0: 4 * samples} if one_hot else {0: torch.export.Dim.DYNAMIC},
            None if one_hot else {0: 4 * samples + 1},
            {0: 4 * samples} if one_hot else {0: torch.export.Dim.DYNAMIC},
        ),
    )
    other = (torch.ones(40, dtype=torch.int64), None, torch.rand(40)) if one_hot else jagged(9, seed=4)
    torch.testing.assert_close(program.module()(*other), bag(*other))


def test_the_compiled_library_is_cached_and_can_be_switched_off(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load = native.load.__wrapped__  # as in a process that has not loaded it yet
    with ThreadPoolExecutor(2) as pool:
        loaded = list(pool.map(load, ["embedding.c"] * 2))  # all at once
    if loaded[0] is None:
        pytest.skip("no C compiler")
    (library,) = (path for path in tmp_path.rglob("*") if path.is_file())  # nothing half-written is left
    assert [Path(found._name) for found in loaded] == [library] * 2
    before = library.stat().st_mtime_ns
    load("embedding.c")
    assert library.stat().st_mtime_ns == before
    monkeypatch.setenv("RECLOOM_NATIVE", "0")
    assert load("embedding.c") is None
    assert "RECLOOM_NATIVE=0" in caplog.text
    (tmp_path / "wrong.c").write_text("int f( {")
    monkeypatch.delenv("RECLOOM_NATIVE")
    assert load("wrong.c", tmp_path) is None
    assert "wrong.c cannot be compiled" in caplog.text
