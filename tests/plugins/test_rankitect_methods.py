"""Methods that learn: predictors, policies, supernets with a co-trained baseline, relaxed choices; and transfer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recloom.data.synthetic import SyntheticClicks
from recloom.errors import RecloomError
from recloom.features import FeatureSchema
from recloom.optim import OptimizerConfig
from recloom.plugins import catalog
from recloom.search.costs import AnalyticCost
from recloom.search.evaluator import SearchContext
from recloom.search.evaluators.moving import MovingBaseline
from recloom.search.evaluators.on_ray import OnRay
from recloom.search.evaluators.scratch import FromScratch
from recloom.search.evaluators.supernet import SupernetEvaluator
from recloom.search.evaluators.together import Together
from recloom.search.method import History, Observation, SearchMethod
from recloom.search.methods.dnas import DNAS, Relaxed
from recloom.search.methods.ensemble import RankingEnsemble, pairs_of
from recloom.search.methods.oneshot import OneShot
from recloom.search.methods.predictor import Predictor
from recloom.search.methods.random import RandomSearch
from recloom.search.methods.reinforce import Reinforce
from recloom.search.objective import Objective, Penalty
from recloom.search.pareto import hypervolume
from recloom.search.policy import Policy
from recloom.search.run import Search
from recloom.search.transfer import load_matching
from recloom.testing.searching import ToySpace, set_up
from recloom_rankitect.engineers import EngineersSpace
from recloom_rankitect.space import BlockSpace

SPACE = ToySpace(6)
LOSS, BOTH = Objective(("loss",)), Objective(("loss", "macs"))
SIZES = {"num_train": 6000, "num_val": 2000, "num_test": 500, "batch_size": 128, "num_workers": 0}
WORLD = {**SIZES, "num_dense": 4, "cardinalities": [30, 20, 10], "multi_hot": {}}
SMALL = {"embedding_dim": 8, "tokens": (2, 4), "ranks": (1, 2), "widths": (8, 64)}


def search(method: SearchMethod, trials: int, seed: int, objective: Objective = LOSS, batch: int = 4):
    """Ask and tell in memory, `batch` candidates at a time."""
    set_up(method, SPACE, objective, seed)
    done: list[Observation] = []
    tried: set[tuple[int, ...]] = set()
    for number in range(trials):
        cut = number // batch * batch
        history = History(done[:cut], [o.genotype for o in done[cut:]], number)
        for attempt in range(20):
            genotype = SPACE.repair(method.ask(history, np.random.default_rng([seed, number, attempt])))
            if SPACE.canonical(genotype) not in tried:
                break
        tried.add(SPACE.canonical(genotype))
        metrics = {**SPACE.metrics(genotype), **SPACE.price(genotype)}
        done.append(Observation(number, genotype, objective.values(metrics), (), metrics))
    return done


def best(observations) -> float:
    return min(o.values[0] for o in observations)


def volume(observations) -> float:
    return hypervolume(np.array([o.values for o in observations]) * [1.0, 1e-5], [1.0, 2.0])


@pytest.mark.parametrize(
    ("method", "trials"),
    [
        (lambda: Predictor(pool=48, steps=50), 48),
        (Reinforce, 120),
        (lambda: Reinforce("autoregressive"), 120),
    ],
    ids=["predictor", "rl", "rl, autoregressive"],
)
def test_learned_methods_beat_random_search_at_equal_trials(method, trials) -> None:
    found = [best(search(method(), trials, seed)) for seed in range(3)]
    random = [best(search(RandomSearch(), trials, seed)) for seed in range(3)]
    assert np.median(found) < np.median(random) - 0.04
    found = [volume(search(method(), trials, seed, BOTH)) for seed in range(3, 5)]
    random = [volume(search(RandomSearch(), trials, seed, BOTH)) for seed in range(3, 5)]
    assert np.median(found) > np.median(random)


@pytest.mark.parametrize("method", [lambda: Predictor(8, pool=32, steps=20), lambda: Reinforce(initial=8)])
def test_a_fresh_method_goes_on_as_the_old_one_would(method) -> None:
    whole = search(method(), 30, 3)
    late = set_up(method(), SPACE, LOSS, 3)
    history = History(whole[:28], [whole[28].genotype], 29)
    again = {SPACE.repair(late.ask(history, np.random.default_rng([3, 29, attempt]))) for attempt in range(20)}
    assert whole[29].genotype in again


def test_a_predictor_takes_diverged_candidates_for_worse_and_compares_within_a_study_alone() -> None:
    nan = np.nan
    pairs = pairs_of(np.array([1.0, 2.0, nan, nan, 0.1]), np.array([0, 0, 1, 1, 0], bool), np.array([0, 0, 0, 1, 1]))
    assert {tuple(pair) for pair in pairs.tolist()} == {(0, 1), (0, 2), (1, 2), (4, 3)}
    x = np.random.default_rng(0).normal(size=(40, 6))
    values = x[:, 0] + 0.1 * x[:, 1]
    diverged = x[:, 0] > 1
    ensemble = RankingEnsemble(4, 16, 100)
    ensemble.fit(x, pairs_of(values, diverged, np.zeros(40, np.int64)), 0)
    scores = ensemble.scores(x)
    assert np.isfinite(scores).all()
    assert np.corrcoef(scores.mean(0), x[:, 0])[0, 1] > 0.9
    far = ensemble.scores(np.random.default_rng(1).normal(size=(40, 6)) * 3)
    assert far.std(0).mean() > scores.std(0).mean()  # members differ more where they know less


def test_off_policy_learning_weighs_by_the_ratio_of_probabilities() -> None:
    method = set_up(Reinforce(generation=4, replay=4), SPACE, LOSS)
    rng = np.random.default_rng(0)
    known = [Observation(n, g, (SPACE.quality(g),)) for n, g in enumerate(SPACE.sample(rng) for _ in range(24))]
    policy = method.learned(known, 6)
    live = [SPACE.matters(o.genotype) for o in known]
    gained = [
        policy.log_probability(o.genotype, m) - Policy(SPACE, seed=0).log_probability(o.genotype, m)
        for o, m in zip(known, live, strict=True)
    ]
    assert np.corrcoef(gained, [o.values[0] for o in known])[0, 1] < -0.5
    late = [replace(o, number=n) for n, o in enumerate(known) if n != 2]
    assert not np.allclose(method.learned(late, 5).logits, policy.logits)  # another history is learned anew
    np.testing.assert_array_equal(method.learned(known, 6).logits, policy.logits)


def context(space: Any, folder: Path, objective: Objective | None = None, **world: Any) -> SearchContext:
    data = SyntheticClicks(**{**WORLD, **world})
    schema = FeatureSchema.from_dict(data.schema)
    costs = [AnalyticCost()]
    return SearchContext(space, data, schema, objective or Objective(), costs, folder, 0, lambda line: None)


def quick(**options: Any) -> SupernetEvaluator:
    trainer = {"accelerator": "cpu"}
    return SupernetEvaluator(**{"steps": 120, "finetune_steps": 5, "eval_rows": 1000, "trainer": trainer, **options})


def ask(method: SearchMethod, count: int) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for number in range(count):
        found.append(method.ask(History((), found, number), np.random.default_rng([0, number])))
    return found


def test_dnas_finds_cheap_models_where_cost_is_all_and_goes_on_where_it_was(tmp_path: Path) -> None:
    space = EngineersSpace(2, **SMALL)
    here = context(space, tmp_path)
    method = DNAS(quick(), warmup=0.2, lr=0.1, weight=1.0, proposals=8)
    method.setup(here)
    found = ask(method, 8)
    assert len(set(found)) > 3
    rng = np.random.default_rng(0)
    typical = np.median([here.price(space.canonical(space.sample(rng)))["macs"] for _ in range(200)])
    assert here.price(found[0])["macs"] < 0.3 * typical
    assert method.samples_trained == 120 * 128
    again = DNAS(quick(), warmup=0.2, lr=0.1, weight=1.0, proposals=8)
    again.setup(here)
    assert (ask(again, 8), again.samples_trained) == (found, 0)


@pytest.mark.parametrize("name", ["BlockSpace", "NASRecSpace"])
def test_gates_have_the_gradient_of_scaling_what_was_chosen(name, tmp_path: Path) -> None:
    options = {"BlockSpace": {"nodes": 6}, "NASRecSpace": {"size": "full", "num_blocks": 3, "embedding_dim": 8}}
    space = catalog().search_spaces.load(name)(**options[name])
    here = context(space, tmp_path)
    torch.manual_seed(0)
    supernet = space.supernet(here.schema).eval()
    if name == "BlockSpace":
        torch.nn.init.normal_(supernet.heads)  # they begin at zero
    supernet.path = path = space.canonical(space.sample(np.random.default_rng(4)))
    batch = here.data.source("val").load(0, 0).rows(0, 64)
    learner = Relaxed(Policy(space), 0, 0, 10, here, 0.1, (1.0, 1.0), "macs", 0.0)
    learner.supernet = supernet

    def loss(gates: np.ndarray) -> float:
        supernet.gates = torch.from_numpy(gates).float()
        return supernet.loss(supernet.logits(batch), batch).item()

    supernet.gates = torch.ones(len(path), requires_grad=True)
    supernet.loss(supernet.logits(batch), batch).backward()
    gradient = supernet.gates.grad.numpy()
    for place in np.flatnonzero(np.abs(gradient) > 1e-3)[:4]:
        step = np.zeros(len(path))
        step[place] = 1e-2
        slope = (loss(1 + step) - loss(1 - step)) / 2e-2
        assert slope == pytest.approx(gradient[place], rel=0.05, abs=1e-3)
    moved = learner.loss_gradient(path, gradient.astype(np.float64))
    sums = np.add.reduceat(moved, learner.policy.starts[:-1])
    np.testing.assert_allclose(sums, 0, atol=1e-9)  # a softmax does not care for a constant
    assert all(
        m or not moved[a:b].any()
        for m, a, b in zip(space.matters(path), learner.policy.starts, learner.policy.starts[1:], strict=False)
    )


def test_dnas_searches_the_space_of_another_plugin_and_proposes_a_front(tmp_path: Path) -> None:
    space = catalog().search_spaces.load("NASRecSpace")(num_blocks=2, embedding_dim=8, dense_dims=(16, 64, 256))
    decades = []
    for spread in (0.0, 6.0):
        here = context(space, tmp_path / str(spread), Objective(("ne", "macs")))
        method = DNAS(quick(steps=30), proposals=32, spread=spread)
        method.setup(here)
        found = ask(method, 32)
        assert all(space.valid(genotype) for genotype in found)
        decades.append(np.std(np.log10([here.price(genotype)["macs"] for genotype in found])))
    assert decades[1] > 1.2 * decades[0]


def test_candidates_trained_together_have_the_results_that_they_have_alone(tmp_path: Path) -> None:
    space = BlockSpace(6)
    here = context(space, tmp_path)
    rng = np.random.default_rng(0)
    genotypes = [space.sample(rng) for _ in range(5)]
    unstable = OptimizerConfig("SGD", 1e12, sparse="rowwise_adagrad", sparse_lr=0.05)
    options: dict[str, Any] = {"rows": 1500, "eval_rows": 500, "trainer": {"accelerator": "cpu"}}
    for optimizer in (None, unstable):
        alone, together = (FromScratch(optimizer=optimizer, **options) for _ in range(2))
        found = []
        for evaluator in (alone, Together(4, together)):
            evaluator.setup(here)
            found.append([m["ne"] for m in evaluator.evaluate([*genotypes, genotypes[0]])])
        np.testing.assert_allclose(found[1], found[0], rtol=1e-9)
        diverged = np.isnan(found[0])
        assert bool(diverged.any()) is (optimizer is unstable)
        assert len(evaluator.reasons) == len(
            {space.canonical(g) for g, bad in zip(genotypes, diverged, strict=False) if bad}
        )
        assert evaluator.samples_trained == 5 * 1408


def test_candidates_are_evaluated_by_actors_of_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    space = EngineersSpace(1, **SMALL)
    here = context(space, tmp_path, num_train=1000)
    genotypes = [space.sample(np.random.default_rng(number)) for number in range(3)]
    options: dict[str, Any] = {"rows": 512, "eval_rows": 500, "trainer": {"accelerator": "cpu"}}
    found = []
    for evaluator in (FromScratch(**options), OnRay(FromScratch(**options), actors=1)):
        evaluator.setup(here)
        found.append([m["ne"] for m in evaluator.evaluate(genotypes)])
        evaluator.release()
        assert evaluator.samples_trained == 3 * 512
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)


def test_the_expected_cost_is_penalised_along_its_gradient(tmp_path: Path) -> None:
    space = EngineersSpace(2, **SMALL)
    here = context(space, tmp_path)
    policy = Policy(space)
    learner = Relaxed(policy, 0, 0, 10, here, 0.1, (1.0, 1.0), "macs", 1.0)
    rng = np.random.default_rng(1)

    def expected(logits: np.ndarray) -> float:
        moved = Policy(space)
        moved.logits = logits
        return float(np.mean([here.price(space.canonical(moved.sample(rng)))["macs"] for _ in range(1500)]))

    gradient = learner.cost_gradient()
    step = 0.7 * gradient / np.linalg.norm(gradient)
    assert expected(policy.logits - step) < 0.95 * expected(policy.logits) < 0.9 * expected(policy.logits + step)


def test_one_shot_learns_beside_its_baseline_and_honours_limits_and_penalties(tmp_path: Path) -> None:
    space = EngineersSpace(2, **SMALL)
    objective = Objective(("ne",), {"macs": Penalty(1000.0, 1.0)}, {"macs": 12000.0})
    here = context(space, tmp_path, objective)
    method = OneShot(quick(), warmup=0.2, lr=0.3, explored=12, proposals=6)
    method.setup(here)
    found = ask(method, 6)
    assert len(set(found)) == 6
    assert max(here.price(genotype)["macs"] for genotype in found) <= 12000
    assert method.samples_trained == 2 * 120 * 128
    rng = np.random.default_rng(0)

    def typical(policy: Policy) -> float:
        return float(np.median([here.price(space.canonical(policy.sample(rng)))["macs"] for _ in range(200)]))

    assert typical(method.policy) < 0.7 * typical(Policy(space))


def test_gains_over_a_moving_baseline_do_not_depend_on_the_window(tmp_path: Path) -> None:
    sizes = {"tokens": (2, 3, 4), "widths": (16, 24, 32), "embedding_dim": 8}
    space = EngineersSpace(1, kinds=("mlp",), **sizes)  # candidates that are much alike
    rng = np.random.default_rng(0)
    baseline = space.model_config(space.sample(np.random.default_rng(9)))
    here = context(space, tmp_path, num_train=32_000, drift=1.0, signal=2.0)
    evaluator = MovingBaseline(baseline, 4, FromScratch(rows=8000, trainer={"accelerator": "cpu"}))
    evaluator.setup(here)
    found = evaluator.evaluate([space.sample(rng) for _ in range(6)])
    assert len({m["window"] for m in found}) > 2
    base = {m["window"]: m["ne"] / (1 + m["ne_gain"]) for m in found}
    assert all(m["ne"] / (1 + m["ne_gain"]) == pytest.approx(base[m["window"]]) for m in found)
    assert np.std([m["ne_gain"] for m in found]) < 0.3 * np.std([m["ne"] for m in found])


def test_a_search_starts_warm_from_an_earlier_one(tmp_path: Path) -> None:
    space, data = EngineersSpace(2, **SMALL), SyntheticClicks(**WORLD)
    options: dict[str, Any] = {"evaluator": FromScratch(rows=500, eval_rows=200), "retrain": 0, "batch": 6}
    Search(space, data, RandomSearch(), trials=6, **options).run(tmp_path / "first", progress=False, finish=False)
    other = EngineersSpace(2, **{**SMALL, "widths": (64, 128)})  # options differ: they are matched by value
    method = Predictor(initial=6, pool=16, steps=5, warm_start=[str(tmp_path / "first")])
    run = Search(other, data, method, trials=2, **options).run(tmp_path / "second", progress=False, finish=False)
    assert len(run.study.observations()) == 2
    assert 0 < len(method._earlier[0]) <= 6
    with pytest.raises(RecloomError, match="there is no study"):
        set_up(Predictor(warm_start=[str(tmp_path / "third")]), space, LOSS)
    small, large = EngineersSpace(1, **SMALL), EngineersSpace(2, **{**SMALL, "widths": (8, 128)})
    schema = FeatureSchema.from_dict(data.schema)
    one, two = small.supernet(schema), large.supernet(schema)
    torch.save({"state_dict": one.state_dict()}, tmp_path / "one.ckpt")
    filled, count = load_matching(two, tmp_path / "one.ckpt")
    assert 0 < filled < count
    name = "slots.layer1-wukong-fc/linear.weight"
    a, b = one.state_dict()[name], two.state_dict()[name]
    assert b.shape[0] == 2 * a.shape[0]
    assert torch.equal(b[: a.shape[0], : a.shape[1]], a)
