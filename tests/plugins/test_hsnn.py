"""MoNN, the nodes and their search, against plain loops; the command line; files without the training code."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from recloom import checkpoint
from recloom.cli import quiet
from recloom.data.retrieval import RetrievalClicks
from recloom.plugins import catalog
from recloom.retrieval.build import build
from recloom.retrieval.cascade import combine
from recloom.retrieval.exhaustive import Exhaustive
from recloom.retrieval.index import Filter
from recloom.retrieval.module import encode
from recloom.retrieval.rows import Rows
from recloom.testing import check_plugin, run_cli
from recloom_hsnn.callbacks import CollapseMonitor, IndexRefresh
from recloom_hsnn.model import HSNN
from recloom_hsnn.monn import MoNN
from recloom_hsnn.nodes import HierarchicalIndex
from recloom_hsnn.retrieval import HSNNIndex
from recloom_hsnn.scorer import MoNNConfig
from recloom_hsnn.settings import NodesConfig
from recloom_hsnn.two_tower import TwoTower

ITEMS = ["item", "tags"]


def world(**options) -> RetrievalClicks:
    sizes = {"num_train": 8192, "num_val": 1024, "num_items": 1500, "num_users": 200, "groups": 4, "topics": 4}
    return RetrievalClicks(**{**sizes, "width": 8, "batch_size": 512, **options})


def trained(model: pl.LightningModule, data: RetrievalClicks, *callbacks, **options) -> pl.Trainer:
    quiet.hush()
    quiet_ = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {"max_epochs": 1, "enable_checkpointing": False, "num_sanity_val_steps": 0, **options}
    trainer = pl.Trainer(callbacks=list(callbacks), **quiet_, **options)
    trainer.fit(model, data)
    return trainer


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


def began(config: NodesConfig, data: RetrievalClicks, **options) -> HSNN:
    """A model with random weights whose nodes have begun."""
    torch.manual_seed(1)
    model = HSNN(data.schema, nodes=config, **options).eval()
    model._remember(torch.from_numpy(encode(model.item_encoder, data.item_rows())))
    model._begin()
    with torch.no_grad():
        model.ensemble += 0.3 * torch.rand_like(model.ensemble)
        for scorer in model.level_scorers:
            for parameter in scorer.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    return model


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


def test_soft_assignment_and_residual_levels_are_algorithm_1() -> None:
    torch.manual_seed(3)
    index = HierarchicalIndex(NodesConfig(sizes=[3, 4], layout="residual"), 5)
    vectors = torch.randn(6, 5)
    assigned = index.assign(vectors, alpha=2.0)
    for row in range(6):
        rest, total, hard = vectors[row], torch.zeros(5), torch.zeros(5)
        for level, words in enumerate(index.levels):
            distances = torch.stack([torch.linalg.norm(rest - word) for word in words])
            weights = torch.exp(-2.0 * distances) / torch.exp(-2.0 * distances).sum()
            mean = sum(w * word for w, word in zip(weights, words, strict=True))
            hard = hard + words[distances.argmin()]
            total, rest = total + mean, rest - mean
            torch.testing.assert_close(assigned[level].soft[row], total)
            torch.testing.assert_close(assigned[level].hard[row], hard)
            torch.testing.assert_close(assigned[level].weights[row], weights)
    # balance: K times the sum of squared mean assignments over the stacked batches, both levels
    past = [one.weights.mean(0) for one in assigned]
    index.losses(vectors, assigned)
    other = index.assign(torch.randn(6, 5), alpha=2.0)
    found = index.losses(vectors, other).parts["balance"]
    means = [(old + one.weights.mean(0)) / 2 for old, one in zip(past, other, strict=True)]
    torch.testing.assert_close(found, 0.05 * sum(len(mean) * (mean**2).sum() for mean in means))


def test_joint_training_uses_its_nodes_and_a_run_made_to_collapse_is_stopped() -> None:
    data = world(num_train=40_960)
    pl.seed_everything(0, verbose=False)
    model = HSNN(data.schema, nodes=NodesConfig(sizes=[4, 16], start=0.4, decay=0.9))
    monitor = CollapseMonitor(every_n_steps=20)
    trainer = trained(model, data, monitor)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert monitor.alarms == []
    assert metrics["val_node2_used"] > 0.95
    assert metrics["val_node2_perplexity"] > 0.7
    assert metrics["val_node2_ne"] < 0.99
    pl.seed_everything(0, verbose=False)
    broken = NodesConfig(sizes=[64], balance=0.0, revive=0.0, commitment=None, grad_scale=1.0, start=0.1, max_alpha=5.0)
    model = HSNN(data.schema, nodes=broken)
    model.index.begin = lambda vectors, seed=0: None  # random nodes instead of k-means
    monitor = CollapseMonitor(every_n_steps=10, action="stop")
    trainer = trained(model, data, monitor)
    assert "nodes collapse" in monitor.alarms[0]
    assert trainer.global_step < 80


def test_a_resumed_run_equals_one_that_was_never_stopped(tmp_path: Path) -> None:
    data = world(num_train=4096)
    config = NodesConfig(sizes=[4, 16], start=0.3)
    runs = []
    for stop in (None, 2, 5):  # before the nodes begin, and after
        pl.seed_everything(3, verbose=False)
        model = HSNN(data.schema, nodes=dataclasses.replace(config))
        if stop is None:
            trained(model, data, max_steps=8, max_epochs=-1)
        else:
            first = trained(model, data, _Stop(stop, tmp_path / "half.ckpt"), max_steps=8, max_epochs=-1)
            assert first.global_step == stop
            model = HSNN(data.schema, nodes=dataclasses.replace(config))
            trainer = pl.Trainer(
                max_steps=8, max_epochs=-1, logger=False, enable_checkpointing=False, accelerator="cpu"
            )
            trainer.fit(model, world(num_train=4096), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
        runs.append({name: value.clone() for name, value in model.state_dict().items() if "evaluation" not in name})
    for other in runs[1:]:
        for name, value in runs[0].items():
            torch.testing.assert_close(other[name], value, msg=name)


class _Stop(pl.Callback):
    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def test_nodes_given_by_features_and_moving_averages(tmp_path: Path) -> None:
    data = world()
    natural = NodesConfig(sizes=[30], source="natural", features=["item_attribute"], start=0.0)
    model = HSNN(data.schema, nodes=natural)
    trained(model, data)
    index = HSNNIndex(model.eval().parts())
    items = data.item_rows()
    index.build(items.ids.numpy(), encode(model.item_encoder, items))
    attribute = items.batch.sparse_features["item_attribute"][0].numpy()
    assert np.array_equal(index.lists.nodes_of(items.ids.numpy()), attribute)
    moving = HSNN(data.schema, nodes=NodesConfig(sizes=[16], source="ema", start=0.2, decay=0.9))
    refresh = IndexRefresh(every_n_steps=6, folder=str(tmp_path / "live"))
    trained(moving, data, refresh)
    assert refresh.index is not None
    assert len(refresh.index) == 1500
    assert 0 <= refresh.moved[-1] < 1
    assert moving.index.config.source == "ema"
    assert (tmp_path / "live" / "CURRENT").read_text().strip() == f"{len(refresh.moved) + 1:06d}"


def test_several_tasks_have_one_score() -> None:
    from recloom.features import FeatureSchema

    data = world()
    schema = dataclasses.replace(FeatureSchema.from_dict(data.schema), labels=("click", "buy"))
    model = MoNN(schema.to_dict(), task_weights=[0.25, 0.75], loss_weights=[1.0, 2.0]).eval()
    users = torch.from_numpy(encode(model.user_encoder, data.user_rows(2)))
    items = torch.from_numpy(encode(model.item_encoder, data.item_rows().slice(0, 2)))
    with torch.no_grad():
        logits = model.rows(users, items)
        scores = model.scorers()["score"](users, items[:, None])
    torch.testing.assert_close(scores[:, 0], logits @ torch.tensor([0.25, 0.75]))
    batch = dataclasses.replace(next(iter(data.val_dataloader())).rows(0, 2), labels=torch.tensor([[1.0, 0], [0, 0]]))
    one = [torch.nn.functional.binary_cross_entropy_with_logits(logits[:, t], batch.labels[:, t]) for t in (0, 1)]
    torch.testing.assert_close(model.loss(logits, batch), one[0] + 2 * one[1])


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
