"""TSL and TBSM: the published equations by loops, the reference where it is at hand, masks, towers, designed data."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml

from recloom import checkpoint
from recloom.batch import Batch, KeyedJaggedTensor, Sequences
from recloom.errors import RecloomError
from recloom.features import DenseFeature, FeatureSchema, SequenceFeature, SparseFeature
from recloom.optim import OptimizerConfig
from recloom.plugins import catalog
from recloom.rowgrad import row_parameters
from recloom.sequence import histories_of
from recloom.testing import check_plugin, run_cli, tiny_batch, tiny_schema
from recloom.testing.components import sequence_encoder_problems
from recloom_tsl.bench import reference
from recloom_tsl.designed import DesignedModel, DesignedSequences
from recloom_tsl.tbsm import TBSM
from recloom_tsl.tsl import TSL
from recloom_tsl.weights import import_reference

T, ROWS = 20, (50, 80, 30)
VARIANTS = {
    "def": {},
    "ind": {"kind": "ind"},
    "dot": {"kind": "dot"},
    "def-4": {"heads": 4},
    "def-4-seq": {"heads": 4, "seq": True},
    "def-mul": {"mechanism": "mul"},
    "ind-3-seq-mul": {"kind": "ind", "heads": 3, "seq": True, "mechanism": "mul"},
}


def taobao_schema():
    """User, item, category and a history of items and categories, as the reference has them."""
    user, item, category = (SparseFeature(n, r) for n, r in zip(("user", "item", "category"), ROWS, strict=True))
    keys = tuple(SparseFeature(f.name, f.num_embeddings, table=f.name) for f in (item, category))
    return FeatureSchema(sparse=(user, item, category), sequences=(SequenceFeature("history", keys, T),))


def taobao_batch(lengths, reverse=False):
    """Histories of these lengths; the same rows whatever `reverse` is, but with steps the other way round."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.stack([torch.randint(0, n, (len(lengths),), generator=generator) for n in ROWS])
    steps = [torch.stack([torch.randint(0, n, (k,), generator=generator) for n in ROWS[1:]], 1) for k in lengths]
    steps = [step.flip(0) if reverse else step for step in steps]
    offsets = torch.tensor([0, *itertools.accumulate(lengths)])
    history = Sequences(["item", "category"], torch.cat(steps), offsets)
    sparse = KeyedJaggedTensor(["user", "item", "category"], ids)
    return Batch(torch.zeros(len(lengths), 0), sparse, torch.arange(len(lengths)) % 2.0, {"history": history})


def spans(heads=1, seq=False, **unused):
    return [round(T / heads * (heads - j)) if seq else T for j in range(heads)]


def foreign(kind="def", heads=1, seq=False, mechanism="mlp"):
    """Random weights by the names of the reference's state dict."""
    generator, state = torch.Generator().manual_seed(1), {}

    def layers(prefix, *widths):
        for i, (inner, outer) in enumerate(itertools.pairwise(widths)):
            state[f"{prefix}.{2 * i}.weight"] = torch.randn(outer, inner, generator=generator) / inner**0.5
            state[f"{prefix}.{2 * i}.bias"] = torch.randn(outer, generator=generator) / 2

    for i, rows in enumerate(ROWS):
        state[f"dlrm.emb_l.{i}.weight"] = torch.randn(rows, 16, generator=generator) / 2
    layers("dlrm.bot_l", 1, 16)
    layers("dlrm.top_l", 22, 15, 15)
    for j, span in enumerate(spans(heads, seq)):
        if kind != "dot":
            state[f"ams.{j}.A"] = torch.randn(1, 15, 15, generator=generator) / 15**0.5
        if mechanism == "mlp":
            layers(f"ams.{j}.mlp", span, 15, 15, span)
        layers(f"mlps.{j}", 30, 60, 1)
    if heads > 1:
        layers("final_mlp", heads, heads + 4, 1)
    return state


def naive(state, batch, kind="def", heads=1, seq=False, mechanism="mlp"):
    """The equations, row by row and step by step, in float64: probabilities."""
    state = {name: value.double() for name, value in state.items()}

    def mlp(prefix, x, last=torch.relu):
        names = [name.removesuffix(".weight") for name in state if name.startswith(prefix) and name.endswith("weight")]
        for name in names:
            x = state[f"{name}.weight"] @ x + state[f"{name}.bias"]
            x = last(x) if name == names[-1] else torch.relu(x)
        return x

    def tower(place, *ids):
        bottom = mlp("dlrm.bot_l", torch.tensor([place / (T + 1)]).double())
        vectors = [bottom, *(state[f"dlrm.emb_l.{i}.weight"][n] for i, n in enumerate(ids))]
        products = [vectors[i] @ vectors[j] for i in range(4) for j in range(i)]
        z = mlp("dlrm.top_l", torch.cat([bottom, torch.stack(products)]))
        return z / max(z.norm(), 1e-12)

    sparse, history, found = batch.sparse_features.values.view(3, -1), batch.sequences["history"], []
    for row in range(len(batch)):
        steps = history.values[history.offsets[row] : history.offsets[row + 1]].tolist()
        user, item, category = sparse[:, row].tolist()
        w = tower(T, user, item, category)
        h = {T - len(steps) + i: tower(T - len(steps) + i, user, *ids) for i, ids in enumerate(steps)}
        heads_ = []
        for j, span in enumerate(spans(heads, seq)):
            a = state.get(f"ams.{j}.A")
            q = w if a is None else a[0] @ w if kind == "ind" else a[0].T @ (a[0] @ w)
            places = range(T - span, T)
            scores = [h[t] @ q if t in h else torch.zeros(()).double() for t in places]
            if mechanism == "mlp":
                scores = mlp(f"ams.{j}.mlp", torch.stack(scores), torch.sigmoid)
            context = sum((s * h[t] for s, t in zip(scores, places, strict=True) if t in h), torch.zeros(15).double())
            heads_.append(mlp(f"mlps.{j}", torch.cat([context, w]), torch.sigmoid))
        p = torch.cat(heads_)
        found.append(mlp("final_mlp", p, torch.sigmoid) if heads > 1 else p)
    return torch.cat(found).float()


def imported(state, **options):
    model = TBSM(taobao_schema().to_dict(), **options)
    import_reference(model, state)
    return model.eval()


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_tbsm_is_the_papers_for_whole_short_and_empty_histories(options):
    state, batch = foreign(**options), taobao_batch([T, 0, 1, 7, T, 13])
    with torch.no_grad():
        found = imported(state, **options).logits(batch).sigmoid()
    torch.testing.assert_close(found, naive(state, batch, **options), atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_tbsm_equals_the_reference(options):
    paths = reference.checkouts()
    if paths is None:
        pytest.skip("no checkouts of tbsm and dlrm: set RECLOOM_TBSM and RECLOOM_DLRM")
    names = {"kind": "tsl_inner", "heads": "tsl_num_heads", "seq": "tsl_seq", "mechanism": "tsl_mechanism"}
    net = reference.build(paths, ROWS, T, seed=1, **{names[name]: value for name, value in options.items()})
    batch = taobao_batch([T] * 64)
    ids, steps = batch.sparse_features.values.view(3, -1), batch.sequences["history"].values.view(64, T, 2)
    rows = torch.arange(64)
    inputs = [[ids[0], *steps[:, t].t().contiguous()] for t in range(T)] + [list(ids)]
    with torch.no_grad():
        expected = net([torch.full((64, 1), t / (T + 1)) for t in range(T + 1)], [[rows] * 3] * (T + 1), inputs)
        found = imported(net.state_dict(), **options).logits(batch).sigmoid()
    torch.testing.assert_close(found, expected.view(-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{}, {"kind": "ind"}], ids=["def", "ind"])
def test_order_and_the_matrix_matter(options):
    """Negative controls: what must move the outputs does, by far more than the tolerance of equality."""
    state, lengths = foreign(**options), [T] * 8
    with torch.no_grad():
        model = imported(state, **options)
        before = model.logits(taobao_batch(lengths)).sigmoid()
        assert float((model.logits(taobao_batch(lengths, reverse=True)).sigmoid() - before).abs().max()) > 1e-4
        state["ams.0.A"] = state["ams.0.A"].transpose(1, 2)
        assert float((imported(state, **options).logits(taobao_batch(lengths)).sigmoid() - before).abs().max()) > 1e-4


def test_weights_that_do_not_fit_are_named():
    state = foreign()
    model = TBSM(taobao_schema().to_dict(), kind="dot")
    before = model.output_arch.weights[0].clone()
    with pytest.raises(RecloomError, match=r"ams.0.A has no place in the model"):
        import_reference(model, state)
    assert torch.equal(model.output_arch.weights[0], before), "a failed import changed the model"
    state["mlps.0.0.weight"] = torch.zeros(60, 32)
    with pytest.raises(RecloomError, match=r"mlps.0.0.weight is \(60, 32\) there, \(60, 30\) here"):
        import_reference(TBSM(taobao_schema().to_dict()), state)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kind": "dot", "mechanism": "mul", "normalize": False},
        {"heads": 4, "seq": True, "time": "gap"},
        {"kind": "ind", "heads": 2, "normalize": False},
    ],
    ids=["published", "dot-mul", "seq-gap", "ind-2"],
)
def test_tsl_meets_the_encoders_contract(options):
    assert not list(sequence_encoder_problems(TSL, options))


def test_gates_start_at_one_and_real_time_then_matters():
    steps, query = torch.randn(3, 6, 8), torch.randn(3, 8)
    mask, gaps = torch.ones(3, 6, dtype=torch.bool), torch.rand(3, 6) * 1e6
    plain, gated = TSL(8, 6, heads=2), TSL(8, 6, heads=2, time="gap")
    gated.load_state_dict({**gated.state_dict(), **plain.state_dict()})
    torch.testing.assert_close(gated(steps, query, mask, gaps), plain(steps, query, mask))
    torch.testing.assert_close(gated.scores(steps, query, mask, gaps), plain.scores(steps, query, mask))
    torch.nn.init.normal_(gated.gate.output.weight)
    assert not torch.allclose(gated(steps, query, mask, gaps), gated(steps, query, mask, gaps / 2), atol=1e-3)
    with pytest.raises(RecloomError, match="no times"):
        gated(steps, query, mask)


def test_what_tsl_cannot_be_is_refused():
    for options, message in (
        ({"kind": "dot", "heads": 2}, "2 heads"),
        ({"heads": 9, "seq": True}, "share histories of 4 steps"),
        ({"kind": "soft"}, "no kind of TSL named 'soft'"),
    ):
        with pytest.raises(RecloomError, match=message):
            TSL(8, 4, **options)
    with pytest.raises(RecloomError, match="5 steps"):
        TSL(8, 4)(torch.zeros(1, 5, 8), torch.zeros(1, 8), torch.ones(1, 5, dtype=torch.bool))


def test_steps_are_brought_to_length_one_and_zeros_stay_zeros():
    encoder, mask = TSL(4, 3, kind="dot", mechanism="mul"), torch.ones(2, 3, dtype=torch.bool)
    steps = torch.tensor([[[0.0, 3, 4, 0]], [[0, 0, 0, 0]]]).expand(2, 3, 4).clone().requires_grad_()
    out = encoder(steps, torch.tensor([[0.0, 5, 0, 0]] * 2), mask)  # 3 steps (0, .6, .8, 0), each with the score .6
    torch.testing.assert_close(out, torch.tensor([[0, 3 * 0.36, 3 * 0.48, 0], [0, 0, 0, 0]]))
    out.sum().backward()
    assert float(steps.grad[1].abs().max()) == 0, "torch's normalize gives zeros a gradient of 1e12"


# The tower and the positions


def train(model, batches):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, num_sanity_val_steps=0, **quiet)
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer.fit(model, loader, loader)
    return trainer


@pytest.mark.parametrize("cross", [False, True], ids=["dot", "CrossNet"])
def test_any_dlrm_is_a_tower(cross, tmp_path: Path):
    schema = tiny_schema(one_hot=True, histories=True)
    dlrm, crossnet = catalog().models.load("DLRM"), catalog().interactions.load("CrossNet")
    options = {"interaction": crossnet} if cross else {}
    torch.manual_seed(0)
    model = TBSM(
        schema.to_dict(),
        lambda schema: dlrm(schema, 8, (16,), (16,), **options),
        heads=2,
        time="gap",
        optimizer=OptimizerConfig(dense="Adam", dense_lr=0.01, sparse="adagrad"),
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = train(model, [tiny_batch(schema, seed=i) for i in range(3)])
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert not still
    assert [name for name, _ in row_parameters(model)] == ["tower.sparse_arch.weight"]
    assert not list(model.tower.evaluation.modules())[1:], "the tower keeps metrics that nobody asks for"
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    stored = checkpoint.read(tmp_path / "model.ckpt")
    assert "dense_arch" not in stored["hyper_parameters"], "the tower's hyper-parameters are mixed with the model's"
    again = TBSM(schema.to_dict(), lambda schema: dlrm(schema, 8, (16,), (16,), **options), heads=2, time="gap")
    checkpoint.load_weights(again, tmp_path / "model.ckpt")
    batch = tiny_batch(schema, seed=9)
    assert torch.equal(again.eval().logits(batch), model.eval().logits(batch))


class Recorder(torch.nn.Module):
    """Keeps what a tower is called with."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, dense, values, offsets=None, weights=None):
        self.dense, self.values, self.offsets = dense, values, offsets
        return torch.ones(len(dense), self.width)


def recorded(schema, batch, **options):
    """Return what the tower of a TBSM on `batch` was called with, and the tower's schema."""
    model = TBSM(schema.to_dict(), **options)
    known, model.tower = model.tower.schema, Recorder(15)
    model.logits(batch)
    return known, model.tower


def test_the_tower_gets_one_row_a_valid_position():
    schema = tiny_schema(one_hot=True, histories=True)
    batch = tiny_batch(schema, rows=5)
    known, seen = recorded(schema, batch)
    assert [f.name for f in known.dense] == ["position", "d0", "d1", "d2"]
    assert {f.name: f.num_embeddings for f in known.sparse} == {
        "user": 40, "item": 30, "hour": 24, "tags": 15, "history_action": 6
    }  # fmt: skip
    ids, history = batch.sparse_features.values.view(4, -1).tolist(), batch.sequences["history"]
    rows = []
    for b in range(5):
        steps = history.values[history.offsets[b] : history.offsets[b + 1]].tolist()
        for i, (item, action) in enumerate([*steps, (ids[1][b], 5)]):  # 5: the unknown action of the candidate
            place = (6 - len(steps) + i) / 7
            rows.append(([place, *batch.dense_features[b].tolist()], [ids[0][b], item, ids[2][b], ids[3][b], action]))
    assert seen.offsets is None
    assert seen.values.view(5, -1).t().tolist() == [r[1] for r in rows]
    torch.testing.assert_close(seen.dense, torch.tensor([r[0] for r in rows]))
    assert recorded(schema, batch, keys=["item"])[1].values.tolist() == seen.values[: 4 * len(rows)].tolist()
    _, timed = recorded(schema, batch, time="gap")
    hours = [k for n in history.lengths.tolist() for k in range(n, -1, -1)]
    total = len(history.values)  # the test kit's times fall by an hour from each step to the next, over all rows
    starts = torch.repeat_interleave(history.offsets[1:], history.lengths + 1)
    gaps = torch.tensor(
        [0.0 if k == 0 else 3600.0 * (total - (s - k)) for k, s in zip(hours, starts.tolist(), strict=True)]
    )
    torch.testing.assert_close(timed.dense[:, 0], torch.log1p(gaps) / torch.log1p(torch.tensor(30 * 86400.0)))


def test_bags_are_repeated_and_steps_are_bags_of_one():
    schema = FeatureSchema(
        sparse=(SparseFeature("tags", 9, max_length=3), SparseFeature("item", 7)),
        sequences=(SequenceFeature("history", (SparseFeature("item", 7, table="item"),), 2),),
        dense=(DenseFeature("d"),),
    )
    sparse = KeyedJaggedTensor(["tags", "item"], torch.tensor([1, 2, 8, 5, 6]), lengths=torch.tensor([2, 1, 1, 1]))
    history = Sequences(["item"], torch.tensor([[3], [4]]), torch.tensor([0, 2, 2]))
    _, seen = recorded(schema, Batch(torch.zeros(2, 1), sparse, torch.ones(2), {"history": history}))
    assert seen.values.tolist() == [1, 2, 1, 2, 1, 2, 8, 3, 4, 5, 6]
    assert seen.offsets.diff().tolist() == [2, 2, 2, 1, 1, 1, 1, 1]


def test_data_that_tbsm_cannot_take_are_refused():
    one = tiny_schema(one_hot=True, histories=True)
    (history,) = one.to_dict()["sequences"]
    two = FeatureSchema.from_dict({**one.to_dict(), "sequences": [{**history, "name": name} for name in "ab"]})
    for schema, options, message in (
        (tiny_schema(one_hot=True), {}, "needs a history"),
        (two, {}, "takes one history, and the data have a, b"),
        (two, {"history": "c"}, "needs a history named 'c'"),
        (one, {"keys": ["itme"]}, "no key of the history named 'itme'"),
        (FeatureSchema.from_dict({**one.to_dict(), "labels": ["x", "y"]}), {}, "one label"),
    ):
        with pytest.raises(RecloomError, match=message):
            TBSM(schema.to_dict(), **options)
    batch = tiny_batch(one)
    histories = {name: value for name, value in histories_of(batch).items() if not name.endswith("gaps")}
    with pytest.raises(RecloomError, match="no times"):
        TBSM(one.to_dict(), time="gap")(batch.dense_features, batch.sparse_features.values, histories=histories)


# The designed data


def auc(kind, heads=1, terms=10, frozen=False, rows=50_000):
    pl.seed_everything(0, verbose=False)
    data = DesignedSequences(num_train=rows, terms=terms)
    config = OptimizerConfig(dense="Adagrad", dense_lr=0.05)
    model = DesignedModel(data.schema, kind, heads, frozen=frozen, optimizer=config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, limit_val_batches=0, **quiet)
    trainer.fit(model, data)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    return float(trainer.test(model, data, verbose=False)[0]["test_auc"]), moved, set(before)


@pytest.mark.parametrize(
    ("kind", "terms", "low", "high"),
    [("def", 10, 0.99, 1), ("def", 30, 0.99, 1), ("ind", 20, 0.99, 1), ("dot", 10, 0.63, 0.69), ("dot", 0, 0.999, 1)],
)
def test_trained_layers_on_designed_data(kind, terms, low, high):
    found, moved, names = auc(kind, terms=terms)
    assert low <= found <= high
    assert moved == names


def test_the_published_script_trains_neither_a_nor_the_attention():
    found, moved, names = auc("def", frozen=True, rows=20_000)
    assert found < 0.9
    assert names - moved == {"layer.a"}
    found, moved, names = auc("mha", heads=8, frozen=True, rows=6_400)
    assert 0.4 < found < 0.6
    assert moved == names, "projections and MLP are trained; the attention has no weights to keep"
    _, moved, names = auc("mha", heads=8, rows=6_400)
    assert moved == names
    assert "layer.attention.in_proj_weight" in names
    with pytest.raises(RecloomError, match="nothing to freeze"):
        auc("dot", frozen=True)


def test_designed_labels_are_the_signs_of_mean_similarities():
    data = DesignedSequences(num_train=300, terms=3, length=4, width=2, seed=7)
    source = data.source("train")
    block = source.load(0, 0)
    again = DesignedSequences(num_train=300, terms=0, length=4, width=2, seed=7).source("train").load(0, 0)
    assert torch.equal(again.dense_features, block.dense_features), "vectors depend on more than seed and sizes"
    vectors, permutations = block.dense_features.double().view(300, 5, 2), data.config.build().permutations
    for row in range(300):
        w = vectors[row, 4]
        for permutation in permutations:
            w = w + torch.stack([w[int(i)] for i in permutation])
        assert float(block.labels[row]) == float(sum(h @ w for h in vectors[row, :4]) > 0)
    assert 0.3 < float(block.labels.mean()) < 0.7
    assert not torch.equal(data.source("val").load(0, 0).dense_features[:300], block.dense_features)


# Commands


def test_configured_tower_trains_from_the_command_line(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tower = {"class_path": "DLRM", "init_args": {"embedding_dim": 8, "dense_arch": [8], "interaction": "CrossNet"}}
    data = {"num_train": 512, "num_val": 128, "num_test": 128, "batch_size": 64, "num_workers": 0, "max_length": 8}
    document = {
        "model": {"class_path": "TBSM", "init_args": {"tower": tower, "time": "gap", "optimizer": {"dense": "Adam"}}},
        "data": {"class_path": "SyntheticBehaviour", "init_args": data},
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False},
    }
    Path("config.yaml").write_text(yaml.safe_dump(document))
    code, _, err = run_cli(["fit", "--config", "config.yaml", "--run_dir", "run"])
    assert code == 0, err
    code, out, err = run_cli(["test", "--config", "run/config.yaml", "--ckpt_path", "run/checkpoints/last.ckpt"])
    assert code == 0, err
    assert "test_auc" in out


def test_benchmark_measures_speed_and_memory(tmp_path: Path, monkeypatch):
    for name in ("RECLOOM_TBSM", "RECLOOM_DLRM"):
        monkeypatch.delenv(name, raising=False)
    options = ["--rows", "60", "80", "20", "--batch", "8", "--rounds", "1", "--seconds", "0", "--only", "recloom"]
    code, out, err = run_cli(["bench", "tsl", *options, "--out", str(tmp_path / "found.json")])
    assert code == 0, err
    assert "the reference is left out" in err
    (row,) = json.loads((tmp_path / "found.json").read_text())
    assert row["samples_per_second"] > 0
    assert 50e6 < row["peak_bytes"] < 2e9
    assert "| recloom | 1 |" in out
    code, _, err = run_cli(["bench", "tsl", "--tbsm-path", "nowhere", "--dlrm-path", "nowhere"])
    assert code == 2
    assert "there is no tbsm_pytorch.py here" in err


def test_plugin_is_sound():
    check_plugin("tsl", {"DesignedModel": {"length": 2, "width": 1}})
