"""Evaluators and costs: what they measure, that it repeats, and what a candidate that diverges becomes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from toy_search import DIM, ToyModel, ToySpace, ToySupernet

from recloom import hookimpl
from recloom.data.synthetic import SyntheticClicks
from recloom.errors import RecloomError
from recloom.features import FeatureSchema
from recloom.model import RankingModule
from recloom.plugins import host
from recloom.search import graph
from recloom.search.costs import AnalyticCost, LatencyCost
from recloom.search.evaluator import SearchContext
from recloom.search.evaluators.heads import Heads
from recloom.search.evaluators.scratch import FromScratch
from recloom.search.evaluators.supernet import SupernetEvaluator
from recloom.search.evaluators.together import Together
from recloom.search.evaluators.zerocost import ZeroCost, synflow
from recloom.search.lowering import lower
from recloom.search.objective import Objective
from recloom.search.program import Program
from recloom.search.rows import MemoryLoader, read_batches
from recloom.search.training import measure
from recloom.testing import run_cli, tiny_schema

LINEAR, WIDE, DOT = (0, 0, 0, 0, 0), (0, 2, 0, 2, 0), (1, 2, 0, 0, 0)


def context(folder: Path, said: list[str] | None = None, **options: Any) -> SearchContext:
    sizes = {"num_train": 20_000, "num_val": 6000, "num_test": 2000, "batch_size": 256, "num_workers": 0}
    data = SyntheticClicks(**{**sizes, "num_dense": 3, "cardinalities": (40, 30, 20), "multi_hot": {}})
    schema = FeatureSchema.from_dict(data.schema)
    say = (said if said is not None else []).append
    return SearchContext(ToySpace(**options), data, schema, Objective(), [AnalyticCost()], folder, 3, say)


def ready(evaluator: Any, found: SearchContext) -> Any:
    evaluator.setup(found)
    return evaluator


def test_a_subset_of_rows_spans_the_split_and_is_the_same_each_time(tmp_path: Path) -> None:
    data = SyntheticClicks(num_train=100_000, num_val=10, num_test=10, num_workers=0, cardinalities=(10,), multi_hot={})
    whole = sum(len(batch) for batch in read_batches(data, "train", 512))
    batches = read_batches(data, "train", 512, 40_000)
    times = torch.cat([batch.timestamps for batch in batches if batch.timestamps is not None])
    last = data.source("train").load(0, 3).timestamps
    assert (whole, len(times)) == (100_000, 40_000)
    assert last is not None
    assert times[-1] >= last[0]  # two of the four blocks: the first and the last
    assert all(b.dense_features.untyped_storage().nbytes() == b.dense_features.nbytes for b in batches)
    loader, again = MemoryLoader(batches, 5), MemoryLoader(batches, 5)
    seen = [id(batch) for _ in range(2) for batch in loader]
    for place, _ in enumerate(again):
        if place == 9:
            break
    resumed = MemoryLoader(batches, 5)
    resumed.load_state_dict(again.state_dict())
    assert [id(batch) for _ in range(2) for batch in resumed] == seen[10:]
    assert sorted(seen[: len(batches)]) == sorted(seen[len(batches) :]) != seen[: len(batches)]


def test_training_takes_as_many_threads_as_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        "recloom.search.evaluators.scratch.fit", lambda *_: seen.append(torch.get_num_threads()) or "no"
    )
    before = torch.get_num_threads()
    for threads in (before + 1, None):
        ready(FromScratch(rows=2000, threads=threads), context(tmp_path)).evaluate([DOT])
    assert seen == [before + 1, before]
    assert torch.get_num_threads() == before
    with pytest.raises(RecloomError, match="threads 0"):
        FromScratch(threads=0)


def test_from_scratch_measures_the_validation_rows_and_repeats(tmp_path: Path) -> None:
    found = context(tmp_path)
    evaluator = ready(FromScratch(rows=8000, keep_predictions=True), found)
    first = evaluator.evaluate([WIDE, DOT])
    again = ready(FromScratch(rows=8000), context(tmp_path)).evaluate([DOT, WIDE])[::-1]
    names = ("ne", "logloss", "auc", "calibration")
    assert [[m[n] for n in names] for m in first] == [[m[n] for n in names] for m in again]
    assert 0 < first[0]["oracle_ne"] < first[0]["ne"] < 1.05
    logits = evaluator.predictions[WIDE]
    labels = torch.cat([batch.labels for batch in read_batches(found.data, "val", 1000)])
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert first[0]["logloss"] == pytest.approx(float(loss), abs=1e-6)
    assert evaluator.samples_trained == 2 * 8000 // 256 * 256
    streamed = ready(FromScratch(max_steps=5), context(tmp_path))
    assert [streamed.evaluate([WIDE])[0]["ne"] for _ in range(2)] == [
        pytest.approx(streamed.evaluate([WIDE])[0]["ne"])
    ] * 2


class _Updates:
    def __init__(self) -> None:
        self.steps: list[int] = []

    @hookimpl
    def on_parameters_updated(self, module: Any, step: int) -> None:
        self.steps.append(step)


def test_what_is_trained_together_has_its_own_objective_and_counts_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model's further terms count side by side as alone; a model with a loop of its own is refused."""
    options: dict[str, Any] = {"rows": 2048, "eval_rows": 500}
    options["trainer"] = {"accelerator": "cpu", "accumulate_grad_batches": 2}
    here = context(tmp_path)

    def found(make: Any) -> list[float]:
        return [one["ne"] for one in ready(make(), here).evaluate([WIDE, DOT])]

    plain = found(lambda: FromScratch(**options))

    def objective(self: ToyModel, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.logits(batch)
        return logits, self.loss(logits, batch) + 0.1 * sum(p.square().sum() for p in self.parameters() if p.ndim < 2)

    monkeypatch.setattr(ToyModel, "objective", objective)
    alone = found(lambda: FromScratch(**options))
    assert max(abs(a - b) for a, b in zip(alone, plain, strict=True)) > 1e-4
    updates = _Updates()
    host().manager.register(updates)
    try:
        together = found(lambda: Together(2, FromScratch(**options)))
    finally:
        host().manager.unregister(updates)
    np.testing.assert_allclose(together, alone, rtol=1e-9)
    assert updates.steps == [1, 1, 2, 2, 3, 3, 4, 4]  # 8 batches
    monkeypatch.setattr(ToyModel, "optimizer_step", lambda self, *args, **kwargs: None, raising=False)
    with pytest.raises(RecloomError, match="ToyModel has its own optimizer_step"):
        found(lambda: Together(2, FromScratch(**options)))


def test_equal_models_have_equal_results_whatever_their_genotype_says(tmp_path: Path) -> None:
    evaluator = ready(FromScratch(rows=2000), context(tmp_path))
    dead = (0, 0, 1, 2, 0)  # an activation of a layer that is not there
    assert evaluator.evaluate([dead])[0]["ne"] == evaluator.evaluate([(0, 0, 0, 2, 0)])[0]["ne"]


def test_a_diverged_candidate_is_nan_with_a_reason(tmp_path: Path) -> None:
    evaluator = ready(FromScratch(rows=4000), context(tmp_path, lr=1e30))
    (metrics,) = evaluator.evaluate([WIDE])
    assert math.isnan(metrics["ne"])
    assert math.isnan(metrics["auc"])
    assert evaluator.reasons[WIDE].startswith(("the loss is", "NE is"))
    bounded = ready(FromScratch(rows=2000, ne_bound=0.5), context(tmp_path))
    assert math.isnan(bounded.evaluate([WIDE])[0]["ne"])
    assert "above 0.5" in bounded.reasons[WIDE]


def test_heads_do_what_adagrad_does() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(6, 64, 5, generator=generator), torch.rand(6, 64, generator=generator).round()
    weights = torch.rand(6, 64, generator=generator)
    weight, bias = torch.randn(5, generator=generator), torch.zeros(())
    for sample_weights in (None, weights):
        heads = Heads([(weight, bias)], lr=0.1, eps=1e-2)
        theirs = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        optimizer = torch.optim.Adagrad(theirs, lr=0.1, eps=1e-2)
        for step in range(6):
            w = None if sample_weights is None else sample_weights[step]
            heads.step(0, features[step], labels[step], w)
            optimizer.zero_grad()
            logits = features[step] @ theirs[0] + theirs[1]
            losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[step], reduction="none")
            (losses.mean() if w is None else (losses * w).sum() / w.sum()).backward()
            optimizer.step()
        torch.testing.assert_close(heads.weights[0], theirs[0].detach())
        torch.testing.assert_close(heads.biases[0], theirs[1].detach())
    assert torch.equal(bias, torch.zeros(()))


def test_a_supernet_ranks_together_as_one_by_one(tmp_path: Path) -> None:
    evaluator = ready(SupernetEvaluator(steps=60, finetune_steps=20, finetune_batch=256), context(tmp_path))
    paths = [WIDE, DOT, LINEAR, (0, 2, 0, 1, 1)]
    before = evaluator.supernet.computed
    together = evaluator.evaluate(paths)
    shared = evaluator.supernet.computed - before
    for path, metrics in zip(paths, together, strict=True):
        (alone,) = evaluator.evaluate([path])
        assert alone == pytest.approx(metrics, rel=1e-6)
    assert shared < evaluator.supernet.computed - before - shared  # bodies and first layers once for all
    small = ready(SupernetEvaluator(steps=60, finetune_steps=20, finetune_batch=256, together=2), context(tmp_path))
    for metrics, found in zip(together, small.evaluate(paths), strict=True):
        assert found == pytest.approx(metrics, rel=1e-6)


def test_fine_tuning_changes_the_last_layer_alone(tmp_path: Path) -> None:
    evaluator = ready(SupernetEvaluator(steps=40, finetune_steps=60, finetune_batch=256), context(tmp_path))
    state = {name: tensor.clone() for name, tensor in evaluator.supernet.state_dict().items()}
    (metrics,) = evaluator.evaluate([WIDE])
    assert all(torch.equal(tensor, state[name]) for name, tensor in evaluator.supernet.state_dict().items())
    evaluator.supernet.path = WIDE
    plain, _ = measure(evaluator.supernet, read_batches(evaluator.context.data, "val", 2048))
    assert metrics["ne_shared"] == pytest.approx(plain["ne"], rel=1e-5)
    assert metrics["auc_shared"] == pytest.approx(plain["auc"], rel=1e-5)
    assert metrics["ne"] != pytest.approx(metrics["ne_shared"], rel=1e-5)
    none = ready(SupernetEvaluator(steps=40, finetune_steps=0), context(tmp_path))
    (untuned,) = none.evaluate([WIDE])
    assert untuned["ne"] == untuned["ne_shared"]


def test_an_interrupted_supernet_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch) -> None:
    whole = ready(SupernetEvaluator(steps=40, checkpoint_every=10), context(tmp_path / "whole"))
    draw = ToySupernet.sample_path

    def stop(self: ToySupernet, step: int) -> Any:
        if step == 25:
            raise KeyboardInterrupt
        return draw(self, step)

    for rows in (None, 5000):  # streamed, and from memory
        folder = tmp_path / str(rows)
        monkeypatch.setattr(ToySupernet, "sample_path", stop)
        with pytest.raises(KeyboardInterrupt):
            SupernetEvaluator(steps=40, rows=rows, checkpoint_every=10).setup(context(folder))
        assert not (folder / "supernet" / "trained.ckpt").exists()
        monkeypatch.setattr(ToySupernet, "sample_path", draw)
        said: list[str] = []
        resumed = ready(SupernetEvaluator(steps=40, rows=rows, checkpoint_every=10), context(folder, said))
        same = whole if rows is None else ready(SupernetEvaluator(steps=40, rows=rows), context(tmp_path / "memory"))
        for name, tensor in same.supernet.state_dict().items():
            torch.testing.assert_close(resumed.supernet.state_dict()[name], tensor, rtol=0, atol=0)
        ready(SupernetEvaluator(steps=40, rows=rows), context(folder, said))
        assert sum("steps of" in line for line in said) == 1  # the second time it was there


def test_a_supernet_trained_elsewhere_and_little_memory(tmp_path: Path) -> None:
    ready(SupernetEvaluator(steps=30), context(tmp_path / "first"))
    said: list[str] = []
    checkpoint = str(tmp_path / "first/supernet/trained.ckpt")
    options: dict[str, Any] = {"checkpoint": checkpoint, "memory_mb": 0, "chunk": 512, "finetune_steps": 8}
    evaluator = ready(SupernetEvaluator(**options), context(tmp_path / "second", said))
    found = evaluator.evaluate([WIDE, LINEAR])
    assert [line for line in said if "512 of" in line]
    assert all(math.isfinite(metrics["ne"]) for metrics in found)
    with pytest.raises(RecloomError, match="no checkpoint"):
        SupernetEvaluator(checkpoint=str(tmp_path / "none.ckpt")).setup(context(tmp_path / "third"))


def test_zero_cost_proxies_are_negated_and_known_where_they_can_be(tmp_path: Path) -> None:
    found = context(tmp_path)
    evaluator = ready(ZeroCost(batch_size=64), found)
    wide, linear = evaluator.evaluate([WIDE, LINEAR])
    assert wide == evaluator.evaluate([WIDE])[0]
    assert wide["synflow"] < 0
    assert wide["grad_norm"] < 0
    assert wide["naswot"] < 0
    assert math.isnan(linear["naswot"])  # no unit is ever on or off
    assert "naswot" in evaluator.reasons[LINEAR]
    model = found.space.build(LINEAR, found.schema)
    weights = [p.detach().double().abs() for p in model.out.parameters()]
    # a linear model's logit of ones is the sum of its magnitudes, which is also what each contributes
    assert synflow(model, evaluator._batch) == pytest.approx(math.log1p(float(sum(w.sum() for w in weights))), rel=1e-6)
    with pytest.raises(RecloomError, match="synflow"):
        ZeroCost(proxies=("sinflow",))


def test_costs(tmp_path: Path) -> None:
    found = context(tmp_path)
    program = found.space.program(WIDE, found.schema)
    model = found.space.build(WIDE, found.schema)
    costs = found.price(WIDE)
    inputs = 3 + 3 * DIM
    assert costs["macs"] == inputs * 16 + 16 * 16 + 16
    assert costs["parameters"] == sum(p.numel() for layer in (*model.layers, model.out) for p in layer.parameters())
    assert costs["embedding_bytes"] == 4 * DIM * (40 + 30 + 20)
    latency = LatencyCost(batch_size=32, repeats=5)
    threads = torch.get_num_threads()
    first = latency(program, WIDE, found)
    assert first["latency_us"] > 0
    assert latency(program, (0, 2, 0, 2, 0), found) == first  # measured once
    assert len(list((tmp_path / "latency").iterdir())) == 1
    assert torch.get_num_threads() == threads
    assert np.isfinite(first["latency_us"])


def test_the_program_of_a_model_that_no_space_made(tmp_path: Path) -> None:
    found = context(tmp_path)
    for genotype in (WIDE, DOT, LINEAR):
        said, read = found.space.program(genotype, found.schema), lower(found.space.build(genotype, found.schema))
        assert (read.macs, read.parameters, read.table_bytes) == (said.macs, said.parameters, said.table_bytes)
    dynamic = [work for work in lower(found.space.build(DOT, found.schema)).works if work.kind == "dynamic"]
    assert [(work.rows, work.columns, work.vectors) for work in dynamic] == [(DIM, 3, 3)]


class Twice(nn.Module):
    """A layer that is used two times, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.relu(self.layer(x)))


class TwiceModel(RankingModule):
    def __init__(self, schema: dict[str, Any]) -> None:
        super().__init__(schema)
        self.twice = Twice()

    def forward(self, dense: Any, values: Any, offsets: Any = None, weights: Any = None) -> torch.Tensor:
        return self.twice(dense).sum(1)


def test_weights_used_twice_count_once_and_a_rule_replaces_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TwiceModel(tiny_schema().to_dict())
    program = lower(model)
    products = [(place, work) for place, work in enumerate(program.works) if work.kind == "matmul"]
    assert program.macs == 2 * 9
    assert program.parameters == 12
    assert [work.weights_of for _, work in products] == [-1, products[0][0]]

    def rule(module: Any, program: Program, inputs: Any, name: str, group: str) -> int:
        return program.add(name, "matmul", 3, 3, 5, inputs, group)

    monkeypatch.setitem(graph._MODULES, Twice, rule)
    replaced = lower(TwiceModel(tiny_schema().to_dict()))
    assert [work.kind for work in replaced.works] == ["matmul", "elementwise"]
    assert replaced.macs == 45


def test_the_command_prints_the_cost_of_a_config(root: Path) -> None:
    done = run_cli(["cost", "--config", str(root / "configs/dlrm/synthetic.yaml"), "--model.interaction", "CrossNet"])
    assert done.code == 0, done.err
    assert "109,344" in done.out  # 8-64-32-16, three cross layers of 176, 176-64-32-1
    assert "Did you mean 'DLRM'" in run_cli(["cost", "--model", "DLMR", "--data", "SyntheticClicks"]).err
