"""DLRM as published, and the traps of its reference implementation, through the Trainer and the command line."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from recloom.data.synthetic import SyntheticClicks
from recloom.errors import ComponentImportError
from recloom.optim import OptimizerConfig
from recloom.plugins import catalog
from recloom.rowgrad import row_parameters
from recloom.testing import run_cli, tiny_batch, tiny_schema
from recloom_dlrm.baselines import FactorizationMachine, LogisticRegression
from recloom_dlrm.interactions import ConcatInteraction, DotInteraction, FMInteraction
from recloom_dlrm.model import DLRM


def pooled(model, batch, collection):
    """Return each feature's pooled vectors, B x D, computed bag by bag."""
    sparse, found = batch.sparse_features, []
    for table in collection.tables:
        for name in table.feature_names:
            values, lengths = sparse[name]
            bags = torch.split(collection.table_weight(table.name)[values], lengths.tolist())
            found.append(torch.stack([bag.sum(0) for bag in bags]))
    return found


def mlp(layers, x, last_relu):
    linears = layers.linears()
    for index, linear in enumerate(linears):
        x = x @ linear.weight.T + linear.bias
        x = x.clamp(min=0) if last_relu or index + 1 < len(linears) else x
    return x


@pytest.mark.parametrize("one_hot", [True, False], ids=["one-hot", "bags"])
def test_logits_are_the_papers(one_hot):
    schema = tiny_schema(one_hot)
    batch = tiny_batch(schema, rows=9)
    model = DLRM(schema.to_dict(), 8, (16,), (12, 6))
    vectors = [mlp(model.dense_arch, batch.dense_features, last_relu=True), *pooled(model, batch, model.sparse_arch)]
    products = [(vectors[i] * vectors[j]).sum(1) for i in range(len(vectors)) for j in range(i)]
    top = mlp(model.over_arch, torch.cat([vectors[0], torch.stack(products, dim=1)], dim=1), last_relu=False)
    torch.testing.assert_close(model.logits(batch), top.squeeze(1), atol=1e-5, rtol=1e-5)


def test_kaggle_widths():
    """16 + 27 * 26 / 2 = 367: criteo_kaggle.sh's first top layer."""
    sparse = [{"name": f"c{i}", "num_embeddings": 10} for i in range(26)]
    dense = [{"name": f"d{i}"} for i in range(13)]
    model = DLRM({"dense": dense, "sparse": sparse}, 16, (512, 256, 64), (512, 256))
    shapes = [tuple(layer.weight.shape) for layer in (*model.dense_arch.linears(), *model.over_arch.linears())]
    assert shapes == [(512, 13), (256, 512), (64, 256), (16, 64), (512, 367), (256, 512), (1, 256)]
    assert DotInteraction(27, 16, itself=True).output_dim == 16 + 27 * 28 // 2
    assert ConcatInteraction(27, 16).output_dim == 27 * 16
    assert FMInteraction(27, 16).output_dim == 32


def test_initial_values_have_the_published_spread():
    torch.manual_seed(0)
    sparse = [{"name": "c", "num_embeddings": 10_000}]
    model = DLRM({"dense": [{"name": f"d{i}"} for i in range(400)], "sparse": sparse}, 16, (600,), (300,))
    first = model.dense_arch.linears()[0]
    assert float(first.weight.detach().std()) == pytest.approx(math.sqrt(2 / 1000), rel=0.02)
    assert float(first.bias.detach().std()) == pytest.approx(math.sqrt(1 / 600), rel=0.1)
    rows = model.sparse_arch.table_weight("c")
    assert float(rows.abs().max()) == pytest.approx(0.01, rel=0.01)
    assert float(rows.std()) == pytest.approx(0.01 / math.sqrt(3), rel=0.02)


def test_interactions_by_hand():
    x, y, z = (torch.tensor([values]) for values in ([1.0, 2.0], [3.0, -1.0], [0.5, 4.0]))
    vectors = torch.stack([x, y, z], dim=1)
    assert DotInteraction(3, 2)(vectors).tolist() == [[1, 2, 1, 8.5, -2.5]]  # x, y.x, z.x, z.y
    assert DotInteraction(3, 2, itself=True)(vectors).tolist() == [[1, 2, 5, 1, 10, 8.5, -2.5, 16.25]]
    assert ConcatInteraction(3, 2)(vectors).tolist() == [[1, 2, 3, -1, 0.5, 4]]
    assert FMInteraction(3, 2)(vectors).tolist() == [[1, 2, 1 * 3 + 1 * 0.5 + 3 * 0.5, 2 * -1 + 2 * 4 + -1 * 4]]


def test_baselines_equal_their_formulas():
    schema = tiny_schema()
    batch = tiny_batch(schema, rows=7)
    linear = LogisticRegression(schema.to_dict())
    machine = FactorizationMachine(schema.to_dict(), embedding_dim=5)
    for model in (linear, machine):
        torch.nn.init.normal_(model.linear.weight)
    sums = sum(bag.squeeze(1) for bag in pooled(linear, batch, linear.linear.sparse))
    expected = batch.dense_features @ linear.linear.weight.squeeze(1) + sums + linear.linear.bias
    torch.testing.assert_close(linear.logits(batch), expected)

    own = machine.linear
    order_one = batch.dense_features @ own.weight.squeeze(1) + own.bias
    order_one = order_one + sum(bag.squeeze(1) for bag in pooled(machine, batch, own.sparse))
    scaled = [batch.dense_features[:, i, None] * machine.dense_factors[i] for i in range(3)]
    vectors = [*scaled, *pooled(machine, batch, machine.factors)]
    pairs = sum((vectors[i] * vectors[j]).sum(1) for i in range(len(vectors)) for j in range(i))
    torch.testing.assert_close(machine.logits(batch), order_one + pairs, atol=1e-5, rtol=1e-5)


# Traps: what the reference implementation does otherwise


def clicks(batch_size, rows=256):
    return SyntheticClicks(
        rows, 64, 64, batch_size, num_workers=0, shuffle=False, cardinalities=(60, 30, 8), num_dense=3
    )


def train(model, data, **options):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, limit_val_batches=0, **quiet, **options)
    trainer.fit(model, data)
    return trainer


def small(data, **options):
    torch.manual_seed(0)
    return DLRM(data.schema, 8, (16,), (16,), optimizer=OptimizerConfig(**options))


class Watch(pl.Callback):
    """Keeps the learning rates of each step, and whether a table ever had a gradient of its own."""

    def __init__(self):
        self.rates: list[list[float]] = []
        self.dense_gradient = False

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])
        self.dense_gradient |= any(parameter.grad is not None for _, parameter in row_parameters(module))
        assert all(parameter.row_gradients for _, parameter in row_parameters(module))


def test_learning_rate_warms_up_holds_and_decays():
    """Trap 5: there 0.25 0.5 0.75 0.75 ... 0.75 1.0 0.56 0.25 0.06 and then 0.06 for ever."""
    data, watch = clicks(16), Watch()
    options = {"dense_lr": 0.1, "sparse_lr": 0.2, "warmup_steps": 4, "decay_start": 8, "decay_steps": 4}
    train(small(data, **options), data, callbacks=[watch])
    factors = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 0.5625, 0.25, 0.0625]
    assert len(watch.rates) == 16
    for rates, factor in zip(watch.rates, factors, strict=False):
        assert rates == pytest.approx([0.1 * factor, 0.2 * factor])
    assert watch.rates[12:] == [pytest.approx([1e-7, 1e-7])] * 4


def test_tables_never_get_a_dense_gradient():
    data, watch = clicks(64), Watch()
    train(small(data), data, callbacks=[watch])
    assert not watch.dense_gradient


@pytest.mark.parametrize("sparse", ["sgd", "rowwise_adagrad"])
def test_accumulated_micro_batches_equal_one_large_batch(sparse):
    """Trap 2: there all but the last of the micro-batches are thrown away."""
    trained = []
    for batch_size, accumulate in ((128, 1), (32, 4)):
        data = clicks(batch_size)
        model = small(data, sparse=sparse)
        train(model, data, accumulate_grad_batches=accumulate)
        trained.append(model.state_dict())
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, atol=2e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_is_of_dense_gradients(algorithm):
    """Lightning's own clipping fails on sparse gradients, and would mix rows of tables into the norm."""
    data = clicks(256)
    start = small(data, dense_lr=1.0, sparse_lr=1.0)
    moved = {}
    for limit in (None, 1e-3):
        model = copy.deepcopy(start)
        train(model, data, gradient_clip_val=limit, gradient_clip_algorithm=algorithm)
        moved[limit] = {name: value - start.state_dict()[name] for name, value in model.state_dict().items()}
    dense = torch.cat(
        [delta.flatten() for name, delta in moved[1e-3].items() if "_arch" in name and "sparse" not in name]
    )
    assert float(dense.norm() if algorithm == "norm" else dense.abs().max()) == pytest.approx(1e-3, rel=1e-3)
    torch.testing.assert_close(moved[1e-3]["sparse_arch.weight"], moved[None]["sparse_arch.weight"])
    assert float(moved[None]["sparse_arch.weight"].abs().max()) > 1e-3


# Components by name


EMBEDDINGS = sorted(
    entry.name for entry in catalog().embeddings if entry.plugin == "dlrm" and "Sharded" not in entry.name
)
INTERACTIONS = sorted(entry.name for entry in catalog().interactions if entry.plugin == "dlrm")
COMMON = [
    *("fit", "--data", "SyntheticClicks", "--data.num_train=512", "--data.num_val=128", "--data.batch_size=64"),
    *("--data.num_workers=0", "--data.cardinalities=[900, 400, 9]", "--trainer.accelerator=cpu"),
    *("--trainer.fast_dev_run=2", "--trainer.enable_progress_bar=false"),
]


@pytest.mark.parametrize(
    "option", [f"embedding={name}" for name in EMBEDDINGS] + [f"interaction={n}" for n in INTERACTIONS]
)
def test_components_by_name(option, tmp_path: Path, monkeypatch):
    if option == "embedding=TorchRecEmbeddingBag":
        pytest.importorskip("torchrec")
    monkeypatch.chdir(tmp_path)
    options = ["--model=DLRM", "--model.embedding_dim=8", "--model.dense_arch=[8]", "--model.over_arch=[8]"]
    code, _, err = run_cli([*COMMON, *options, f"--model.{option}"])
    assert code == 0, err


def test_without_torchrec_its_backend_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchrec", None)
    monkeypatch.delitem(sys.modules, "recloom_dlrm.torchrec_backend", raising=False)
    with pytest.raises(ComponentImportError, match=r"--no-deps 'torchrec.*\n.*recloom\[torchrec\]"):
        catalog().embeddings.load("TorchRecEmbeddingBag")


@pytest.mark.parametrize("model", ["LogisticRegression", "FactorizationMachine"])
def test_baselines_by_name(model, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run_cli([*COMMON, f"--model={model}"])
    assert code == 0, err


def test_options_of_a_component_from_the_command_line(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    qr = ["--model=DLRM", "--model.embedding=QREmbeddingBag", "--model.embedding.operation=concat"]
    code, _, err = run_cli([*COMMON, *qr, "--model.embedding.collisions=8"])
    assert code == 0, err
    code, _, err = run_cli([*COMMON, *qr[:2], "--model.embedding.operation=multiply"])
    assert code == 2
    assert "multiply" in err
