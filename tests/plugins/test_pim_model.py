"""PIM: models on crossbars, the space of models x crossbars x bits, its supernet, a small co-search."""

from __future__ import annotations

import dataclasses
import json

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from torch import nn

from recloom.cli.main import main as recloom
from recloom.data.synthetic import SyntheticClicks
from recloom.errors import RecloomError
from recloom.export import export_model
from recloom.loading import instantiate_model
from recloom.plugins import catalog
from recloom.search.evaluator import SearchContext
from recloom.search.method import History
from recloom.search.objective import Objective
from recloom.search.training import measure
from recloom.testing import check_plugin, tiny_batch, tiny_schema
from recloom_pim.cost import PIMCost
from recloom_pim.crossbars import Crossbars
from recloom_pim.layers import Board, group_of, place
from recloom_pim.method import NSGA2FromModel
from recloom_pim.model import OnCrossbars, PIMNoise
from recloom_pim.quantise import (
    Device,
    Precision,
    crossbar_linear,
    digits,
    product,
    quantised_vectors,
    quantised_weight,
    sliced_product,
)
from recloom_pim.space import PIMSpace

PERFECT = Device(variation=0.0)
LOSSLESS = Crossbars(adc_bits=12)


def nasrec(**options):
    return catalog().search_spaces.load("NASRecSpace")("small", 2, 16, (16, 32), (4, 8), **options)


def operands(w=8, b=8, rows=64, width=300, out=20, seed=0):
    torch.manual_seed(seed)
    q, _ = quantised_weight(torch.randn(out, width), w)
    v, _, _ = quantised_vectors(torch.relu(torch.randn(rows, width)), b)
    return v, q


def test_the_plugin_is_sound():
    check_plugin("pim")


# Arithmetic


def test_quantised_operands_are_integers_and_gradients_pass():
    weight = torch.randn(7, 5, requires_grad=True)
    q, scale = quantised_weight(weight, 4)
    assert torch.equal(q, q.round())
    assert q.abs().max() == 7
    (q * scale).sum().backward()
    torch.testing.assert_close(weight.grad, torch.ones_like(weight))
    x = torch.randn(6, 5, requires_grad=True)
    v, step, low = quantised_vectors(x, 3)
    assert v.min() == 0
    assert v.max() == 7
    assert torch.equal(v, v.round())
    assert (v * step + low - x).abs().max() <= 0.5 * step.max() + 1e-6
    assert float(sum(d * 4**p for p, d in enumerate(digits(torch.tensor([27.0]), 2, 3)))) == 27


@pytest.mark.parametrize(("bits", "bound"), [(4, 0.15), (8, 0.01)])
def test_more_bits_come_closer_to_the_exact_product(bits, bound):
    torch.manual_seed(0)
    layer, x = nn.Linear(100, 30), torch.randn(50, 100)
    p = Precision(128, 2, 1, 12, bits, bits)
    found = crossbar_linear(x, layer.weight, layer.bias, p, PERFECT, None)
    exact = layer(x)
    assert float((found - exact).detach().std() / exact.detach().std()) < bound


@pytest.mark.parametrize(("w", "b", "c", "d", "rows"), [(8, 8, 2, 1, 128), (4, 4, 1, 2, 64), (4, 8, 2, 2, 32)])
def test_errors_of_conversions_drawn_at_once_are_those_of_every_conversion(w, b, c, d, rows):
    v, q = operands(w, b, rows=200)
    exact = v @ q.t()
    shares = []
    for bits in (12, 6, 5, 4):
        p = Precision(rows, c, d, bits, w, b)
        sliced, drawn = (float((f(v, q, p) - exact).std()) for f in (sliced_product, product))
        if p.adc_step(rows) == 1:
            assert sliced <= 1e-6 * exact.std()
            assert drawn == 0
        else:
            assert drawn == pytest.approx(sliced, rel=0.35)
            shares.append(sliced)
    assert shares == sorted(shares)
    assert len(shares) >= 2


def test_a_converter_with_a_smaller_range_clips():
    v, q = operands(rows=100)
    p = Precision(128, 2, 1, 12, 8, 8)
    exact = v @ q.t()
    assert torch.allclose(sliced_product(v, q, p), exact)
    assert (sliced_product(v, q, p, 0.2) - exact).abs().mean() > 0.1 * exact.std()
    with pytest.raises(RecloomError, match="adc_range"):
        Device(adc_range=0.2)
    device = Device(variation=0.0, converters="sliced", adc_range=0.2)
    x, weight = torch.rand(10, 300), torch.randn(20, 300, requires_grad=True)
    clipped = crossbar_linear(x, weight, None, p, device, None)
    assert float((clipped - x @ weight.t()).std()) > 0.05 * float((x @ weight.t()).std())
    clipped.sum().backward()
    assert torch.isfinite(weight.grad).all()


def test_cells_vary_and_stick():
    torch.manual_seed(0)
    x, weight = torch.rand(200, 100), torch.randn(50, 100)
    p = Precision(128, 2, 1, 12, 8, 8)
    exact = crossbar_linear(x, weight, None, p, PERFECT, None)

    def error(**options):
        found = crossbar_linear(x, weight, None, p, Device(**options), torch.Generator().manual_seed(1))
        return float((found - exact).std() / exact.std())

    assert 0 < error(variation=0.02) < error(variation=0.1)
    assert error(variation=0.1) == pytest.approx(5 * error(variation=0.02), rel=0.05)
    assert error(variation=0.0, stuck_off=0.01) > 0
    assert error(variation=0.0, stuck_on=0.01) > 0
    assert error(variation=0.0) == 0


# Models


def build(model="DLRM", device=PERFECT, crossbars=LOSSLESS, **init_args):
    section = {"class_path": model, "init_args": init_args}
    catalog().models.load(model)
    inner = instantiate_model(section, tiny_schema())
    return OnCrossbars(tiny_schema().to_dict(), lambda schema: inner, crossbars, device)


def test_models_with_terms_of_their_own_are_refused():
    class Penalised(catalog().models.load("DLRM")):
        def objective(self, batch):
            logits, loss = super().objective(batch)
            return logits, loss + logits.square().mean()

    with pytest.raises(RecloomError, match="Penalised has its own objective, which this would leave out"):
        OnCrossbars(tiny_schema().to_dict(), Penalised)


@pytest.mark.parametrize("name", ["DLRM", "NASRecNet", "GraphModel", "StackModel"])
def test_any_ranking_model_runs_quantised_with_the_parameters_it_had(name):
    torch.manual_seed(0)
    model = build(name, crossbars=dataclasses.replace(LOSSLESS, weight_bits=12, activation_bits=12)).eval()
    before, names = model.logits(tiny_batch()), list(model.state_dict())
    model.configure_model()
    model.configure_model()  # fit, then test: once is enough
    after = model.logits(tiny_batch())
    assert list(model.state_dict()) == names
    assert len(model.pim.layers) >= 2
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, before, rtol=0.05, atol=0.05)
    model.pim.crossbars = dataclasses.replace(LOSSLESS, weight_bits=2, activation_bits=2)
    assert not torch.allclose(model.logits(tiny_batch()), before, atol=0.02)
    model.train().loss(model.logits(tiny_batch()), tiny_batch()).backward()
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all() for n, p in model.named_parameters() if "arch.0" in n
    )


def test_evaluation_divides_rows_over_the_same_chips_and_training_draws_new_ones():
    model = build(device=Device(variation=0.2, draws=2))
    model.configure_model()
    batch = tiny_batch()
    half = len(batch) // 2
    twice = type(batch).concat([batch.rows(0, half), batch.rows(0, half)])
    with torch.no_grad():
        model.eval()
        first, second = model.logits(twice)[:half], model.logits(twice)[half:]
        assert torch.equal(model.logits(twice)[:half], first)  # a chip does not change
        assert not torch.allclose(first, second)  # the second half is on another chip
        model.train()
        assert not torch.equal(model.logits(twice), model.logits(twice))


def test_groups_take_their_own_bits():
    assert group_of("network.blocks.2.dense_ops.fc.linear") == "block3"
    assert group_of("over_arch.0") == "over_arch"
    assert group_of("network.head") == "head"
    net = nn.ModuleDict({"a": nn.Linear(40, 10), "b": nn.Linear(40, 10)})
    board = Board(dataclasses.replace(LOSSLESS, bits={"b": (2, 2)}), PERFECT)
    exact, x = {name: layer.weight.detach().clone() for name, layer in net.items()}, torch.randn(30, 40)
    place(net.eval(), board)
    errors = {name: (layer(x) - layer.bias - x @ exact[name].t()).std() for name, layer in net.items()}
    assert errors["b"] > 10 * errors["a"]


def test_an_exported_model_is_quantised_and_has_no_noise(tmp_path):
    torch.manual_seed(0)
    model = build(device=Device(variation=0.3))
    model.configure_model()
    batch = tiny_batch()
    noisy = model.eval().logits(batch)
    assert model.export_tolerance == 2**-8
    done = export_model(model, tmp_path / "model.pt2", logits=True)
    assert done.path.exists()
    quantised = model.logits(batch)
    model.pim.crossbars = None
    exact = model.logits(batch)
    assert not torch.allclose(noisy, quantised, atol=1e-3)
    assert not torch.allclose(exact, quantised, atol=1e-6)


def test_the_callback_switches_it_on_for_a_config_as_it_is(tmp_path):
    clicks = {"num_train": 2048, "num_val": 512, "num_test": 512, "batch_size": 256, "num_workers": 0}
    noise = {"class_path": "recloom_pim.model.PIMNoise", "init_args": {"crossbars": {"adc_bits": 5}}}
    config = {
        "trainer": {"max_steps": 3, "callbacks": [noise], "enable_progress_bar": False, "accelerator": "cpu"},
        "model": {"class_path": "DLRM", "init_args": {"embedding_dim": 8}},
        "data": {"class_path": "SyntheticClicks", "init_args": clicks},
    }
    (tmp_path / "noisy.yaml").write_text(yaml.safe_dump(config))
    assert recloom(["fit", "--config", str(tmp_path / "noisy.yaml"), "--run_dir", str(tmp_path / "run")]) == 0
    assert "layers on crossbars" in (tmp_path / "run" / "report.md").read_text()
    module = instantiate_model(config["model"], SyntheticClicks(**clicks).schema)
    trainer = pl.Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, callbacks=[PIMNoise()], accelerator="cpu"
    )
    trainer.fit(module, SyntheticClicks(**clicks))
    assert len(module.pim.layers) >= 5


def test_the_first_steps_can_be_in_full_precision():
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(pl_module.pim.exact_training)

    clicks = SyntheticClicks(1024, 256, 256, 256, num_workers=0)
    options = {"max_steps": 3, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    inner = catalog().models.load("DLRM")
    model = OnCrossbars(clicks.schema, inner, exact_steps=2)
    pl.Trainer(**options, callbacks=[Watch()]).fit(model, clicks)
    pl.Trainer(**options, callbacks=[PIMNoise(exact_steps=1), Watch()]).fit(inner(clicks.schema), clicks)
    assert seen == [True, True, False, True, False, False]
    net = PIMSpace(nasrec(), supernet_exact_steps=5).supernet(tiny_schema()).train()
    net.configure_model()
    net.path = net.sample_path(0)
    exact, again = net.logits(tiny_batch()), net.logits(tiny_batch())
    assert torch.equal(exact, again)
    net.path = net.sample_path(5)
    assert not torch.equal(net.logits(tiny_batch()), net.logits(tiny_batch()))


# The space


def context(space, tmp_path):
    clicks = SyntheticClicks(2048, 512, 512, 256, num_workers=0)
    return SearchContext(space, clicks, tiny_schema(), Objective(), [PIMCost()], tmp_path, 0, print)


def test_the_space_is_the_models_times_crossbars_times_bits(tmp_path):
    inner = nasrec()
    space = PIMSpace(inner, device=Device(variation=0.01))
    bits = np.log10(3 * 3 * 2 * 2 * 3 * 5 * 4**3)  # block1, block2, and the last layer
    assert space.log10_size == pytest.approx(inner.log10_size + bits)
    rng = np.random.default_rng(0)
    for _ in range(30):
        genotype = space.sample(rng)
        assert space.valid(genotype)
        assert space.valid(space.mutate(genotype, rng))
        canonical = space.canonical(genotype)
        assert space.canonical(canonical) == canonical
        assert space.from_json(space.to_json(genotype)) == genotype
        assert space.program(genotype, tiny_schema()) == inner.program(space.model(genotype), tiny_schema())
        costs = context(space, tmp_path).price(genotype)
        assert costs == pytest.approx(context(space, tmp_path).price(canonical))
        h = space.crossbars(genotype)
        alone = PIMCost(h).prices(inner.program(space.model(genotype), tiny_schema()), [h])
        assert costs["energy_nj"] == pytest.approx(alone.total[0])
        naive = PIMCost()(space.program(genotype, tiny_schema()), (), context(inner, tmp_path))
        assert costs["naive_energy_nj"] == pytest.approx(naive["energy_nj"])
    assert len(space.encode(genotype)) == len(inner.encode(space.model(genotype))) + len(space.hardware(genotype))


def test_bits_of_a_block_without_matrices_decide_nothing():
    space = PIMSpace(nasrec())
    rng = np.random.default_rng(1)
    for _ in range(200):
        genotype = space.canonical(space.sample(rng))
        groups = {work.group for work in space.program(genotype, tiny_schema()).works if work.kind == "matmul"}
        if "block1" not in groups:
            break
    names = [choice.name for choice in space.choices]
    other = list(genotype)
    other[names.index("block1.weight_bits")] = 1
    assert tuple(other) != genotype
    assert space.canonical(tuple(other)) == genotype


def test_a_candidate_is_a_config_that_builds_the_same_model():
    space = PIMSpace(nasrec(), device=Device(variation=0.01, draws=2))
    genotype = space.canonical(space.sample(np.random.default_rng(3)))
    config = json.loads(json.dumps(space.model_config(genotype)))
    model = instantiate_model(config, tiny_schema())
    assert isinstance(model, OnCrossbars)
    assert model.pim.crossbars == dataclasses.replace(space.crossbars(genotype), bits=model.pim.crossbars.bits)
    assert {g: tuple(p) for g, p in model.pim.crossbars.bits.items()} == dict(space.crossbars(genotype).bits)
    assert model.pim.device == space.device
    model.configure_model()
    assert measure(model, [tiny_batch()])[1].isfinite().all()


def test_the_supernet_draws_crossbars_and_bits_in_every_step():
    space = PIMSpace(nasrec(), device=Device(variation=0.01))
    net = space.supernet(tiny_schema())
    net.configure_model()
    paths = [net.sample_path(step) for step in range(20)]
    assert len({own for _, own in paths}) > 15
    assert net.sample_path(3) == paths[3]
    seen = set()
    for path in paths[:6]:
        net.path = path
        net.train().loss(net.logits(tiny_batch()), tiny_batch()).backward()
        seen.add((net.pim.crossbars.rows, net.pim.crossbars.bits["block1"]))
    assert len(seen) > 2
    assert any(p.grad is not None and p.grad.any() for p in net.inner.network.parameters())


def test_candidates_ranked_together_are_ranked_as_alone():
    space = PIMSpace(nasrec(), device=Device(variation=0.05))
    net = space.supernet(tiny_schema()).eval()
    net.configure_model()
    rng = np.random.default_rng(0)
    paths = [space.canonical(space.sample(rng)) for _ in range(4)]
    low = {"weight_bits": 0, "activation_bits": 0}
    names = [c.name for c in space.choices]
    paths.append(tuple(1 if names[i].split(".")[1] in low else option for i, option in enumerate(paths[0])))
    inputs = net.embed(tiny_batch())
    with torch.no_grad():
        together = net.features(inputs, paths)
        for path, features in zip(paths, together, strict=True):
            torch.testing.assert_close(net.features(inputs, [path])[0], features)
            assert net.head(path)[0].shape == (features.shape[1],)


def test_a_search_can_start_from_variants_of_a_known_model(tmp_path):
    inner = nasrec()
    space = PIMSpace(inner)
    start = inner.canonical(inner.sample(np.random.default_rng(0)))
    method = NSGA2FromModel(inner.to_json(start), changes=2, population=20)
    method.setup(context(space, tmp_path))
    asked = [method.ask(History(number=n), np.random.default_rng(n)) for n in range(20)]
    assert all(space.valid(genotype) for genotype in asked)
    assert 2 < sum(space.model(genotype) == start for genotype in asked) < 20
    assert len({space.hardware(genotype) for genotype in asked}) == 20
    with pytest.raises(RecloomError, match="PIMSpace"):
        method.setup(context(inner, tmp_path))


def test_co_search_from_the_command_line(tmp_path):
    """A search in miniature of configs/pim/codesign.yaml: front, limits, naive costs, breakdown, a config that fits."""
    config = {
        "trials": 12,
        "batch": 4,
        "retrain": 1,
        "space": {
            "class_path": "PIMSpace",
            "init_args": {
                "space": {
                    "class_path": "NASRecSpace",
                    "init_args": {"num_blocks": 2, "dense_dims": [16, 32], "sparse_dims": [4, 8]},
                }
            },
        },
        "data": {
            "class_path": "SyntheticClicks",
            "init_args": {"num_train": 4096, "num_val": 1024, "num_test": 512, "batch_size": 256, "num_workers": 0},
        },
        "method": {"class_path": "NSGA2", "init_args": {"population": 4}},
        "evaluator": {"class_path": "SupernetEvaluator", "init_args": {"steps": 6, "finetune_steps": 2, "rows": 2048}},
        "objective": {"minimize": ["ne", "energy_nj", "latency_ns", "area_mm2"], "limits": {"area_mm2": 1.0}},
        "costs": [{"class_path": "AnalyticCost"}, {"class_path": "PIMCost"}],
        "scratch": {"class_path": "FromScratch", "init_args": {"max_steps": 3}},
    }
    (tmp_path / "co.yaml").write_text(yaml.safe_dump(config))
    folder = tmp_path / "search"
    assert (
        recloom(["search", "--config", str(tmp_path / "co.yaml"), "--run_dir", str(folder), "--progress", "false"]) == 0
    )
    found = json.loads((folder / "search.json").read_text())
    assert found["front"]
    for member in found["front"]:
        assert member["metrics"]["area_mm2"] <= 1.0
        assert {"naive_energy_nj", "naive_latency_ns", "utilisation"} <= member["metrics"].keys()
    report = (folder / "report.md").read_text()
    assert "Energy by component" in report
    assert "shift_add" in report
    assert "naive mapping" in report
    assert yaml.safe_load((folder / "found.yaml").read_text())["model"]["class_path"].endswith("OnCrossbars")
    run = [
        "fit",
        "--config",
        str(folder / "found.yaml"),
        "--run_dir",
        str(tmp_path / "run"),
        "--trainer.max_steps",
        "2",
    ]
    assert recloom([*run, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]) == 0
