"""MoNN, the nodes and their search, against plain loops; the command line; files without the training code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hsnn_worlds import began, trained, world

from recloom import checkpoint
from recloom.plugins import catalog
from recloom.retrieval.build import build
from recloom.retrieval.cascade import combine
from recloom.retrieval.exhaustive import Exhaustive
from recloom.retrieval.index import Filter
from recloom.retrieval.module import encode
from recloom.retrieval.rows import Rows
from recloom.testing import check_plugin, run_cli
from recloom_hsnn.lists import NodeLists
from recloom_hsnn.model import HSNN
from recloom_hsnn.monn import MoNN
from recloom_hsnn.retrieval import HSNNIndex
from recloom_hsnn.scorer import MoNNConfig
from recloom_hsnn.settings import NodesConfig
from recloom_hsnn.two_tower import TwoTower

ITEMS = ["item", "tags"]


def test_plugin() -> None:
    options = {"item_features": ITEMS}
    check_plugin("hsnn", {"HSNN": options, "MoNN": options, "TwoTower": options})


@pytest.mark.parametrize("size", ["tiny", "small", "medium"])
@pytest.mark.parametrize("interaction", [False, True])
def test_many_items_of_a_user_score_as_single_rows(size: str, interaction: bool) -> None:
    """What is made once a request, and the first layer split over it, changes nothing."""
    from recloom_dcn.cross import CrossNet

    torch.manual_seed(0)
    config = MoNNConfig(size=size, interaction=CrossNet if interaction else None)
    model = MoNN(world().schema, monn=config).eval()
    data = world()
    users = torch.from_numpy(encode(model.user_encoder, data.user_rows(3)))
    items = torch.from_numpy(encode(model.item_encoder, data.item_rows())[:15].reshape(3, 5, -1))
    with torch.no_grad():
        many = model.scorers()["score"](users, items)
        rows = model.rows(users.repeat_interleave(5, 0), items.flatten(0, 1)).view(3, 5)
    torch.testing.assert_close(many, rows, atol=1e-5, rtol=1e-4)


LEVELS = {
    "1": NodesConfig(sizes=[40]),
    "2": NodesConfig(sizes=[6, 40]),
    "3": NodesConfig(sizes=[4, 12, 40]),
    "residual": NodesConfig(sizes=[6, 7], layout="residual"),
}


@pytest.mark.parametrize("levels", LEVELS)
def test_search_is_the_papers_algorithm_2(levels: str) -> None:
    """Level by level, node by node, as loops."""
    data = world()
    model = began(LEVELS[levels], data)
    index = HSNNIndex(model.parts(), share=0.1, beam=0.5, rated=0.0)
    ids, codes = data.item_rows().ids.numpy(), encode(model.item_encoder, data.item_rows())
    index.build(ids, codes)
    users = encode(model.user_encoder, data.user_rows(4))
    tree, leaf_of = index.tree, index.tree.leaf_of(codes)
    score = {name: lambda u, v, s=s: float(s(u[None], v[None, None])) for name, s in model.scorers().items()}
    ensemble = model.facts()["ensemble"]
    for row in range(4):
        user = torch.from_numpy(users[row])
        found = index.search(users[row : row + 1], 10)
        kept, seen = {None: 0.0}, 0
        for level, nodes in enumerate(tree.nodes):
            scores = {}
            for node in range(len(nodes)):
                parent = int(tree.parents[level - 1][node]) if level else None
                if parent in kept:
                    seen += 1
                    own = score[f"node{level + 1}"](user, torch.from_numpy(nodes[node]))
                    weight, before, bias = ensemble[level] if level else (1.0, 0.0, 0.0)
                    scores[node] = weight * own + before * kept[parent] + bias
            alive = {n: s for n, s in scores.items() if (tree.above(level)[leaf_of] == n).any()}
            count = len(nodes) if level == tree.levels - 1 else int(np.ceil(0.5 * len(nodes)))
            kept = dict(sorted(alive.items(), key=lambda pair: -pair[1])[:count])
        wanted = {}
        for leaf in kept:
            for item in np.flatnonzero(leaf_of == leaf):
                if len(wanted) < int(found.scored[0]) - seen or len(wanted) < 10:
                    wanted[int(ids[item])] = score["score"](user, torch.from_numpy(codes[item]))
        best = sorted(wanted, key=lambda item: -wanted[item])[:10]
        with torch.no_grad():
            assert found.scored[0] <= 150
            assert set(found.ids[0].tolist()) == set(best)


def test_folders_serve_without_the_training_code(tmp_path: Path) -> None:
    """HSNN with three levels, and a cascade: what another process finds, with filters too, is what memory finds."""
    data = world(num_items=600)
    model, first = began(LEVELS["3"], data), TwoTower(data.schema, dim=6).eval()
    users, items = data.user_rows(5), data.item_rows()
    asked, codes = encode(model.user_encoder, users), encode(model.item_encoder, items)
    sides = [encode(first.user_encoder, users), encode(first.item_encoder, items)]
    both = [np.concatenate(pair, axis=1) for pair in zip(sides, (asked, codes), strict=True)]
    wanted = []
    for kind, parts, own, options in (
        ("HSNN", model.parts(), (asked, codes), {"share": 0.2}),
        ("Cascade", combine(first.parts(), model.parts()), both, {"candidates": 200}),
    ):
        made = build(tmp_path / kind, model, items, kind, options, first if kind == "Cascade" else None, users)
        memory = catalog().indexes.load(kind)(parts, **options)
        memory.build(items.ids.numpy(), own[1])
        banned = Filter(banned=np.arange(0, 600, 2))
        wanted += [memory.search(own[0], 100).ids, memory.search(own[0], 100, banned).ids]
        assert np.array_equal(made.search(users, 100).ids, wanted[-2])
    script = f"""
import sys, json, numpy as np
from pathlib import Path
from recloom.retrieval.index import Filter
from recloom.retrieval.retriever import Retriever
ids = []
for kind in ("HSNN", "Cascade"):
    path = Path({str(tmp_path)!r}) / kind
    found = Retriever.load(path)
    users = found.read_users(path / "example_users.parquet")
    ids += [found.search(users, 100).ids, found.search(users, 100, Filter(banned=np.arange(0, 600, 2))).ids]
modules = [name for name in ("lightning", "recloom_hsnn.model", "recloom_hsnn.scorer") if name in sys.modules]
print(json.dumps([modules, [each.tolist() for each in ids]]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    modules, ids = json.loads(done.stdout.splitlines()[-1])
    assert modules == []
    assert np.array_equal(ids, wanted)


@pytest.mark.parametrize("size", ["tiny", "medium"])
def test_slopes_are_the_scores_gradients(size: str) -> None:
    """The layers written backwards, the interaction tower's included, against autograd."""
    data = world()
    model = began(NodesConfig(sizes=[8]), data, monn=MoNNConfig(size=size, hidden=(32, 16, 8)))
    users = torch.from_numpy(encode(model.user_encoder, data.user_rows(3)))
    items = torch.from_numpy(encode(model.item_encoder, data.item_rows())[:12]).reshape(3, 4, -1).requires_grad_()
    scores = model.scorers()["score"](users, items)
    found = model.scorers()["slope"](users, items)
    torch.testing.assert_close(found[..., 0], scores, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[..., 1:], torch.autograd.grad(scores.sum(), items)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("native", [True, False])
def test_items_of_the_best_leaves_are_scored_in_the_order_of_their_leafs_tangent(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr("recloom_hsnn.lists._library", lambda: None)
    data = world()
    model = began(NodesConfig(sizes=[40]), data)
    ids, codes = data.item_rows().ids.numpy(), encode(model.item_encoder, data.item_rows())
    index = HSNNIndex(model.parts(), share=0.1, rated=0.2)
    index.build(ids, codes)
    users, banned = encode(model.user_encoder, data.user_rows(3)), np.arange(0, 1500, 3)
    found = index.search(users, 10, Filter(banned=banned))
    nodes, score = torch.from_numpy(index.tree.nodes[0]), model.scorers()["score"]
    leaf_of = index.tree.leaf_of(codes)
    assert (found.scored == 150).all()  # 40 nodes, 8 gradients that count double, 94 items
    for row, user in enumerate(torch.from_numpy(users)):
        with torch.no_grad():
            best = model.scorers()["node1"](user[None], nodes[None])[0].topk(8).indices.tolist()
        at = nodes[best].clone().requires_grad_()
        values = score(user[None], at[None])[0]
        slopes = torch.autograd.grad(values.sum(), at)[0].numpy()
        rates = {
            item: float(values[place]) + float(slopes[place] @ (codes[item] - at[place].detach().numpy()))
            for place, leaf in enumerate(best)
            for item in np.flatnonzero(leaf_of == leaf).tolist()
            if item % 3
        }
        first = torch.tensor(sorted(rates, key=lambda item: -rates[item])[:94])
        with torch.no_grad():
            wanted = first[score(user[None], torch.from_numpy(codes)[first][None])[0].topk(10).indices]
        assert found.ids[row].tolist() == wanted.tolist()


def test_from_fit_to_search_on_the_command_line(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--data.num_train=6144", "--data.num_val=512", "--data.num_items=900", "--data.batch_size=512"]
    fit = ["--trainer.enable_progress_bar=false", "--trainer.max_epochs=1", "--model.nodes.sizes=[4,16]"]
    config = str(root / "configs" / "hsnn" / "synthetic.yaml")
    path, run = Path("runs/hsnn-synthetic/index"), "runs/hsnn-synthetic"
    for argv in (
        ["fit", "--config", config, *small, *fit],
        ["index", "build", "--run", run, "--set", "share=0.2"],
        ["index", "search", "--path", str(path), "--k", "4", "--out", "found.parquet"],
    ):
        done = run_cli(argv)
        assert done.code == 0, done.err
    assert "5 users, 20 items" in done.out
    first = pq.read_table("found.parquet")["item"].to_pylist()[0]
    assert "1 removed; 899 items" in run_cli(["index", "delete", "--path", str(path), "--ids", f"{first},12345"]).out
    run_cli(["index", "search", "--path", str(path), "--k", "899", "--out", "found.parquet"])
    assert first not in pq.read_table("found.parquet")["item"].to_pylist()
    done = run_cli(["index", "upsert", "--path", str(path), "--items", str(path / "example_items.parquet")])
    assert "5 replaced; 899 items" in done.out or "1 added, 4 replaced; 900 items" in done.out
    stats = json.loads(run_cli(["index", "stats", "--path", str(path)]).out)
    assert (stats["nodes"], stats["options"]) == ([4, 16], {"share": 0.2})
    for argv, text in (
        (["index", "stats", "--path", "nowhere"], "there is no index here"),
        (["index", "build", "--run", run], "exists already"),
        (["index", "build", "--run", run, "--first", run, "--index", "Cascade", "--out", "x"], "must score by inner"),
    ):
        done = run_cli(argv)
        assert done.code == 2
        assert text in done.err
    state = checkpoint.read(f"{run}/checkpoints/last.ckpt")
    assert bool(state["state_dict"]["index.begun"])


@pytest.mark.parametrize("native", [True, False])
def test_the_best_of_rates_are_those_of_a_sort(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr("recloom_hsnn.lists._library", lambda: None)
    draw, lists = np.random.default_rng(4), NodeLists(2, 3)
    for room, count in ((1, 1), (40, 7), (3000, 300), (9, 20)):
        rates = draw.normal(size=(5, room)).astype(np.float32) * np.float32([[1e-3], [1], [1e6], [1e-38], [5]])
        rates[1] = 2.0
        rates[4, draw.random(room) < 0.9] = -np.inf
        found = lists.best(torch.from_numpy(rates), count)
        for row, places in zip(rates, found, strict=True):
            got, there = places[places >= 0], int((row > -np.inf).sum())
            assert len(got) == min(count, there)
            assert (np.diff(got) > 0).all()
            assert np.array_equal(np.sort(row[got])[::-1], np.sort(row)[::-1][: len(got)])


def test_ratings_become_an_index_on_the_command_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log of events in MovieLens's layout: items of the log, users with histories, recall in training."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    rows = [
        f"{user}\t{film}\t{draw.integers(1, 6)}\t{880_000_000 + 60 * place}"
        for user in range(1, 41)
        for place, film in enumerate(draw.choice(90, 30, replace=False) + 1)
    ]
    Path("u.data").write_text("\n".join(rows) + "\n")
    config = str(root / "configs" / "hsnn" / "movielens.yaml")
    small = ["--data.path=build/ml", "--data.batch_size=256", "--data.num_workers=0", "--model.nodes.sizes=[8]"]
    small += ["--trainer.enable_progress_bar=false", "--trainer.max_epochs=1"]
    run, path = "runs/hsnn-movielens", "runs/hsnn-movielens/index"
    split = ["--split", "time:0.8,0.1,0.1", "--history", "5"]
    for argv in (
        ["prepare", "movielens", "--input", "u.data", "--output", "build/ml", *split],
        ["fit", "--config", config, *small],
        ["index", "build", "--run", run, "--set", "share=0.3"],
        ["index", "search", "--path", path, "--k", "7", "--exclude", "3,4", "--out", "found.parquet"],
    ):
        done = run_cli(argv)
        assert done.code == 0, done.err
    found = pq.read_table("found.parquet").to_pydict()
    assert len(found["item"]) == 7 * len(set(found["user"]))
    assert not {3, 4} & set(found["item"])
    assert "1 removed; 89 items" in run_cli(["index", "delete", "--path", path, "--ids", "5"]).out
    assert json.loads(run_cli(["index", "stats", "--path", path]).out)["nodes"] == [8]
    metrics = [line.split(",") for line in next(Path(run).rglob("metrics.csv")).read_text().splitlines()]
    recalls = [row[metrics[0].index("val_recall_0.25")] for row in metrics[1:]]
    assert 0 < float(next(filter(None, recalls))) <= 1


def test_a_users_interests_begin_apart_and_in_one_space() -> None:
    """An embedding is of one interest; the same vector as another interest gives another embedding the same values."""
    torch.manual_seed(0)
    model = MoNN(world().schema, monn=MoNNConfig(size="medium"))
    tower, names = model.user_encoder.tower, list(model.user_encoder.schema.vectors.values())
    weights = tower.join.weight.detach()
    for embedding in range(10):
        parts = [weights[48 * embedding : 48 * (embedding + 1), columns] for columns in names]
        own = parts.pop(embedding % 3)
        assert own.norm() > 5 * max(other.norm() for other in parts)
        first = weights[:48, names[0]]
        assert torch.nn.functional.cosine_similarity(own, first, dim=1).min() > 0.9
    item = model.item_encoder.tower.join.weight.detach()[: 4 * 48, model.item_encoder.schema.vectors["content"]]
    alike = torch.corrcoef(item.view(4, -1)) - torch.eye(4)
    assert alike.abs().max() < 0.3


def test_any_model_is_a_tower() -> None:
    """A model of another plugin, built for the item's side, makes the item's embeddings."""
    from recloom_dlrm.model import DLRM

    data = world(num_train=1024)
    model = HSNN(data.schema, nodes=NodesConfig(sizes=[8], start=0.2), item_tower=DLRM)
    trained(model, data)
    exact, index = Exhaustive(model.eval().parts()), HSNNIndex(model.parts(), share=1.0)
    ids, codes = data.item_rows().ids.numpy(), encode(model.item_encoder, data.item_rows())
    exact.build(ids, codes)
    index.build(ids, codes)
    users = encode(model.user_encoder, data.user_rows(3))
    found = index.search(users, 20)
    assert np.isin(found.ids, exact.search(users, 30).ids).all()
    two = TwoTower(data.schema)
    assert two.parts().inner_product
    assert isinstance(data.item_rows(), Rows)
