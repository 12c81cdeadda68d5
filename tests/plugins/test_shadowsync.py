"""Sync algorithms in lock step, to the bit where they are exact: against hand computations and torch's optimizers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recloom.errors import RecloomError
from recloom.sync import SyncAlgorithm
from recloom.testing import check_plugin
from recloom_shadowsync.algorithms import BMUF, EASGD, MA, DiLoCo
from recloom_shadowsync.compression import Feedback, decode, encode, encoded_bytes
from recloom_shadowsync.flat import FlatView, RowSegment
from recloom_shadowsync.lockstep import LockStep
from recloom_shadowsync.replica import Replica
from recloom_shadowsync.status import Status
from recloom_shadowsync.throttle import Throttle


def test_the_plugin_is_what_recloom_expects():
    check_plugin("shadowsync")


def cluster(make, replicas=3, size=50, seed=0, **options):
    start = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return LockStep([Replica(start.clone(), make(), **options) for _ in range(replicas)])


def run(steps, rounds=4, seed=1):
    """Train (random updates) before each round and while it is under way; return all weights after each round."""
    generator, seen = torch.Generator().manual_seed(seed), []
    for _ in range(rounds):
        for step in (steps.begin, steps.end):
            for replica in steps.replicas:
                replica.flat += torch.randn(replica.flat.shape, generator=generator)
                replica.steps += 1
            step()
        seen.append(torch.stack([replica.flat.clone() for replica in steps.replicas]))
    return torch.stack(seen)


@pytest.mark.parametrize("write", ["lerp", "delta"])
def test_bmuf_with_step_one_is_model_averaging_to_the_bit(write):
    assert torch.equal(run(cluster(BMUF, write=write)), run(cluster(MA, write=write)))
    assert not torch.equal(run(cluster(lambda: BMUF(0.9), write=write)), run(cluster(MA, write=write)))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_diloco_is_torchs_nesterov_sgd_on_the_mean_progress(momentum):
    ours, generator = cluster(lambda: DiLoCo(0.7, momentum), alpha=1.0), torch.Generator().manual_seed(3)
    outer = nn.Parameter(ours.center.clone())
    optimizer = torch.optim.SGD([outer], lr=0.7, momentum=momentum, nesterov=momentum > 0)
    for _ in range(5):
        for replica in ours.replicas:
            replica.flat += torch.randn(50, generator=generator)
        outer.grad = outer.detach() - torch.stack([r.flat for r in ours.replicas]).mean(0)
        optimizer.step()
        ours.round()
        for replica in ours.replicas:
            torch.testing.assert_close(replica.flat, outer.detach())


@pytest.mark.parametrize("nesterov", [False, True])
def test_bmuf_with_momentum_follows_its_equations(nesterov):
    ours, generator = cluster(lambda: BMUF(0.8, 0.5, nesterov), alpha=1.0), torch.Generator().manual_seed(3)
    w_g, v = ours.center.double(), torch.zeros(50, dtype=torch.float64)
    for _ in range(4):
        for replica in ours.replicas:
            replica.flat += torch.randn(50, generator=generator)
        w_c = torch.stack([r.flat for r in ours.replicas]).double().mean(0)
        v = 0.5 * v + 0.8 * (w_c - w_g)
        w_g = w_g + v
        ours.round()
        expected = w_g + 0.5 * v if nesterov else w_g
        torch.testing.assert_close(ours.replicas[0].flat, expected.float())


@pytest.mark.parametrize("symmetric", [False, True])
def test_easgd_equals_a_hand_computation_of_three_rounds(symmetric):
    """Two replicas of one weight that gain 1 and 3 a round; the first is served first. alpha is a half."""
    first, second = (Replica(torch.zeros(1), EASGD(0.5, symmetric)) for _ in range(2))
    ours, seen = LockStep([first, second]), []
    for _ in range(3):
        first.flat += 1
        second.flat += 3
        ours.round()
        seen.append((float(ours.center), float(first.flat), float(second.flat)))
    # sequential: c = (0 + 1)/2, w1 = (1 + .5)/2; c = (.5 + 3)/2, w2 = (3 + 1.75)/2; and so on
    # symmetric: the replica moves towards the centre as it was before
    expected = {
        False: [(1.75, 0.75, 2.375), (3.5625, 1.75, 4.46875), (5.3125, 2.953125, 6.390625)],
        True: [(1.75, 0.5, 1.75), (3.1875, 1.625, 3.1875), (4.546875, 2.90625, 4.546875)],
    }[symmetric]
    assert seen == expected


def test_what_is_learnt_during_a_round_is_kept_by_delta_and_faded_by_lerp():
    for write, expected in (("delta", [3.5, 8.5]), ("lerp", [3.0, 6.0])):
        replicas = [Replica(torch.zeros(1), MA(), 0.5, write) for _ in range(2)]
        ours = LockStep(replicas)
        replicas[0].flat += 2.0
        replicas[1].flat += 4.0
        ours.begin()  # the mean is 3
        replicas[0].flat += 1.0
        replicas[1].flat += 5.0
        replicas[1].steps += 7
        results = ours.end()
        # delta: 3 + (3 - 2)/2, 9 + (3 - 4)/2; lerp: (3 + 3)/2, (9 + 3)/2
        assert [float(r.flat) for r in replicas] == expected
        assert [result.staleness for result in results] == [0, 7]


def test_a_rank_that_has_finished_follows_the_others_and_counts_in_the_last_mean():
    replicas = [Replica(torch.zeros(2), MA(), 0.5) for _ in range(2)]
    ours = LockStep(replicas)
    replicas[0].flat += 10.0
    replicas[1].flat += 4.0
    ours.round([Status(0, done=1, gives=0), Status(1)])
    assert replicas[0].flat.tolist() == [4.0, 4.0]  # what the one that trains on has
    replicas[1].flat += 2.0
    ours.round([Status(0, done=1, gives=0), Status(1, done=1, gives=0)])
    assert replicas[0].model.tolist() == replicas[1].model.tolist() == [5.0, 5.0]


def test_a_rank_with_a_nan_does_not_spread_it():
    replicas = [Replica(torch.full((3,), 2.0), MA(), 1.0) for _ in range(2)]
    ours = LockStep(replicas)
    replicas[0].flat[1] = float("nan")
    replicas[1].flat += 2.0
    with pytest.warns(UserWarning, match="a NaN or an infinity"):
        ours.round()
    assert replicas[1].flat.tolist() == [3.0, 3.0, 3.0]
    assert replicas[0].skipped == 1


def test_a_row_is_averaged_over_the_replicas_that_changed_it():
    """3 weights and a table of 4 rows of 2: row 0 is changed by one of three replicas, row 1 by two, row 2 by none."""
    segments = [RowSegment(3, 4, 2)]
    replicas = [Replica(torch.ones(11), MA(), 1.0, segments=segments) for _ in range(3)]
    ours = LockStep(replicas)
    replicas[0].flat[:3] += 3.0
    replicas[0].flat[3:5] += torch.tensor([6.0, 0.0])
    replicas[1].flat[5:7] += 2.0
    replicas[2].flat[5:7] += 6.0
    replicas[2].flat[9:11] -= 1.0
    ours.round()
    expected = [2.0, 2.0, 2.0, 7.0, 1.0, 5.0, 5.0, 1.0, 1.0, 0.0, 0.0]
    for replica in replicas:
        torch.testing.assert_close(replica.flat, torch.tensor(expected))
        assert replica.flat[7:9].tolist() == [1.0, 1.0]  # to the bit
    plain = [Replica(torch.ones(11), MA(), 1.0, segments=segments, rows="mean") for _ in range(3)]
    mean = LockStep(plain)
    plain[0].flat[3:5] += 6.0
    mean.round()
    assert plain[1].flat[3:5].tolist() == [3.0, 3.0]


@pytest.mark.parametrize("write", ["lerp", "delta"])
def test_summed_rows_are_those_of_one_table_that_all_have_trained(write):
    """Three replicas change rows before, during and after rounds; each change reaches every replica once, in full."""
    replicas = [Replica(torch.ones(11), MA(), 0.5, write, [RowSegment(3, 4, 2)], "sum") for _ in range(3)]
    ours, one = LockStep(replicas), torch.ones(8)
    generator = torch.Generator().manual_seed(0)

    def train(ranks):
        for rank in ranks:
            change = torch.randn(8, generator=generator) * (torch.rand(8, generator=generator) < 0.4)
            replicas[rank].flat[3:] += change
            one.add_(change)

    for _ in range(3):
        train((0, 1, 2))
        ours.begin()
        train((0, 2))  # while the exchange is under way
        ours.end()
    ours.round()
    for replica in replicas:
        torch.testing.assert_close(replica.flat[3:], one)
        torch.testing.assert_close(replica.model[3:], one)


class Median(SyncAlgorithm):
    """Half way to the mean, as somebody else's plugin might have it."""

    def target(self, received):
        return received / 2


def test_an_algorithm_of_ones_own_needs_one_method():
    replicas = [Replica(torch.full((1,), 4.0), Median(), 1.0) for _ in range(2)]
    LockStep(replicas).round()
    assert float(replicas[0].flat) == 2.0
    with pytest.raises(RecloomError, match="Median has no rule for a server"):
        Median().merge(torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize(("kind", "error"), [("none", 0.0), ("bf16", 2.0**-8), ("int8", 0.5 / 127)])
def test_compression_is_as_small_and_as_exact_as_it_says(kind, error):
    values = torch.randn(2, 1000) * torch.tensor([[1e-3], [1e3]])
    data = encode(values, kind)
    assert data.shape == (2, encoded_bytes(1000, kind))
    decoded = decode(data, kind, 1000)
    bound = values.abs() if kind == "bf16" else torch.nn.functional.pad(values, (0, 24)).view(2, 4, 256).abs().amax(2)
    bound = bound if kind == "bf16" else bound.repeat_interleave(256, 1)[:, :1000]
    assert bool(((decoded - values).abs() <= error * bound * 1.0001).all())


def test_error_feedback_owes_nothing_in_the_long_run():
    """The mean of many messages is the value; without feedback small values next to a large one are never sent."""
    values = torch.cat([torch.full((1, 1), 127.0), torch.full((1, 255), 0.3)], dim=1)
    feedback, total = Feedback("int8"), torch.zeros(1, 256)
    for _ in range(100):
        total += decode(feedback.encode(values), "int8", 256)
    assert float((total / 100 - values).abs().max()) < 0.01
    assert float(decode(encode(values, "int8"), "int8", 256)[0, 5]) == 0.0


def test_parameters_become_views_that_optimizers_and_autograd_do_not_notice():
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    expected = module(torch.ones(2, 4))
    view = FlatView(dict(module.named_parameters()))
    assert view.flat.numel() == 4 * 16  # each begins at a multiple of 16
    out = module(torch.ones(2, 4))
    assert torch.equal(out, expected)
    view.flat.mul_(1.0)  # another thread's write, between forward and backward
    out.sum().backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    view.check()
    assert torch.equal(view.flat[:12].view(3, 4), module[0].weight)
    module[0].weight.data = torch.zeros(3, 4)
    with pytest.raises(RecloomError, match="moved to other memory"):
        view.check()
    mixed = {"a": nn.Parameter(torch.ones(1)), "b": nn.Parameter(torch.ones(1).double())}
    with pytest.raises(RecloomError, match="one type and one device"):
        FlatView(mixed)


def test_the_throttle_pauses_for_what_a_round_costs(monkeypatch):
    throttle = Throttle(0.1)
    spent = throttle.spent
    monkeypatch.setattr(throttle, "spent", lambda: spent() + 0.02)
    assert 0.1 < throttle.pause() < 0.25  # 20 ms of CPU are a tenth of 200 ms, less those that have passed
    throttle.begin()
    assert throttle.pause() < 0.05
    assert Throttle(0.1, 0.3).pause() > 0.25
