"""Engines, load, the lab's queue, and the search of the highest rate."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from recloom.batch import Batch
from recloom.errors import RecloomError
from recloom.online import engines
from recloom.online.inputs import Pool, inputs_of
from recloom.online.lab import CpuClock, Policy, Queue, WallClock, highest_rate, serve
from recloom.online.latency import mean_of, percentiles
from recloom.online.load import Schedule, Sizes, poisson
from recloom.online.replicas import Fleet, Service
from recloom.plugins import catalog
from recloom.serving import batch_of, random_inputs
from recloom.testing import run_cli, tiny_batch, tiny_schema

CONFIG = """
model: {class_path: DLRM, init_args: {embedding_dim: 4, dense_arch: [8], over_arch: [8]}}
data:
  class_path: SyntheticClicks
  init_args: {num_train: 100, num_val: 200, num_test: 0, cardinalities: [50, 40, 30], multi_hot: {c2: 3}}
"""


def model(histories: bool = False, one_hot: bool = False):
    torch.manual_seed(0)
    encoder = {"sequence_encoder": catalog().sequence_encoders.load("MeanPooling")} if histories else {}
    kind = catalog().models.load("DLRM")
    schema = tiny_schema(one_hot=one_hot, histories=histories).to_dict()
    return kind(schema, embedding_dim=16, dense_arch=(32,), over_arch=(64, 32), **encoder).eval()


BAGS, ONE_HOT, HISTORIES = {}, {"one_hot": True}, {"histories": True}


COMPILED = pytest.mark.skipif(
    "RECLOOM_AOT" not in os.environ, reason="RECLOOM_AOT=1: AOTInductor compiles for a minute"
)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("eager", BAGS),
        ("bf16", BAGS),
        ("bf16", HISTORIES),
        ("int8", ONE_HOT),
        ("export", HISTORIES),
        ("onnx", BAGS),
        pytest.param("aot", BAGS, marks=COMPILED),
        pytest.param("aot", HISTORIES, marks=COMPILED),
    ],
)
def test_engines_equal_eager_within_their_tolerance(name: str, kind: dict) -> None:
    module = model(**kind)
    engine = engines.build(module, name)
    found = engines.largest_difference(engine, module, (1, 9, 33))
    assert found <= engines.TOLERANCE[name]
    assert (found == 0) == (name == "eager") or name in ("export", "onnx", "aot")
    assert module.over_arch.linears()[0].weight.dtype == torch.float32  # the model itself is as it was


def test_engines_share_the_tables() -> None:
    module = model()
    copied = engines._with_linears(module, engines._BFloat16)
    assert copied.sparse_arch.weight.data_ptr() == module.sparse_arch.weight.data_ptr()


def test_an_engine_that_disagrees_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engines.TOLERANCE, "bf16", 1e-9)
    with pytest.raises(RecloomError, match="differs from eager"):
        engines.build(model(), "bf16")
    with pytest.raises(RecloomError, match="onnx"):
        engines.build(model(), "onxx")


@pytest.mark.parametrize("kind", [{}, {"one_hot": True}, {"histories": True}], ids=["bags", "one-hot", "histories"])
def test_inputs_of_a_batch_are_those_it_was_made_of(kind: dict) -> None:
    module = model(**kind)
    inputs = random_inputs(module, 7, seed=3)
    again = inputs_of(module, batch_of(module, inputs))
    assert inputs.keys() == again.keys()
    for name, tensor in inputs.items():
        if name in ("history", "history_gaps"):  # places before a history may hold anything
            mask = torch.arange(-6, 0) >= -inputs["history_lengths"][:, None]
            assert torch.equal(tensor[mask], again[name][mask])
        else:
            assert torch.equal(tensor, again[name])


# Load


def test_arrivals_are_a_poisson_process() -> None:
    schedule = poisson(200.0, 50_000, Sizes.parse("1"), seed=0)
    gaps = np.diff(schedule.arrivals)
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.02)  # gaps of a Poisson distribution would have 0.2


def test_sizes() -> None:
    random = np.random.default_rng(0)
    drawn = Sizes.parse("lognormal:165:0.5").draw(40_000, random)
    assert drawn.mean() == pytest.approx(165, rel=0.02)
    assert len(np.unique(drawn)) > 100
    assert Sizes.parse("normal:900:300").draw(1000, random).max() == 1024
    assert set(Sizes.parse("7").draw(5, random)) == {7}
    for text in ("0", "many", "normal:10:-1", "zipf:3", "fixed:1:2:3"):
        with pytest.raises(RecloomError, match="no distribution"):
            Sizes.parse(text)


# The queue, in time of its own


class Server:
    """A clock, and an engine that takes `seconds` of it for a batch."""

    def __init__(self, seconds: float, per_row: float = 0.0) -> None:
        self.time, self.seconds, self.per_row = 0.0, seconds, per_row
        self.batches: list[int] = []

    def now(self) -> float:
        return self.time

    def wait_until(self, moment: float) -> None:
        self.time = max(self.time, moment)

    def __call__(self, batch: Batch) -> torch.Tensor:
        self.time += self.seconds + self.per_row * len(batch)
        self.batches.append(len(batch))
        return torch.zeros(len(batch))


def run(server: Server, schedule: Schedule, policy: Policy, target: float = np.inf):
    return serve(server, Pool(tiny_batch(rows=8)), Queue(schedule, policy), server, target)


def test_latency_counts_from_the_scheduled_arrival_as_queueing_theory_says() -> None:
    server = Server(0.001)
    load = 0.7
    served = run(server, poisson(load / 0.001, 20_000, Sizes.parse("1"), 1), Policy(0))
    wait = served.latencies.mean() - 0.001
    assert wait == pytest.approx(load * 0.001 / (2 * (1 - load)), rel=0.15)  # M/D/1: Pollaczek and Khinchine
    assert served.finished
    assert served.batches == 20_000


def test_a_stall_is_seen_by_all_who_arrive_during_it() -> None:
    arrivals = np.arange(1, 11) * 0.1
    server = Server(1.0)
    served = run(server, Schedule(arrivals, np.ones(10, np.int64)), Policy(100))
    # the first is served alone until 1.1; the others have all arrived by then
    assert served.latencies == pytest.approx([1.0, *(2.1 - arrivals[1:])])
    assert server.batches == [1, 9] or server.batches == [1, 10 - 1]


def test_batches_hold_to_their_rows_and_their_wait() -> None:
    arrivals, sizes = np.array([0.0, 0.01, 0.02, 0.5, 0.5]), np.array([2, 2, 2, 10, 1])
    server = Server(0.001)
    run(server, Schedule(arrivals, sizes), Policy(4, max_wait=0.015))
    assert server.batches == [4, 2, 4, 4, 2, 1]  # the third comes too late; ten rows are three batches
    server = Server(0.001)
    served = run(server, Schedule(arrivals, sizes), Policy(4, max_wait=0.005))
    assert server.batches[:3] == [2, 2, 2]
    assert served.latencies[0] == pytest.approx(0.006)


def test_a_hopeless_run_is_given_up() -> None:
    served = run(Server(0.01), poisson(1000, 5000, Sizes.parse("1"), 0), Policy(0), target=0.025)
    assert not served.finished
    assert not served.holds(0.025)
    assert np.isnan(served.latencies).sum() > 4000


@pytest.mark.parametrize("start", [10.0, 700.0, 90_000.0])
def test_highest_rate(start: float) -> None:
    found = highest_rate(lambda rate, seed: rate <= 700 + seed, start, repeats=3, steps=7)
    assert found.rates == pytest.approx([700, 701, 702], rel=0.01)
    assert all(rate <= 702 for rate in found.rates)
    assert found.estimate.value == pytest.approx(701, rel=0.01)
    assert highest_rate(lambda rate, seed: False, 8.0, repeats=1).rates == [0.0]


def test_intervals_know_of_queues() -> None:
    random = np.random.default_rng(0)
    independent = random.exponential(1, 5000)
    together = np.repeat(random.exponential(1, 50), 100)  # as many, in 50 queues
    narrow, wide = (percentiles(found)[0] for found in (independent, together))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert narrow.low <= np.log(2) <= narrow.high
    assert mean_of([1.0, 2.0, 3.0]).high == pytest.approx(2 + 4.303 / 3**0.5, abs=1e-3)


def test_pool_goes_round() -> None:
    rows = tiny_batch(rows=5)
    pool = Pool(rows)
    taken = [pool.take(3), pool.take(4), pool.take(8)]
    dense = torch.cat([batch.dense_features for batch in taken])
    assert torch.equal(dense, rows.dense_features.repeat(3, 1))


def test_clocks() -> None:
    cpu = CpuClock()
    cpu.wait_until(100.0)
    assert 100.0 <= cpu.now() < 101.0
    wall = WallClock()
    wall.wait_until(0.01)
    assert 0.01 <= wall.now() < 5


# The command


def test_two_workers_serve_every_request_once(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(CONFIG)
    service = Service(path, workers=2, policy=Policy(4))
    with Fleet([service]) as fleet:
        (served,) = fleet.run([poisson(2000, 300, Sizes.parse("2"), 0)])
        (again,) = fleet.run([poisson(2000, 50, Sizes.parse("2"), 0)])
    assert served.finished
    assert not np.isnan(served.latencies).any()
    assert served.rows == 600
    assert again.rows == 100


def test_bench_serve(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(CONFIG)
    quick = ["--requests", "200", "--seconds", "0.02", "--repeats", "2", "--clock", "cpu", "--rows", "100"]
    done = run_cli(
        ["bench", "serve", "--config", str(path), *quick, "--engines", "bf16", "--out", str(tmp_path / "out")]
    )
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "out" / "serve.json").read_text())["engines"]
    assert [item["name"] for item in found] == ["unbatched", "bf16"]
    assert 0 < found[0]["rate"] < found[1]["rate"]  # batches of many rows cost little more than those of one
    for point in found[1]["points"]:
        value, low, high = point["p99"]
        assert 0 < low <= value <= high
    assert "requests/s" in (tmp_path / "out" / "report.html").read_text()
    assert run_cli(["bench", "serve", "--config", "missing.yaml"]).code == 2
