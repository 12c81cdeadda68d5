"""Distribution kernels in scikit-learn, in Lightning and on the command line."""

from __future__ import annotations

import collections
import functools
import itertools
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import SkipTestWarning
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import check_estimator

from recloom.catalog import Catalog
from recloom.plugins import catalog
from recloom.testing import run_cli
from recloom.testing.components import sequence_encoder_problems
from recloom_distkernels import experiments
from recloom_distkernels.bench.search import main as bench
from recloom_distkernels.cache import DivergenceCache
from recloom_distkernels.estimators import GramRepair, SetEmbedding, SetKernel, SetOutlierDetector
from recloom_distkernels.gram import DuplicateWarning
from recloom_distkernels.group_data import SyntheticGroups
from recloom_distkernels.group_model import GroupModel
from recloom_distkernels.layers import DivergenceLayer, MMDLayer
from recloom_distkernels.machines import SetClassifier, SetRegressor
from recloom_distkernels.mean_embedding import MeanEmbedding
from recloom_distkernels.mmd import MMD, MeanMap
from recloom_distkernels.pairwise import pairwise_divergences
from recloom_distkernels.readers import read_groups
from recloom_distkernels.samplesets import SampleSets
from recloom_distkernels.selection import cross_val_predict_sets, set_divergences
from recloom_distkernels.tasks import TASKS

ESTIMATORS = [
    MeanEmbedding(features=20),
    SetKernel("mmd"),
    GramRepair(),
    SetOutlierDetector("mmd", nu=0.1),
    SetEmbedding("mmd"),
    SetClassifier("mmd", C=10.0, scale=1.0),
    SetRegressor("mmd", C=10.0, scale=1.0),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_scikit_learns_checks(estimator):
    """Samples of a 2-d array are sets of one point, which MMD takes; k-NN divergences say that they need more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("ignore", SkipTestWarning)
        results = check_estimator(estimator, on_skip=None, on_fail=None)
    failed = [(r["check_name"], str(r["exception"])) for r in results if r["status"] == "failed"]
    assert not failed
    assert sum(r["status"] == "passed" for r in results) > 40


def small(task, count=60, points=60):
    sets, y = TASKS[task](count, points, 0)
    return sets, y


def test_classifier_and_its_selection():
    sets, y = small("ring")
    x = [points.numpy() for points in sets]
    machine = SetClassifier("renyi:0.8", C=8.0)
    assert cross_val_score(machine, x, y, cv=3).mean() > 0.9
    fitted = clone(machine).fit(x[:40], y[:40])
    assert fitted.best_scale_ in (0.0625, 0.25, 1, 4, 16, 64, 256, 1024)
    assert len(fitted.scores_) == 8
    # divergences computed once give what the sets give, whichever way
    values = set_divergences(machine, sets)
    other = clone(machine).fit_divergences(values[:40, :40], y[:40])
    assert other.best_scale_ == fitted.best_scale_
    np.testing.assert_array_equal(other.predict_divergences(values[40:, :40], values[:40, 40:]), fitted.predict(x[40:]))
    with pytest.raises(ValueError, match="points have 3 dimensions"):
        fitted.predict([np.zeros((9, 3))])
    # a Gram matrix made beforehand: its repair is fitted on the rows and columns of each training fold
    plain = SetKernel("renyi:0.8", psd="no").fit_transform(x)
    assert cross_val_score(make_pipeline(GramRepair(), SVC(C=8.0, kernel="precomputed")), plain, y, cv=3).mean() > 0.9


def test_inner_folds_do_not_see_what_is_held_out(monkeypatch):
    """Every PSD repair of the search is fitted on the fold's training block; divergences are computed once for all."""
    from recloom_distkernels import gram
    from recloom_distkernels.psd import ClipPSD

    computed = []
    monkeypatch.setattr(
        gram, "pairwise_divergences", lambda *a, **b: computed.append(1) or pairwise_divergences(*a, **b)
    )
    sizes = []
    original = ClipPSD.fit
    monkeypatch.setattr(ClipPSD, "fit", lambda self, gram: (sizes.append(len(gram)), original(self, gram))[1])
    sets, y = small("ring", 30)
    SetClassifier("hellinger", C=1.0, cv=3).fit(sets, y)
    assert sizes == [20] * 24 + [30]  # three folds of eight bandwidths, then the training sets themselves, once
    assert len(computed) == 1


def test_regression_outliers_and_embedding():
    sets, y = small("skewness", 60, 100)
    predicted = cross_val_predict_sets(SetRegressor("kl", C=64.0), sets, y, cv=3)
    assert 1 - np.mean((predicted - y) ** 2) / y.var() > 0.9
    rings, kind = small("ring", 60, 100)
    found = SetOutlierDetector("kl", k=5).fit(rings.select(kind == 0)).decision_function(rings)
    assert found[kind == 0].mean() > found[kind == 1].max()
    turned, angles = TASKS["entropy"](40, 150, 0)[0], None
    for method in ("kpca", "mds"):
        places = SetEmbedding("hellinger", method=method).fit_transform(turned)
        radius = np.linalg.norm(places - places.mean(0), axis=1)
        assert radius.std() < 0.25 * radius.mean(), angles
    with pytest.raises(ValueError, match="kpca"):
        SetEmbedding("hellinger", method="mds").fit(turned).transform(turned)


def test_mean_embedding_approximates_the_mean_map():
    generator = np.random.default_rng(0)
    x = SampleSets.from_list([generator.normal(i, 1 + i, (n, 3)) for i, n in enumerate((5, 200, 1, 40))])
    vectors = MeanEmbedding(8000, sigma=2.0).fit_transform(x)
    exact = MeanMap(2.0).matrix(x, x).numpy()
    np.testing.assert_allclose(vectors @ vectors.T, exact, atol=0.05)
    alone = np.concatenate([MeanEmbedding(8000, sigma=2.0).fit(x).transform([one]) for one in x])
    np.testing.assert_allclose(alone, vectors, atol=1e-12)
    with pytest.warns(DuplicateWarning, match="coincide"):
        gram = SetKernel(psd="clip", k=3).fit_transform([generator.normal(size=(9, 2)).round(0) for _ in range(9)])
    assert SVC(kernel="precomputed").fit(gram, np.arange(9) % 2).n_features_in_ == 9


@pytest.mark.parametrize("name", ["kl", "renyi:0.8", "tsallis:0.5", "hellinger", "linear", "l2"])
def test_divergence_layer(name):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(19, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randn(13, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    n, m = torch.tensor([7, 12]), torch.tensor([5, 8])
    layer = DivergenceLayer(name, k=3)
    offsets = [torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]) for sizes in (n, m)]
    sets = [SampleSets(points.detach(), bounds) for points, bounds in zip((x, y), offsets, strict=True)]
    there = pairwise_divergences(sets[0], sets[1], [name], [3]).there[name, 3]
    among = pairwise_divergences(sets[0], None, [name], [3]).there[name, 3]
    torch.testing.assert_close(layer(x, n, y, m).detach(), there, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(layer(x, n).detach(), among, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(lambda a, b: layer(a, n, b, m), (x, y), atol=1e-5)
    (gradient,) = torch.autograd.grad(layer(x, n).sum(), x)
    assert bool(gradient.isfinite().all())


def test_mmd_layer():
    x = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    n = torch.tensor([4, 5])
    sets = SampleSets(x.detach(), torch.tensor([0, 4, 9]))
    layer = MMDLayer(0.8).double()
    torch.testing.assert_close(layer(x, n).detach(), MMD(0.8).squared(sets, sets), atol=1e-7, rtol=1e-6)
    (gradient,) = torch.autograd.grad(layer(x, n).sum(), x)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head": "gram", "landmarks": 8, "landmark_points": 12, "lr": 0.03},
        {"head": "gram", "divergence": "renyi:0.8", "landmarks": 8, "lr": 0.03},
    ],
)
def test_group_model_learns_rings(options):
    from lightning.pytorch import Trainer, seed_everything

    seed_everything(0, verbose=False)
    data = SyntheticGroups("ring", 300, 40, batch_size=16)
    model = GroupModel(data.schema, encoder=(16, 4), **options)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=6, accelerator="cpu", enable_model_summary=False, num_sanity_val_steps=0, **quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, data)
    assert float(trainer.callback_metrics["val_accuracy"]) > 0.9
    assert float(trainer.callback_metrics["val_ne"]) < 0.8


def test_a_history_as_a_distribution():
    kind = catalog().sequence_encoders.load("FourierMeanEmbedding")
    assert not list(sequence_encoder_problems(kind, {}))
    encoder = kind(4, 300, features=2000, spread=1.0).eval()
    steps = torch.randn(2, 300, 4)
    wide = torch.cat([steps[:1], 3 * steps[:1]])  # the same mean, three times the spread
    mask = torch.ones(2, 300, dtype=torch.bool)
    query = torch.zeros(2, 4)
    apart = encoder(wide - wide.mean(1, keepdim=True), query, mask).diff(dim=0).norm()
    alike = encoder(steps - steps.mean(1, keepdim=True), query, mask).diff(dim=0).norm()
    assert apart > 3 * alike
    order = torch.randperm(300)
    torch.testing.assert_close(encoder(steps[:, order], query, mask), encoder(steps, query, mask))


@pytest.fixture
def parquet(tmp_path):
    generator = np.random.default_rng(0)
    names = np.repeat([*"abcdefghi", "odd"], [30, 40, 25, *[30] * 7])
    points = generator.normal(size=(305, 2)) * np.where(names == "odd", 4, 1)[:, None]
    order = generator.permutation(305)
    table = pa.table({"who": names[order], "u": points[order, 0], "v": points[order, 1], "text": ["x"] * 305})
    pq.write_table(table, tmp_path / "points.parquet")
    return tmp_path / "points.parquet"


def test_gram_embed_and_detect(parquet, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("recloom_distkernels.options.LINE_SECONDS", 0)
    out = tmp_path / "gram.npz"
    argv = ["gram", str(parquet), "--group", "who", "--div", "kl,renyi:0.8", "--k", "3,5", "--output", str(out)]
    first = run_cli(argv)
    assert first.code == 0, first.err
    assert re.search(r"93,025 pairs of points, about .*\n.*divergences: 100%, about 0.0 s left", first.err, re.S)
    again = run_cli(argv)
    assert "from the cache" in again.err
    with np.load(out) as found:
        assert sorted(found["names"]) == [*"abcdefghi", "odd"]
        table = pq.read_table(parquet)
        sets = [
            np.stack([table.filter(pa.compute.equal(table["who"], name))[c].to_numpy() for c in "uv"], 1)
            for name in found["names"]
        ]
        exact = pairwise_divergences(SampleSets.from_list(sets), None, ["kl"], [5]).there["kl", 5]
        np.testing.assert_allclose(found["divergence/kl/k5"], exact, atol=1e-12)
        assert np.linalg.eigvalsh(found["gram/renyi:0.8/k3"]).min() > -1e-9
    assert not list((tmp_path / "cache").rglob("*.part"))
    (tmp_path / "cache/recloom/divergences").joinpath("x.npy").write_bytes(b"half")
    for path in (tmp_path / "cache/recloom/divergences").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:100])
    assert "pairs of points" in run_cli(argv).err  # a damaged cache is not taken
    vectors = tmp_path / "vectors.parquet"
    for method in ("fourier", "kpca", "mds", "sliced"):
        done = run_cli(["embed", str(parquet), "--group", "who", "--method", method, "--output", str(vectors)])
        assert done.code == 0, done.err
        assert sorted(pq.read_table(vectors)["name"].to_pylist()) == [*"abcdefghi", "odd"]
    for method in ("exact", "fourier"):
        scores = tmp_path / "scores.parquet"
        done = run_cli(["detect", str(parquet), "--group", "who", "--method", method, "--output", str(scores)])
        assert done.code == 0, done.err
        assert pq.read_table(scores)["name"][0].as_py() == "odd"


def test_cached_values_are_of_todays_code(tmp_path, monkeypatch):
    code = (
        "from recloom_distkernels.mmd import MeanMap\n\n\nclass Twice(MeanMap):\n"
        "    def matrix(self, x, y, progress=None):\n        return 2 * super().matrix(x, y, progress)\n"
    )
    (tmp_path / "twice_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    every = Catalog("mine")
    every.kernels.add("Twice", "twice_module:Twice")
    monkeypatch.setattr("recloom_distkernels.registry.catalog", lambda: every)
    sets, cache = SampleSets.from_list([np.zeros((3, 1)), np.ones((4, 1))]), DivergenceCache(tmp_path / "cache")
    cache.compute(sets, ["twice"], [3])
    assert cache.missing(sets, ["twice"], [3]) == []
    assert cache.missing(sets.slice(0, 1), ["twice"], [3]) == ["twice"]
    (tmp_path / "twice_module.py").write_text(code.replace("2 *", "3 *"))
    assert cache.missing(sets, ["twice"], [3]) == ["twice"]


def test_bad_input_of_the_commands(parquet, tmp_path):
    out = str(tmp_path / "out.npz")
    for argv, message in (
        ([str(tmp_path / "none.parquet")], "no such file"),
        ([str(parquet)], "no column 'group'"),
        ([str(parquet), "--group", "who", "--columns", "text"], "'text' is string"),
        ([str(parquet), "--group", "who", "--columns", "u,w"], "no column 'w'|cannot be read"),
        ([str(parquet), "--group", "who", "--k", "30"], "set 'c' has 25 points"),
        ([str(parquet), "--group", "who", "--min-points", "99"], "the largest has 40"),
        ([str(parquet), "--group", "who", "--div", "kll"], "kl"),
        ([str(parquet), "--group", "who", "--k", "x"], "--k x"),
        ([str(parquet), "--group", "who", "--kernel", "linear"], "takes similarities"),
    ):
        done = run_cli(["gram", *argv, "--output", out, "--cache", "none"])
        assert done.code == 2, (argv, done.err)
        assert any(part in done.err for part in message.split("|")), done.err
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    assert "cannot be read" in run_cli(["gram", str(tmp_path / "broken.parquet"), "--output", out]).err
    np.savez(tmp_path / "sets.npz", p=np.random.rand(9, 2), q=np.full((4, 2), np.nan))
    assert "set 'q', point 0" in run_cli(["gram", str(tmp_path / "sets.npz"), "--output", out]).err


def test_users_of_movielens(samples, tmp_path, monkeypatch):
    raw = samples / "ml-100k" / "ml-100k.inter"
    lines = raw.read_text().splitlines()[:8000]
    (tmp_path / "few.inter").write_text("\n".join(lines) + "\n")
    shards = tmp_path / "shards"
    done = run_cli(["prepare", "movielens", "--input", str(tmp_path / "few.inter"), "--output", str(shards)])
    assert done.code == 0, done.err
    out = tmp_path / "gram.npz"
    argv = ["gram", str(shards), "--min-points", "20", "--dim", "5", "--output", str(out), "--cache", "none"]
    done = run_cli(argv)
    assert done.code == 0, done.err
    taken = collections.defaultdict(set)
    for line in lines[1:]:
        user, item = line.split("\t")[:2]
        taken[user].add(item)
    wanted = {user for user, items in taken.items() if len(items) >= 20}
    with np.load(out) as found:
        assert set(found["names"]) == wanted
    page = (Path(__file__).parents[2] / "docs/papers/distkernels.md").read_text()
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "ml-100k.user" in block)
    (tmp_path / "ml-100k.user").write_text((samples / "ml-100k" / "ml-100k.user").read_text())
    monkeypatch.chdir(tmp_path)
    variables: dict = {}
    exec(example, variables)
    assert variables["women"].mean() == pytest.approx(0.3, abs=0.1)  # a hundred users: the AUC is all noise
    assert np.isfinite(variables["auc"]).all()
    # the framework's own vectors, a row an id
    count = json.loads((shards / "schema.json").read_text())["sparse"][1]["num_embeddings"]
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(count, 4)))
    done = run_cli([*argv, "--vectors", str(tmp_path / "vectors.npy")])
    assert "in 4 dimensions" in done.err
    np.save(tmp_path / "vectors.npy", np.zeros((3, 4)))
    assert f"{count:,} rows" in run_cli([*argv, "--vectors", str(tmp_path / "vectors.npy")]).err


def test_users_by_a_runs_embedding(tmp_path):
    events = np.random.default_rng(0).integers(0, 30, (600, 2)) % [20, 30]
    lines = [f"{user},{item},{time}" for time, (user, item) in enumerate(events)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,time", *lines]) + "\n")
    shards, run, out = (str(tmp_path / name) for name in ("shards", "run", "gram.npz"))
    done = run_cli(["prepare", "events", "--input", str(tmp_path / "log.csv"), "--output", shards, "--time", "time"])
    assert done.code == 0, done.err
    argv = ["--model=DLRM", "--model.embedding_dim=4", "--model.dense_arch=[]", "--data=ParquetClicks"]
    argv += [
        f"--data.path={shards}",
        "--data.batch_size=64",
        "--trainer.max_steps=3",
        "--trainer.accelerator=cpu",
        f"--run_dir={run}",
    ]
    done = run_cli(["fit", *argv, "--data.num_workers=0", "--trainer.enable_progress_bar=false"])
    assert done.code == 0, done.err
    argv = ["gram", shards, "--output", out, "--cache", "none", "--div", "mmd", "--vectors"]
    assert run_cli([*argv, run]).code == 0
    sets = read_groups(Path(shards), vectors=run).sets
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    rows = torch.cat([value for value in state.values() if value.ndim == 2 and value.shape[1] == 4])
    assert bool((sets.values[:, None] == rows).all(2).any(1).all())  # a user's points are rows of the trained table
    assert "no run with a checkpoint" in run_cli([*argv, shards]).err


def test_groups_by_config(parquet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    group = np.repeat(np.arange(40), 12)
    table = {"group": group, "label": (group % 2).astype(float), "x": generator.normal(size=480) * (1 + group % 2)}
    pq.write_table(pa.table(table), "groups.parquet")
    argv = ["--model=GroupModel", "--data=ParquetGroups", "--data.path=groups.parquet", "--trainer.accelerator=cpu"]
    done = run_cli(["fit", *argv, "--trainer.max_epochs=1", "--run_dir=run", "--trainer.enable_progress_bar=false"])
    assert done.code == 0, done.err
    done = run_cli(["predict", *argv, "--run_dir=run", "--ckpt_path=last"])
    assert done.code == 0, done.err
    assert len(next(iter((tmp_path).rglob("predictions.parquet"))).read_bytes()) > 0
    table["label"][0] = 7
    pq.write_table(pa.table(table), "groups.parquet")
    assert "different 'label'" in run_cli(["fit", *argv]).err


def test_the_experiment_and_the_benchmark(tmp_path, monkeypatch):
    sizes = {"regression": (40, 60), "digits": (60, 40), "ring": (40, 60), "many": (60, 20)}
    monkeypatch.setitem(experiments.SIZES, "small", sizes)
    monkeypatch.setattr("recloom_distkernels.machines.SCALES", (0.5, 1.0))
    monkeypatch.setattr("recloom_distkernels.machines.PENALTIES", (1.0, 64.0))
    monkeypatch.setattr("recloom_distkernels.baselines.PENALTIES", [10.0])
    monkeypatch.setattr("recloom_distkernels.baselines.LOGISTIC_PENALTIES", [0.1])
    monkeypatch.setattr("recloom_distkernels.baselines.SVR_WIDTHS", ["scale"])
    monkeypatch.setattr("recloom_distkernels.baselines.SVC_WIDTHS", ["scale"])
    monkeypatch.setattr(experiments, "DIVERGENCES", {"regression": ("kl",), "digits": ("renyi:0.8",)})
    done = run_cli(["reproduce", "distkernels", "--out", str(tmp_path / "out")])
    assert done.code == 0, done.err
    claims = {claim["id"]: claim for claim in json.loads((tmp_path / "out/claims.json").read_text())}
    expected = ["skewness", "entropy", "circle", "digits", "clip", "ring", "many"]
    assert list(claims) == expected
    assert claims["ring"]["measured"] > 0.8
    argv = ["--dims", "2", "--sets", "4", "--targets", "2", "--rounds", "1", "--threads", "1", "2"]
    assert bench([*argv, "--out", str(tmp_path / "b.json")]) == 0
    rows = json.loads((tmp_path / "b.json").read_text())
    contenders = {"recloom auto", "scikit-learn brute", "scikit-learn kd_tree"}
    assert {(row["contender"], row["threads"]) for row in rows} == set(itertools.product(contenders, (1, 2)))
    assert {row["speedup"] for row in rows if row["threads"] == 1} == {1}
    assert functools.reduce(min, (row["ns_per_pair"] for row in rows)) > 0
