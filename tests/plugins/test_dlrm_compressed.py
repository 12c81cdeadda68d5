"""Compressed tables: their vectors, gradients, initial values and sizes against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch

from recloom.embedding import EmbeddingBagConfig, FusedEmbeddingBag
from recloom.errors import DataError, RecloomError
from recloom.export import export_model
from recloom.optim import CompositeOptimizer, OptimizerConfig
from recloom.plugins import host
from recloom.rowgrad import row_parameters
from recloom_dlrm.compressed import HashedEmbeddingBag, QREmbeddingBag
from recloom_dlrm.interactions import DotInteraction
from recloom_dlrm.mixed_dim import MixedDimEmbeddingBag, mixed_dims
from recloom_dlrm.model import DLRM
from recloom_dlrm.weighted_pooling import WeightedPoolingEmbeddingBag

ROWS = {"small": 6, "shared": 41, "large": 300}
FEATURES = {"small": ("s",), "shared": ("h1", "h2"), "large": ("l",)}
TABLE_OF = {"s": "small", "h1": "shared", "h2": "shared", "l": "large"}
WIDTH = 8


def tables(poolings=("sum", "mean", "weighted")):
    named = zip(ROWS.items(), poolings, strict=True)
    return [EmbeddingBagConfig(name, WIDTH, rows, FEATURES[name], pooling) for (name, rows), pooling in named]


def batch(one_hot, samples=9, seed=0):
    """Ids of the four features, as (values, offsets, weights); bags have 0 to 4 ids."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 5, (len(TABLE_OF) * samples,), generator=generator)
    if one_hot:
        lengths.fill_(1)
    counts = lengths.view(len(TABLE_OF), samples).sum(1).tolist()
    ids = [torch.randint(0, ROWS[t], (n,), generator=generator) for t, n in zip(TABLE_OF.values(), counts, strict=True)]
    offsets = None if one_hot else torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    values = torch.cat(ids)
    return values, offsets, torch.rand(len(values), generator=generator) + 0.5


def qr(operation, collisions=4, threshold=40):
    def vectors(weight, table, ids):
        if ROWS[table] <= threshold:
            rows = weight(table)[ids]
            return torch.cat([rows, weight(f"{table}/second")[ids]], dim=1) if operation == "concat" else rows
        first = weight(f"{table}/quotient")[ids // collisions]
        second = weight(f"{table}/remainder")[ids % collisions]
        joined = {"mult": first * second, "add": first + second, "concat": torch.cat([first, second], dim=1)}
        return joined[operation]

    return (lambda t: QREmbeddingBag(t, collisions, operation, threshold, seed=1)), vectors


def hashed(weight, table, ids):
    return weight(table)[ids % 40]


def mixed(weight, table, ids):
    rows = weight(table)[ids]
    return rows if rows.shape[1] == WIDTH else rows @ weight(f"{table}@")


def weighted(weight, table, ids):
    return weight(table)[ids] * weight(f"{table}/weights")[ids]


TECHNIQUES = {
    "qr-mult": qr("mult"),
    "qr-add": qr("add"),
    "qr-concat": qr("concat"),
    "hashed": ((lambda t: HashedEmbeddingBag(t, max_rows=40, seed=1)), hashed),
    "mixed": ((lambda t: MixedDimEmbeddingBag(t, threshold=10, seed=1)), mixed),
    "weighted": ((lambda t: WeightedPoolingEmbeddingBag(t, seed=1)), weighted),
}


def reference(vectors, poolings, values, offsets, weights, samples):
    """Pool bag by bag: B x F x D."""
    bags = []
    for k in range(len(TABLE_OF) * samples):
        table = list(TABLE_OF.values())[k // samples]
        span = slice(k, k + 1) if offsets is None else slice(int(offsets[k]), int(offsets[k + 1]))
        rows, pooling = vectors(table, values[span]), poolings[list(ROWS).index(table)]
        if pooling == "weighted":
            rows = rows * weights[span, None]
        bags.append(rows.mean(0) if pooling == "mean" and len(rows) else rows.sum(0))
    return torch.stack(bags).view(len(TABLE_OF), samples, -1).transpose(0, 1)


@pytest.mark.parametrize("one_hot", [True, False], ids=["one-hot", "bags"])
@pytest.mark.parametrize("name", TECHNIQUES)
def test_vectors_and_updates_equal_the_plain_formula(name, one_hot):
    build, formula = TECHNIQUES[name]
    poolings = ("sum", "mean", "weighted")
    bag = build(tables(poolings))
    values, offsets, weights = batch(one_hot)
    leaves: dict[str, torch.Tensor] = {}

    def weight(part):
        if part not in leaves:
            found = bag.projection(part[:-1]) if part.endswith("@") else bag.table_weight(part)
            leaves[part] = found.clone().requires_grad_()
        return leaves[part]

    expected = reference(lambda t, ids: formula(weight, t, ids), poolings, values, offsets, weights, samples=9)
    optimizer = CompositeOptimizer(
        [p for p in bag.parameters() if p not in {r for _, r in row_parameters(bag)}],
        [p for _, p in row_parameters(bag)],
        OptimizerConfig(dense_lr=0.5, sparse_lr=0.5),
    )
    out = bag(values, offsets, weights)
    assert out.shape == (9, 4, bag.output_dim)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(bag(values, offsets, weights), out.detach())

    slope = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (expected * slope).sum().backward()
    (out * slope).sum().backward()
    assert all(p.grad is None for _, p in row_parameters(bag)), "a table got a dense gradient"
    optimizer.step()
    assert len(leaves) > len(ROWS) or name == "hashed"
    for part, leaf in leaves.items():
        now = bag.projection(part[:-1]) if part.endswith("@") else bag.table_weight(part)
        torch.testing.assert_close(now, leaf.detach() - 0.5 * leaf.grad, rtol=1e-5, atol=1e-5, msg=part)


@pytest.mark.parametrize("name", TECHNIQUES)
def test_lookup_gives_single_vectors_and_ids_are_checked(name):
    build, formula = TECHNIQUES[name]
    bag = build(tables())

    def weight(part):
        return bag.projection(part[:-1]) if part.endswith("@") else bag.table_weight(part)

    ids = torch.tensor([[0, 3, 40], [7, 7, 39]])
    found = bag.lookup("h2", ids)
    torch.testing.assert_close(found, formula(weight, "shared", ids.view(-1)).view(2, 3, -1))
    for bad in (-1, 41):
        with pytest.raises(DataError, match=f"'h1': id {bad} is outside its table of 41 rows"):
            bag(torch.tensor([0, bad, 0, 0]), None, torch.ones(4))
        with pytest.raises(DataError, match=f"id {bad} is outside"):
            bag.lookup("h1", torch.tensor([bad]))


@pytest.mark.parametrize("operation", ["mult", "add", "concat"])
def test_qr_rows_are_symmetric_with_the_variance_of_whole_rows(operation):
    rows = 40_000
    bag = QREmbeddingBag([EmbeddingBagConfig("t", 16, rows, ("f",))], 200, operation, seed=0)
    vectors = bag.lookup("f", torch.arange(rows))
    assert float(vectors.detach().std()) == pytest.approx(1 / math.sqrt(3 * rows), rel=0.1)
    assert abs(float(vectors.detach().mean())) < 0.1 / math.sqrt(3 * rows)


SCHEMA = {
    "dense": [{"name": f"d{i}"} for i in range(4)],
    "sparse": [{"name": f"c{i}", "num_embeddings": rows} for i, rows in enumerate((300, 20_000, 1_000, 90) * 6)],
}


@pytest.mark.parametrize("operation", ["mult", "add"])
def test_qr_starts_at_the_loss_of_whole_tables_and_the_references_initial_values_do_not(operation):
    """Trap 3: the reference draws from U(sqrt(1/n), 1), all positive and near 0.5."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(512, 4, generator=generator)
    ids = torch.cat([torch.randint(0, f["num_embeddings"], (512,), generator=generator) for f in SCHEMA["sparse"]])
    labels = torch.randint(0, 2, (512,), generator=generator).float()

    def start(embedding, change=None):
        """Return the first batch's loss, and how large the logits are."""
        torch.manual_seed(3)
        model = DLRM(SCHEMA, 64, (64,), (256, 128), embedding=embedding)
        with torch.no_grad():
            if change:
                change(model.sparse_arch)
            model.over_arch.linears()[-1].bias.zero_()
            logits = model(dense, ids)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
            return float(loss), float(logits.square().mean().sqrt())

    def as_reference(bag):
        for table in bag.compressed:
            for part in ("quotient", "remainder"):
                bag.table_weight(f"{table.name}/{part}").uniform_(table.num_embeddings**-0.5, 1.0)

    whole, whole_size = start(FusedEmbeddingBag)
    ours, size = start(lambda t: QREmbeddingBag(t, operation=operation))
    theirs, their_size = start(lambda t: QREmbeddingBag(t, operation=operation), as_reference)
    assert abs(ours - math.log(2)) < 0.1
    assert abs(ours - whole) < 0.01
    assert size < 1.5 * whole_size
    assert theirs > ours + 0.1
    assert their_size > 4 * whole_size


def test_mixed_widths_follow_the_power_rule():
    rows = [3, 192, 3 * 4**10, 10**7]
    assert mixed_dims(rows, 16, 0.3) == [16, round(16 * (1 / 64) ** 0.3), 1, 1]
    assert mixed_dims(rows, 16, 0.0) == [16] * 4
    # trap 6: the reference's rounding gives floats, which its tables crash on
    rounded = mixed_dims(rows, 16, 0.1, power_of_two=True)
    assert rounded == [16, 8, 4, 4]
    assert all(isinstance(width, int) for width in rounded)


def test_tables_below_the_threshold_stay_whole():
    bag = MixedDimEmbeddingBag(tables(), threshold=200)
    assert bag.widths == {"small": 8, "shared": 8, "large": mixed_dims(list(ROWS.values()), 8, 0.3)[2]}
    assert bag.projection("small") is None
    qr_bag = QREmbeddingBag(tables(), threshold=200)
    assert qr_bag.table_weight("shared").shape == (41, 8)
    assert qr_bag.table_weight("large/quotient").shape == (75, 8)
    with pytest.raises(RecloomError, match="stored as a quotient and a remainder"):
        qr_bag.table_weight("large")


def test_fixed_row_weights_do_not_train():
    bag = WeightedPoolingEmbeddingBag(tables(("sum", "sum", "sum")), learned=False)
    values, offsets, _ = batch(one_hot=False)
    plain = FusedEmbeddingBag(tables(("sum", "sum", "sum")), seed=0)
    for table in plain.tables:
        plain.table_weight(table.name).copy_(bag.table_weight(table.name))
    torch.testing.assert_close(bag(values, offsets), plain(values, offsets))
    bag(values, offsets).sum().backward()
    assert not bag.row_weights.weight.row_gradients
    assert bag.rows.weight.row_gradients


def test_report_tells_sizes_and_ratio():
    config = {**SCHEMA, "sparse": [{"name": "c0", "num_embeddings": 100_000}]}
    model = DLRM(config, 16, (8,), (8,), embedding=QREmbeddingBag)
    rows = dict(row for found in host().hook.summarize(module=model) for row in found)
    assert rows["sparse_arch"] == "QREmbeddingBag: 1 tables for 100,000 ids, 1.60 MB"
    assert rows["sparse_arch compression"].startswith("1 of 1 tables compressed: 4.00x smaller")


@pytest.mark.parametrize("name", [*TECHNIQUES])
def test_exported_model_equals_eager(name, tmp_path):
    """Bags, whose bounds depend on data, and single rows of a history's steps: from a feature's table, and its own."""
    build, _ = TECHNIQUES[name]
    bags = [{"name": f, "num_embeddings": ROWS[t], "max_length": 4, "table": t} for f, t in TABLE_OF.items()]
    keys = [{"name": "l", "num_embeddings": 300, "table": "large"}, {"name": "action", "num_embeddings": 45}]
    history = {"name": "history", "keys": keys, "max_length": 5}
    encoder = host().catalog.sequence_encoders.load("DIN")
    model = DLRM({**SCHEMA, "sparse": bags, "sequences": [history]}, WIDTH, (8,), (8,), DotInteraction, build, encoder)
    done = export_model(model, tmp_path / "model.pt2")
    assert done.max_abs_diff < 1e-6
