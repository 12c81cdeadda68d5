"""Presets of RMC1-3, the companions, and traces with a chosen locality."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from recloom.errors import RecloomError
from recloom.features import FeatureSchema, SparseFeature
from recloom.loading import build_data, build_model
from recloom.online.replicas import Service, load
from recloom.plugins import catalog
from recloom.testing import check_plugin, run_cli, tiny_batch, tiny_schema
from recloom_rmc import presets, services, traces
from recloom_rmc.bench import breakdown, gather, sweep

CONFIGS = Path(__file__).parents[2] / "configs" / "rmc"
# kFLOP and gathered KiB a sample, GiB of tables: counted by hand from DeepRecSys's JSON files
PUBLISHED = {"rmc1": (201, 80, 3.81), "rmc2": (639, 960, 3.81), "rmc3": (6407, 25, 2.38)}


def test_plugin() -> None:
    check_plugin("rmc")


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_cost_what_the_source_says(name: str) -> None:
    found = presets.preset(name)
    kiloflops, kibibytes, gibibytes = PUBLISHED[name]
    assert found.flops / 1000 == pytest.approx(kiloflops, abs=0.5)
    assert found.gathered_bytes / 1024 == kibibytes
    assert found.table_bytes / 2**30 == pytest.approx(gibibytes, abs=0.01)
    assert "DeepRecSys" in found.source


@pytest.mark.parametrize(("name", "work"), itertools.product(PUBLISHED, (1.0, 0.5, 0.25, 0.125)))
def test_scaling_keeps_flops_to_bytes(name: str, work: float) -> None:
    whole = presets.preset(name)
    part = whole.scaled(rows=0.001, work=work)
    assert part.intensity == pytest.approx(whole.intensity, rel=0.05)
    assert part.gathered_bytes == pytest.approx(work * whole.gathered_bytes, rel=0.21)  # whole ids: 20 / 8 is 2
    assert part.rows == whole.rows // 1000
    model = part.build()
    flops = sum(2 * layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    assert flops == part.flops
    assert sum(table.num_embeddings for table in model.sparse_arch.tables) == part.tables * part.rows


def test_scaling_that_cannot_be_is_refused() -> None:
    with pytest.raises(RecloomError, match="same FLOPs a byte"):
        presets.preset("rmc1").scaled(work=0.02)
    with pytest.raises(RecloomError, match="rmc1"):
        presets.preset("rcm1")


def test_ranges_order_models_as_the_paper_does() -> None:
    one, two, three = (presets.from_ranges(name, 0.5) for name in ("rmc1", "rmc2", "rmc3"))
    assert two.tables > 3 * one.tables
    assert two.gathered_bytes > 3 * one.gathered_bytes
    assert three.flops > 5 * one.flops
    assert three.lookups * 4 == one.lookups == two.lookups
    assert presets.from_ranges("rmc1", 1).rows == 180 * presets.from_ranges("rmc1", 0).rows
    assert "second-hand" in one.source


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_are_scaled_presets(name: str) -> None:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    whole = presets.preset(name)
    lookups = config["data"]["init_args"]["multi_hot"]["c0"]
    part = whole.scaled(rows=1 / 20, work=lookups / whole.lookups)
    options, data = config["model"]["init_args"], config["data"]["init_args"]
    assert {"interaction": "ConcatInteraction"}.items() <= options.items()
    wanted = part.model_section()["init_args"]
    assert [options[key] for key in ("embedding_dim", "dense_arch", "over_arch")] == [
        wanted[key] for key in ("embedding_dim", "dense_arch", "over_arch")
    ]
    assert data["cardinalities"] == [part.rows] * part.tables
    assert data["multi_hot"] == {f"c{i}": part.lookups for i in range(part.tables)}
    assert data["num_dense"] == part.dense


def test_ncf_multiplies() -> None:
    schema = FeatureSchema(sparse=(SparseFeature("u", 5), SparseFeature("other", 3), SparseFeature("i", 4)))
    model = catalog().models.load("NCF")(schema.to_dict(), user="u", item="i", embedding_dim=8, widths=(8, 4)).eval()
    batch = tiny_batch(schema, rows=6)
    user, item = batch.sparse_features["u"][0], batch.sparse_features["i"][0]
    product = model.factors.table_weight("u")[user] * model.factors.table_weight("i")[item]
    rows = torch.cat([model.sparse_arch.table_weight("u")[user], model.sparse_arch.table_weight("i")[item]], dim=1)
    hidden = model.over_arch(rows)
    expected = product @ model.head.weight[0, :8] + hidden @ model.head.weight[0, 8:] + model.head.bias
    with torch.no_grad():
        torch.testing.assert_close(model.logits(batch), expected)
    with pytest.raises(RecloomError, match="bag of ids"):
        catalog().models.load("NCF")(tiny_schema().to_dict(), item="tags")


def test_wide_part_is_linear_in_crossed_ids() -> None:
    schema = tiny_schema(one_hot=True)
    kind = catalog().models.load("WideDeep")
    crossed = kind(schema.to_dict(), embedding_dim=4, widths=(4,), crosses=[("user", "item")], cross_rows=977).eval()
    batch = tiny_batch(schema, rows=8)
    with torch.no_grad():
        before = crossed.logits(batch)
        weight = crossed.wide.crossed.table_weight("user x item")
        old = weight.clone()
        weight += 1.5
        torch.testing.assert_close(crossed.logits(batch), before + 1.5)  # one crossed id a sample
        weight.copy_(old)
        users, items = (batch.sparse_features[name][0].tolist() for name in ("user", "item"))
        pairs = set(zip(users, items, strict=True))
        weight.zero_()
        found = crossed.wide(batch.dense_features, batch.sparse_features.values, None, None).squeeze(1)
        weight.copy_(torch.arange(977.0)[:, None])
        ids = crossed.wide(batch.dense_features, batch.sparse_features.values, None, None).squeeze(1) - found
    assert len({round(i) for i in ids.tolist()}) == len(pairs)
    with pytest.raises(RecloomError, match="one-hot"):
        kind(tiny_schema().to_dict(), crosses=[("user", "tags")])


def test_conversions_follow_clicks() -> None:
    data = catalog().datamodules.load("SyntheticConversions")(num_train=40_000, num_val=0, num_test=0, num_workers=0)
    source = data.source("train")
    first, again = source.load(0, 0), source.load(0, 0)
    clicks, conversions = first.labels.unbind(1)
    assert torch.equal(first.labels, again.labels)
    assert bool((conversions <= clicks).all())
    chance = first.extras["probability"]
    error = (conversions - chance[:, 1]).mean() / (conversions.std() / len(conversions) ** 0.5)
    assert abs(float(error)) < 4
    model = catalog().models.load("MultiTaskWideDeep")(data.schema, embedding_dim=4, widths=(8,), tower=(8, 4))
    assert model.logits(first.rows(0, 7)).shape == (7, 2)
    model.logits(first.rows(0, 7))[:, 0].sum().backward()
    idle = [p for p in model.towers[1].parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert not idle


@pytest.mark.parametrize(("name", "encoder"), [("din", "DIN"), ("dien", "DIEN")])
def test_sequence_companions_take_another_plugins_encoder(name: str, encoder: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    model = build_model(path, build_data(path).schema)
    assert type(model.sequence_arch.encoders[0]).__name__ == encoder
    assert [layer.out_features for layer in model.over_arch.linears()] == [200, 80, 1]


# Measurements


def test_bench(tmp_path: Path) -> None:
    quick = ["--rows", "0.02", "--batches", "1", "16", "--rounds", "1", "--clock", "cpu", "--out", str(tmp_path)]
    done = run_cli(["bench", "rmc", "--presets", "rmc1-example", *quick])
    assert done.code == 0, done.err
    (found,) = json.loads((tmp_path / "rmc.json").read_text())
    for row in found["sweep"]:
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert row["shares"]["gather"] > 0
        assert row["shares"]["FC"] > 0
        assert row["milliseconds"] > 0
    small, large = (row["floors_ms"] for row in found["sweep"])
    assert large["FC"] == pytest.approx(16 * small["FC"])
    assert {row["trace"] for row in found["locality"]} == set(sweep.TRACES)
    assert "x FBGEMM" in (tmp_path / "report.md").read_text()
    assert "perf" in (tmp_path / "report.md").read_text()  # what it offers, or that it does not


def test_breakdown_finds_what_a_model_does() -> None:
    sizes = presets.preset("rmc1").scaled(rows=0.001)
    gathers = breakdown.breakdown(sizes.build(), sweep.requests(sizes, 256, 3))
    wide = presets.Preset("fc", "", 1, 100, 32, 1, 512, (1024, 1024), (1024, 1024))
    multiplies = breakdown.breakdown(wide.build(), sweep.requests(wide, 256, 3))
    assert gathers["gather"] > 2 * multiplies["gather"]
    assert multiplies["FC"] > 0.5
    assert multiplies["FC"] > gathers["FC"]


def test_contenders_of_the_gather_agree() -> None:
    sizes = presets.preset("rmc1-example").scaled(rows=0.02)
    model = sizes.build()
    good = gather._torch(model.sparse_arch, sizes)
    ((_, ids, offsets),) = sweep.requests(sizes, 4, 1)
    with torch.no_grad():
        gather._agree({"recloom": model.sparse_arch, "torch": good}, ids, offsets)
        with pytest.raises(AssertionError, match="wrong"):
            gather._agree({"recloom": model.sparse_arch, "wrong": lambda i, o: good(i.flip(0), o)}, ids, offsets)


def test_written_config_is_the_preset(tmp_path: Path) -> None:
    sizes = presets.preset("rmc1-example").scaled(rows=0.01)
    path = services.write_config(sizes, tmp_path / "it.yaml")
    model, pool = load(Service(path, rows=32, fresh=True))
    assert [t.num_embeddings for t in model.sparse_arch.tables] == [1000] * 5
    lengths = pool.take(32).sparse_features.lengths
    assert lengths.float().mean() == pytest.approx(80, rel=0.1)


# Traces


def brute_force(ids: np.ndarray) -> list[int]:
    found = []
    for now, row in enumerate(ids.tolist()):
        earlier = [i for i in range(now) if ids[i] == row]
        found.append(len(set(ids[earlier[-1] + 1 : now].tolist())) if earlier else traces.COLD)
    return found


@pytest.mark.parametrize("compiled", [True, False])
def test_stack_distances_and_traces_are_inverse(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(traces, "_library", lambda: None)
    ids = np.random.default_rng(0).integers(0, 40, 300)
    distances = traces.stack_distances(ids)
    assert distances.tolist() == brute_force(ids)
    again = traces.of_distances(distances, rows=40, seed=3)
    assert traces.stack_distances(again).tolist() == distances.tolist()
    assert traces.stack_distances(np.empty(0, np.int64)).tolist() == []


def test_hit_curve_is_that_of_an_lru_cache() -> None:
    ids = traces.zipf(2000, 500, 1.0, seed=1)
    sizes = [1, 10, 100, 1000]
    curve = traces.hit_curve(traces.stack_distances(ids), sizes)
    for size, expected in zip(sizes, curve, strict=True):
        cache: dict[int, None] = {}
        hits = 0
        for row in ids.tolist():
            hits += row in cache
            cache.pop(row, None)
            cache[row] = None
            if len(cache) > size:
                cache.pop(next(iter(cache)))
        assert hits / len(ids) == expected
    assert curve == sorted(curve)


def test_traces_have_the_locality_that_was_asked_for() -> None:
    assert traces.unique_of(traces.unique_share(10_000, 100_000, 0.3, seed=0)) == pytest.approx(0.3, abs=1e-4)
    with pytest.raises(RecloomError, match="3000 rows"):
        traces.unique_share(10_000, 1000, 0.3, seed=0)
    near, far = (
        traces.stack_distances(
            traces.of_distances(traces.draw_distances(20_000, median, 0.5, 0.1, 1), rows=50_000, seed=2)
        )[10_000:]
        for median in (30, 300)
    )
    assert np.median(near[near >= 0]) == pytest.approx(30, rel=0.1)
    assert np.median(far[far >= 0]) == pytest.approx(300, rel=0.1)
    assert (near < 0).mean() == pytest.approx(0.1, abs=0.02)
    skewed, flat = traces.zipf(50_000, 10_000, 1.2, seed=0), traces.uniform(50_000, 10_000, seed=0)
    top = np.bincount(skewed, minlength=10_000).max() / len(skewed)
    assert top == pytest.approx(1 / (np.arange(1, 10_001) ** -1.2).sum(), rel=0.05)
    assert traces.unique_of(skewed) < traces.unique_of(flat)
