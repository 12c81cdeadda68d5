"""How nodes are learned, watched and judged while a model trains, against plain loops and sums."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hsnn_worlds import began, trained, world
from torch.nn.functional import binary_cross_entropy_with_logits

from recloom.retrieval.evaluation import RetrievalEval
from recloom.retrieval.module import encode
from recloom.sequence import AuxiliaryLoss
from recloom_hsnn.callbacks import CollapseMonitor, IndexRefresh
from recloom_hsnn.losses import node_losses
from recloom_hsnn.model import HSNN
from recloom_hsnn.monn import MoNN
from recloom_hsnn.nodes import HierarchicalIndex, usage
from recloom_hsnn.retrieval import HSNNIndex
from recloom_hsnn.scorer import MoNNConfig
from recloom_hsnn.settings import NodesConfig
from recloom_hsnn.towers import Tower


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
    model = HSNN(data.schema, nodes=NodesConfig(sizes=[4, 16], decay=0.9))
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


def test_a_towers_sizes_are_table_5s() -> None:
    sizes = {name: MoNNConfig(size=name).sizes() for name in ("small", "medium", "large", "xl")}
    found = {name: (one.user, one.item, one.pair, one.dim) for name, one in sizes.items()}
    assert found == {"small": (8, 1, 1, 40), "medium": (10, 4, 1, 48), "large": (30, 8, 1, 48), "xl": (80, 4, 1, 96)}


def batch_of(model: HSNN, rows: int = 64) -> tuple:
    """A batch with the codes of its users and items; the items' have gradients."""
    batch = next(iter(world().val_dataloader())).rows(0, rows)
    model.trainer = SimpleNamespace(global_step=6)  # what `distill` shifts users by
    with torch.no_grad():
        users, items = model.codes(batch)
    return batch, users, items.requires_grad_()


@pytest.mark.parametrize("fidelity", ["safe", "v3"])
def test_losses_of_both_presets_are_those_written_here(fidelity: str) -> None:
    """Each part's value and its gradient to the items' codes; v3: one reconstruction term, whole gradients."""
    config = NodesConfig(sizes=[4, 9], max_alpha=6.0, exponent=2.0, commitment=0.3, grad_scale=0.2, distill=0.7)
    model = began(config, world(), fidelity=fidelity)
    batch, users, items = batch_of(model)
    parts, _ = node_losses(model, users, items, batch, progress=0.5)
    alpha = 6.0 * 0.5**2  # equation 8
    soft = [torch.softmax(-alpha * torch.cdist(items, nodes), dim=1) @ nodes for nodes in model.index.levels]
    logits: list[torch.Tensor] = []
    shift, loss = 1 + 6 % 63, binary_cross_entropy_with_logits
    taught = model.scorer(users.roll(shift, 0), items).detach().sigmoid()
    other: list[torch.Tensor] = []
    for level, (scorer, nodes) in enumerate(zip(model.level_scorers, soft, strict=True)):
        own, before, bias = model.ensemble[level]
        for found, asked in ((logits, users), (other, users.roll(shift, 0))):
            above = found[-1] if found else 0.0
            found.append(own * scorer(asked, nodes) + before * above + bias if level else scorer(asked, nodes))
    wanted = {f"node{n + 1}_loss": loss(found[:, 0], batch.labels) for n, found in enumerate(logits)}
    wanted["distill_loss"] = 0.7 * sum(loss(found, taught) for found in other)
    wanted["reconstruction"] = sum(((near - items) ** 2).sum(1).mean() for near in soft)
    if fidelity == "safe":
        wanted["commitment"] = 0.3 * sum(((near.detach() - items) ** 2).sum(1).mean() for near in soft)
        wanted["reconstruction"] = sum(((near - items.detach()) ** 2).sum(1).mean() for near in soft)
    scale = 1.0 if fidelity == "v3" else 0.2
    assert set(parts) == {*wanted, "balance"}  # whose value test_soft_assignment... holds
    for name, value in wanted.items():
        torch.testing.assert_close(parts[name], value, atol=1e-6, rtol=1e-5)
        got, own = (torch.autograd.grad(each, items, retain_graph=True)[0] for each in (parts[name], value))
        torch.testing.assert_close(got, scale * own, atol=1e-7, rtol=1e-4)


class _Taxed(Tower):
    """A tower one part of which has a loss of its own, as DIEN's has."""

    def __init__(self, schema: dict) -> None:
        super().__init__(schema)
        self.tax = AuxiliaryLoss()
        self.tax.rate = torch.nn.Parameter(torch.ones(()))

    def forward(self, *inputs) -> torch.Tensor:
        if self.training:
            self.tax.auxiliary_loss = 3 * self.tax.rate
        return super().forward(*inputs)


def test_a_towers_own_losses_are_among_the_models() -> None:
    """Before the nodes begin and after."""
    data = world(num_train=2048)
    pl.seed_everything(0, verbose=False)
    model = HSNN(data.schema, nodes=NodesConfig(sizes=[4], start=0.5), user_tower=_Taxed)
    tax, rates = model.user_encoder.tower.tax, []
    trained(model, data, _Steps(lambda trainer: rates.append(float(tax.rate.detach()))))
    assert model.index.ready
    assert 1 > rates[0] > rates[1] > rates[2] > rates[3]
    assert tax.auxiliary_loss is None


def test_v3_is_joint_from_the_first_step_and_revives_nothing() -> None:
    data = world(num_train=1024)
    model = HSNN(data.schema, nodes=NodesConfig(sizes=[8], warmup=0.5), fidelity="v3")
    losses: list[set[str]] = []
    trained(model, data, _Steps(lambda trainer: losses.append({*trainer.callback_metrics})), max_steps=2)
    assert model.index.ready
    assert {"train_node1_loss", "train_reconstruction", "train_balance"} <= losses[0]
    assert not any("commitment" in name for name in losses[0])
    assert model.ensemble_items
    assert model.ensemble.requires_grad
    revived = {}
    for fidelity in ("safe", "v3"):
        model = began(NodesConfig(sizes=[8], decay=0.8), data, fidelity=fidelity)
        vectors = model.index.levels[0][:1].detach().repeat(32, 1)  # all items are at node 0
        before = model.index.levels[0].detach().clone()
        for _ in range(30):
            model.index.observe(vectors, model.index.assign(vectors, 5.0))
        revived[fidelity] = int(model.index.revived)
        unmoved = torch.equal(before, model.index.levels[0])
        assert unmoved == (fidelity == "v3")
        if fidelity == "safe":
            assert torch.equal(model.index.levels[0][1:], vectors[1:8])
    assert revived == {"safe": 14, "v3": 0}  # the 7 others, once and once again after their time of grace


class _Steps(pl.Callback):
    def __init__(self, note) -> None:
        self.note = note

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.note(trainer)


def test_the_weight_of_the_nodes_losses_warms_up_linearly() -> None:
    model = HSNN(world().schema, nodes=NodesConfig(sizes=[8], start=0.5, warmup=0.2))
    found = [model.index_weight(progress) for progress in (0.5, 0.55, 0.6, 0.7, 1.0)]
    assert found == pytest.approx([0.01, 0.26, 0.51, 1.0, 1.0])


def test_use_of_nodes_in_numbers() -> None:
    found = usage(torch.tensor([6, 2, 0, 0]))
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    wanted = {"used": 0.5, "perplexity": np.exp(entropy) / 4, "largest": 3.0, "imbalance": 4 * (0.75**2 + 0.25**2)}
    assert found == pytest.approx(wanted)


def test_retrieval_eval_logs_what_a_hand_computation_finds() -> None:
    """Every pair scored alone; the best sorted by hand; cold and tail items counted from the training rows' draws."""
    data = world(num_train=1024, num_items=700)
    model = HSNN(data.schema, nodes=NodesConfig(sizes=[4, 16], start=0.2))
    watch = RetrievalEval(shares=(0.1, 0.25), k=20, users=6, tail=0.25)
    trainer = trained(model, data, watch)
    logged = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val_recall")}
    model.eval()
    items = data.item_rows()
    codes = torch.from_numpy(encode(model.item_encoder, items))
    users = torch.from_numpy(encode(model.user_encoder, data.user_rows(6)))
    counts = {item: 0 for item in range(700)}
    known = {row.tobytes(): item for item, row in enumerate(items.batch.dense_features.numpy())}
    dense = [[f.name for f in model.schema.dense].index(f.name) for f in model.sides.schemas[1].dense]
    for block in range(len(data.source("train").block_rows(0))):
        for row in data.source("train").load(0, block).dense_features[:, dense].numpy():
            counts[known[row.tobytes()]] += 1
    shown = sorted((item for item in counts if counts[item]), key=lambda item: (counts[item], item))
    groups = {"cold": {item for item in counts if not counts[item]}, "tail": set(shown[: len(shown) // 4])}
    assert min(len(groups["cold"]), len(groups["tail"])) > 50
    wanted = {}
    for share in (0.1, 0.25):
        index = HSNNIndex(model.parts(), share=share)
        index.build(items.ids.numpy(), codes.numpy())
        recalls, hits, there = [], dict.fromkeys(groups, 0), dict.fromkeys(groups, 0)
        for user in users:
            with torch.no_grad():
                scores = model.rows(user.expand(700, -1), codes).tolist()
            best = set(sorted(range(700), key=lambda item: -scores[item])[:20])
            found = set(index.search(user[None].numpy(), 20).ids[0].tolist())
            recalls.append(len(best & found) / 20)
            for name, group in groups.items():
                hits[name] += len(best & found & group)
                there[name] += len(best & group)
        wanted[f"val_recall_{share:g}"] = sum(recalls) / 6
        wanted |= {f"val_recall_{share:g}_{name}": hits[name] / there[name] for name in groups if there[name]}
    assert len(wanted) == 6
    assert logged == pytest.approx(wanted)
    assert logged["val_recall_0.1"] < 1


def test_streaming_nodes_move_to_the_items_that_come() -> None:
    """The step is the new items' share of what the node has been used for, as in a mean over a decaying past."""
    index = HierarchicalIndex(NodesConfig(sizes=[2], source="ema", decay=0.9, revive=0.0), 3)
    before = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    with torch.no_grad():
        index.levels[0].copy_(before)
    vectors = torch.tensor([[0.9, 0.1, 0], [0.8, 0, 0.2], [1, 0.3, 0], [0, 0.7, 0.1]])
    index.observe(vectors, index.assign(vectors, 5.0))
    for node, items in ((0, vectors[:3]), (1, vectors[3:])):
        use = 0.9 * 0.5 + 0.1 * len(items) / 4
        assert float(index.use0[node]) == pytest.approx(use)
        step = 0.1 * len(items) / (4 * use)
        torch.testing.assert_close(index.levels[0][node].data, (1 - step) * before[node] + step * items.mean(0))


def test_the_monitor_measures_moves_the_gap_and_the_error() -> None:
    model = began(NodesConfig(sizes=[12], max_alpha=4.0), world())
    monitor, nodes = CollapseMonitor(), model.index.levels[0]
    first = monitor.measure(model)
    vectors = model.recent.known()
    distances = torch.cdist(vectors, nodes.data)
    soft = torch.softmax(-4.0 * distances, dim=1) @ nodes.data
    assert first["1_gap"] == pytest.approx(float((soft - nodes.data[distances.argmin(1)]).norm(dim=1).mean()))
    assert first["1_used"] == 1
    assert first["1_error"] < 1.2  # the nodes are by k-means
    assert "1_moved" not in first
    with torch.no_grad():
        nodes[3] = 100.0  # out of everybody's reach
    second = monitor.measure(model)
    assert second["1_moved"] == pytest.approx(float((distances.argmin(1) == 3).double().mean()))
    assert second["1_used"] == pytest.approx(11 / 12)
    assert second["1_error"] > first["1_error"]
    assert monitor.problems(second) == ["level 1: used is 0.917, the bound is 0.95"]
