"""Rank correlations and Pareto fronts against scipy, brute force and Monte Carlo."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from recloom.errors import RecloomError
from recloom.search import pareto, ranking

POINTS = st.tuples(st.integers(1, 12), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(0, 5).map(float))
)


def beats(a, b):
    return bool((a <= b).all() and (a < b).any())


@settings(max_examples=60, deadline=None)
@given(POINTS)
def test_fronts_are_those_of_the_definition(points):
    expected = [not any(beats(b, a) for b in points) for a in points]
    assert pareto.non_dominated(points).tolist() == expected
    ranks = pareto.ranks(points)
    for place, rank in enumerate(ranks):
        better = [ranks[other] for other in range(len(points)) if beats(points[other], points[place])]
        assert rank == max(better, default=-1) + 1


@settings(max_examples=60, deadline=None)
@given(POINTS)
def test_hypervolume_equals_the_cells_that_are_covered(points):
    m = points.shape[1]
    corner = np.full(m, 5.0)
    cells = np.array(list(itertools.product(range(5), repeat=m)), np.float64)  # unit cells, by their lower corner
    covered = (points[:, None] <= cells[None]).all(2).any(0).sum()
    assert pareto.hypervolume(points, corner) == pytest.approx(covered)
    curve = pareto.hypervolume_curve(points, corner)
    assert curve[-1] == pytest.approx(covered)
    assert (np.diff(curve) >= 0).all()
    assert curve[0] == pytest.approx(pareto.hypervolume(points[:1], corner))


@pytest.mark.parametrize("m", [3, 4])
def test_hypervolume_agrees_with_monte_carlo(m):
    rng = np.random.default_rng(m)
    points = np.abs(rng.normal(size=(60, m)))
    points /= np.linalg.norm(points, axis=1, keepdims=True)  # a sphere: all of them on the front
    points = 1 - points
    probes = rng.random((20_000, m))
    share = (points[:, None] <= probes[None]).all(2).any(0).mean()
    error = np.sqrt(share * (1 - share) / len(probes))
    assert abs(pareto.hypervolume(points, np.ones(m)) - share) < 5 * error


def test_infinite_points_take_no_part_in_hypervolume_and_reference():
    points = np.array([[1.0, 2.0], [2.0, 1.0], [np.inf, 0.0]])
    assert pareto.hypervolume(points, [3.0, 3.0]) == pytest.approx(3.0)
    assert pareto.reference_point(points) == pytest.approx([2.1, 2.1])
    assert pareto.hypervolume(np.empty((0, 2)), [1.0, 1.0]) == 0.0


def test_what_exceeds_limits_is_selected_last_and_ends_of_a_front_first():
    points = np.array([[0.0, 4.0], [1.0, 1.9], [1.1, 1.8], [4.0, 0.0], [3.0, 3.0], [-1.0, -1.0], [-2.0, -2.0]])
    violation = [0, 0, 0, 0, 0, 0.1, 0.5]
    assert pareto.ranks(points, violation).tolist() == [0, 0, 0, 0, 1, 2, 3]
    assert set(pareto.select(points, 2, violation)) == {0, 3}
    assert pareto.select(points, 7, violation)[-3:].tolist() == [4, 5, 6]


def test_correlations_and_each_resample_are_those_of_scipy():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 8, 20).astype(float)  # with ties
    y = x + rng.integers(0, 6, 20)
    found = ranking.correlations([*x, np.nan], [*y, 1.0], seed=1, draws=200)
    measures = {"Kendall": stats.kendalltau, "Spearman": stats.spearmanr, "Pearson": stats.pearsonr}
    counts = np.random.default_rng(1).multinomial(20, np.full(20, 1 / 20), size=200)
    for name, measure in measures.items():
        samples = [measure(np.repeat(x, c), np.repeat(y, c)).statistic for c in counts]
        assert found[name].mean == pytest.approx(measure(x, y).statistic)
        assert [found[name].low, found[name].high] == pytest.approx(np.quantile(samples, [0.025, 0.975]))


def test_a_gap_between_two_rankings_is_that_of_scipy():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(2, 15))
    first, second = target + 0.3 * rng.normal(size=(2, 15)), target + 3 * rng.normal(size=(2, 15))
    diverged = ([np.nan], [0.0], [0.0])  # one more candidate of the first group
    groups = ([[*v[0], *d], v[1]] for v, d in zip((first, second, target), diverged, strict=True))
    found = ranking.kendall_gap(*groups, seed=3, draws=200)
    random = np.random.default_rng(3)
    gaps = []
    for a, b, y in zip(first, second, target, strict=True):
        counts = [np.ones(15, int), *random.multinomial(15, np.full(15, 1 / 15), size=200)]
        drawn = [[np.repeat(values, c) for values in (a, b, y)] for c in counts]
        gaps.append([stats.kendalltau(a, y).statistic - stats.kendalltau(b, y).statistic for a, b, y in drawn])
    whole, *samples = np.mean(gaps, axis=0)
    assert found.mean == pytest.approx(whole)
    assert [found.low, found.high] == pytest.approx(np.quantile(samples, [0.025, 0.975]))
    assert found.clear


def test_correlation_of_what_is_constant_is_refused():
    with pytest.raises(RecloomError, match="no rank correlation"):
        ranking.correlations([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
