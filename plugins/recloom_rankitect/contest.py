"""Searches under one budget of training samples, and models trained on the same rows: what the experiment measures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recloom.cli import mention
from recloom.features import FeatureSchema
from recloom.loading import instantiate_model
from recloom.model import RankingModule
from recloom.plugins import catalog
from recloom.search.evaluators.scratch import FromScratch
from recloom.search.evaluators.supernet import SupernetEvaluator
from recloom.search.lowering import lower
from recloom.search.method import Observation, SearchMethod
from recloom.search.objective import Objective
from recloom.search.pareto import hypervolume, hypervolume_curve, non_dominated
from recloom.search.run import Search
from recloom.search.training import candidate_seed
from recloom_rankitect.model import ComposedModel
from recloom_rankitect.network import GraphNetwork
from recloom_rankitect.plan import Stem, plan
from recloom_rankitect.space import BlockSpace

WORST_NE = 1.0  # of a model that knows only the base rate
LIMITS = {"BlockSpace": 150_000.0, "EngineersSpace": 300_000.0}
ADAM = {"dense": "Adam", "dense_lr": 0.002, "sparse": "rowwise_adagrad", "sparse_lr": 0.05, "clip_norm": 5.0}
MLPS = {"dense_arch": [64, 32], "over_arch": [64, 32], "optimizer": ADAM}
HAND_MADE: dict[str, dict[str, Any]] = {
    "DLRM": {"class_path": "DLRM", "init_args": MLPS},
    "DCN V2": {"class_path": "DLRM", "init_args": {**MLPS, "interaction": "CrossNet"}},
    "Wukong-like": {"class_path": "StackModel", "init_args": {"layers": [{"kind": "wukong"}] * 2}},
    "DHEN-like": {"class_path": "StackModel", "init_args": {"layers": [{"kind": "dhen"}] * 2}},
}


@dataclass(frozen=True)
class Race:
    """What every search may use.

    Args:
        trials: Candidates of a method without a supernet; one with a supernet has fewer, by what that was trained on.
        rows: Training rows of a candidate.
        eval_rows: Validation rows of a candidate.
        steps: Steps of a supernet.
        batch: Candidates asked for together.
        explored: Candidates that one-shot search ranks by its supernet.
    """

    trials: int
    rows: int
    eval_rows: int
    steps: int
    batch: int = 8
    explored: int = 96


def race(setting: Race, space: str, method: str, seed: int, data: Any, folder: Path) -> dict[str, Any]:
    """Run one search; return its candidates' [NE, MACs], its hypervolume and course, and its front's models."""
    found, reserved = _method(setting, method, data.batch_size)
    trials = max(setting.batch, setting.trials - -(-reserved // setting.rows))
    objective = Objective(("ne", "macs"), {}, {"macs": LIMITS[space]})
    scratch = FromScratch(setting.rows, setting.eval_rows, trainer={"accelerator": "auto"})
    start = time.perf_counter()
    search = Search(
        catalog().search_spaces.load(space)(), data, found, scratch, objective, trials=trials, batch=setting.batch,
        seed=seed, retrain=0,
    )  # fmt: skip
    run = search.run(folder, progress=False, finish=False)
    seen = run.study.observations()
    corner = np.array([WORST_NE, LIMITS[space]])
    points = np.array([o.values if o.measured else (np.inf, np.inf) for o in seen])
    curve = hypervolume_curve(points, corner) / corner.prod()
    samples = reserved + setting.rows * np.arange(1, len(seen) + 1)
    good = [o for o in seen if o.measured]
    return {
        "values": [list(o.values) for o in good],
        "hypervolume": hypervolume(points[np.isfinite(points).all(1)], corner) / corner.prod(),
        "course": [samples.tolist(), curve.tolist()],
        "front": sorted(list(o.values) for o in good if _on_front(o, good)),
        "best": [_section(search, o) for o in good if _on_front(o, good)],
        "samples": float(samples[-1]),
        "seconds": time.perf_counter() - start,
    }


def _method(setting: Race, name: str, batch_size: int) -> tuple[SearchMethod, int]:
    """Return a method, and how many samples its supernet takes."""
    kind = catalog().search_methods.load(name)
    if name not in ("oneshot", "dnas"):
        small = {"evolution": {"population": 16, "sample": 6, "children": 8}, "nsga2": {"population": 16}}
        rest = {"predictor": {"initial": 16}, "rl": {"initial": 16}}
        return kind(**small.get(name, rest.get(name, {}))), 0
    evaluator = SupernetEvaluator(setting.steps, finetune_steps=20, eval_rows=setting.eval_rows // 3)
    if name == "dnas":
        return kind(evaluator), setting.steps * batch_size
    # the co-trained baseline sees every batch, too
    return kind(evaluator, explored=setting.explored), 2 * setting.steps * batch_size


def _on_front(observation: Observation, good: list[Observation]) -> bool:
    values = np.array([o.values for o in good])
    return bool(non_dominated(values)[good.index(observation)])


def _section(search: Search, observation: Observation) -> dict[str, Any]:
    return {
        "ne": observation.values[0],
        "macs": observation.values[1],
        **search.space.model_config(observation.genotype),
    }


def retrain(found: Sequence[dict[str, Any]], count: int, data: Any, seed: int) -> dict[str, dict[str, float]]:
    """Train the hand-made models, and the best found ones, on all rows; return metrics of the test rows, and MACs.

    One half of the found ones are the best of all, the other half the best of at most half the MACs of the hand-made
    model with the lowest validation NE.
    """
    results = {name: _trained(name, section, data, seed) for name, section in HAND_MADE.items()}
    half = min(results.values(), key=lambda metrics: metrics["val_ne"])["macs"] / 2
    different = list({repr(s["init_args"]): s for s in sorted(found, key=lambda s: s["ne"])}.values())
    small = [s for s in different if s["macs"] <= half][: -(-count // 2)]
    large = [s for s in different if s not in small][: count - len(small)]
    for number, section in enumerate([*large, *small], start=1):
        name = f"found {number}"
        results[name] = _trained(name, {key: section[key] for key in ("class_path", "init_args")}, data, seed)
    return results


def _trained(name: str, section: dict[str, Any], data: Any, seed: int) -> dict[str, float]:
    from recloom.training import train_and_test

    mention.load_mentioned(list(mention.strings(section)))
    torch.manual_seed(candidate_seed(seed, tuple(name.encode())))
    model: RankingModule = instantiate_model(section, FeatureSchema.from_dict(data.schema))
    macs = model.program().macs if isinstance(model, ComposedModel) else lower(model).macs
    done = train_and_test(model.train(), data, validations=1, accelerator="cpu")
    kept = ("val_ne", "ne", "auc", "logloss", "oracle_ne")
    return {**{key: done.metrics[key] for key in kept if key in done.metrics}, "macs": float(macs)}


def random_graphs(count: int, nodes: int) -> dict[str, float]:
    """Return how many random graphs run, train and have an equal canonical form, and the milliseconds of sampling."""
    space, stem = BlockSpace(nodes), Stem(5, 6, 16)
    rng = np.random.default_rng(0)
    dense, tokens = torch.randn(8, stem.features).double(), 0.3 * torch.randn(8, stem.tokens, stem.dim).double()
    seconds, good = [], 0
    for number in range(count):
        start = time.perf_counter()
        genotype = space.sample(rng)
        seconds.append(time.perf_counter() - start)
        graph = space.graph(genotype)
        torch.manual_seed(number)
        network = GraphNetwork(plan(graph, stem, space.limits)).double()
        logits = network(dense, tokens)
        logits.square().mean().backward()
        good += int(bool(torch.isfinite(logits).all()) and _same(space, genotype, network, stem, (dense, tokens)))
    return {"good": float(good), "sample_ms": 1e3 * float(np.median(seconds))}


@torch.no_grad()
def _same(
    space: BlockSpace, genotype: tuple[int, ...], whole: GraphNetwork, stem: Stem, inputs: tuple[torch.Tensor, ...]
) -> bool:
    """Return whether the canonical graph, with the same weights, gives the same logits."""
    graph = space.graph(genotype)
    pruned = GraphNetwork(space.plan(space.canonical(genotype), stem)).double()
    names = [node.name for node, alive in zip(graph.nodes, graph.live(), strict=True) if alive]
    for slot, step in pruned.steps.items():
        node, slash, rest = slot.partition("/")
        step.load_state_dict(whole.steps[f"{names[int(node[1:]) - 1]}{slash}{rest}"].state_dict())
    found = plan(graph, stem, space.limits)
    shapes = [*stem.shapes, *(step.block.shape for step in found.steps)]
    columns = list(torch.split(whole.head.weight, [shapes[place].size for place in found.head], 1))
    if len(set(graph.head)) < len(graph.head):  # the head reads a result twice: its weights add up
        columns, order = [columns[0] + columns[1]], [0]
    else:
        order = sorted(range(len(graph.head)), key=lambda place: -graph.head[place])
    pruned.head.weight.copy_(torch.cat([columns[place] for place in order], 1))
    pruned.head.bias.copy_(whole.head.bias)
    a, b = whole.eval()(*inputs), pruned.eval()(*inputs)
    return bool(torch.allclose(a, b, rtol=1e-6, atol=1e-8))
