"""Properties that hold for whatever one makes up: partitions of streams, estimators on sets, codes of architectures.

Jagged tensors have theirs in core/test_batch.py, indexes in core/test_retrieval.py.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recloom.data.streams.stream import EventStream
from recloom.errors import RecloomError
from recloom.features import DenseFeature, FeatureSchema, SparseFeature
from recloom.plugins import catalog
from recloom.search.space import SearchSpace
from recloom_distkernels.estimators import GramRepair, SetKernel
from recloom_distkernels.pairwise import pairwise_divergences
from recloom_distkernels.samplesets import SampleSets
from recloom_edge import kernels, partition

SCHEMA = FeatureSchema(
    dense=(DenseFeature("a"), DenseFeature("b")), sparse=tuple(SparseFeature(f"c{i}", 20) for i in range(4))
)

# Partitions


@st.composite
def streams(draw: st.DrawFn) -> EventStream:
    """Up to 60 events between up to 6 sources and 5 destinations."""
    events = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=60))
    source, destination = (torch.tensor(side, dtype=torch.int32) for side in zip(*events, strict=True))
    times = torch.arange(len(events), dtype=torch.int64)
    return EventStream(source, destination, times, 6, 5, bounds=(len(events), len(events)))


@settings(max_examples=60, deadline=None)
@given(streams(), st.lists(st.booleans(), min_size=11, max_size=11), st.integers(1, 60), st.permutations(range(6)))
def test_partitions(stream: EventStream, cut: list[bool], budget: int, renamed: list[int]) -> None:
    mask = torch.tensor(cut)
    levels = partition.event_levels(stream, mask).tolist()
    ends = list(zip(stream.source.tolist(), (stream.destination + stream.node_offset).tolist(), strict=True))
    for after, (u, v) in enumerate(ends):  # an event is one step after the later of those that it waits for
        waits = [levels[e] for e in range(after) if any(n in ends[e] and not cut[n] for n in (u, v))]
        assert levels[after] == 1 + max(waits, default=0)
    found = partition.partition(stream, mask)
    assert found.steps == max(levels)
    assert 0 <= found.cut <= found.dependencies <= 2 * len(stream)
    assert kernels.critical_path(stream.source, stream.destination, stream.node_offset, ~mask)[0] == found.steps
    more = mask.clone()
    more[int(partition.activity(stream).argmax())] = True
    assert partition.partition(stream, more).steps <= found.steps, "to decouple one node more lengthens no path"
    assert partition.partition(stream, torch.ones(11, dtype=torch.bool)).steps == 1
    other = EventStream(
        torch.tensor(renamed, dtype=torch.int32)[stream.source.long()],
        *(stream.destination, stream.time, 6, 5),
        bounds=stream.bounds,
    )
    named = torch.cat([torch.empty_like(mask[:6]).scatter(0, torch.tensor(renamed), mask[:6]), mask[6:]])
    assert partition.event_levels(other, named).tolist() == levels, "names of nodes do not matter"
    for method in partition.METHODS:
        for segments in (1, 3):  # with three, paths wait for the states of decoupled nodes
            if partition.waiting_steps(stream, torch.ones(11, dtype=torch.bool), segments) <= budget:
                chosen = partition.within_budget(stream, budget, method, segments)
                assert partition.waiting_steps(stream, chosen, segments) <= budget
            else:
                with pytest.raises(RecloomError, match="use fewer segments"):
                    partition.within_budget(stream, budget, method, segments)


# Estimators

POINTS = st.floats(-100, 100, width=32).map(lambda x: round(x, 3))


@st.composite
def sets_of_points(draw: st.DrawFn) -> list[np.ndarray]:
    """Three to five sets of 5 to 9 different points of the plane."""
    sizes = draw(st.lists(st.integers(5, 9), min_size=3, max_size=5))
    total = sum(sizes)
    points = np.array(draw(st.lists(st.tuples(POINTS, POINTS), min_size=total, max_size=total, unique=True)))
    points = points + np.random.default_rng(total).normal(size=points.shape)
    return np.split(points, np.cumsum(sizes)[:-1])


@settings(max_examples=15, deadline=None)
@given(sets_of_points(), st.floats(0, 6.28), st.floats(-50, 50), st.sampled_from([0.01, 1.0, 300.0]), st.data())
def test_divergences(sets: list[np.ndarray], angle: float, shift: float, scale: float, data: st.DataObject) -> None:
    names = ["kl", "renyi:0.8", "l2", "js"]
    found = pairwise_divergences(SampleSets.from_list(sets), None, names, [3]).there
    order = data.draw(st.permutations(range(len(sets))))
    mixed = [points[::-1] for points in (sets[place] for place in order)]
    for (name, k), values in pairwise_divergences(SampleSets.from_list(mixed), None, names, [3]).there.items():
        wanted = found[name, k][order][:, order]
        torch.testing.assert_close(values, wanted, rtol=1e-9, atol=1e-9, msg="neither order matters")
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = [scale * points @ turn + shift for points in sets]
    free = [name for name in names if name != "l2"]  # l2 is that of densities, which a scale changes
    for key, values in pairwise_divergences(SampleSets.from_list(moved), None, free, [3]).there.items():
        torch.testing.assert_close(values, found[key], rtol=1e-5, atol=1e-5, msg=f"{key}: where and how large")
    torch.testing.assert_close(found["js", 3], found["js", 3].t(), rtol=1e-9, atol=1e-9)
    kernel = SetKernel("renyi:0.8").fit(sets)
    matrix = kernel.gram_.matrix()
    assert np.allclose(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix).min() > -1e-9 * max(1.0, np.abs(matrix).max())
    assert np.isfinite(kernel.transform(sets[::-1])).all()


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, (5, 5), elements=st.floats(-1e3, 1e3)), st.sampled_from(["clip", "flip", "shift", "square"]))
def test_repairs(values: np.ndarray, psd: str) -> None:
    gram = values + values.T
    size = max(1.0, np.abs(gram).max()) ** (2 if psd == "square" else 1)
    repair = GramRepair(psd).fit(gram)
    matrix = repair.repair_.matrix()
    assert np.linalg.eigvalsh(matrix).min() >= -1e-9 * size
    if psd != "shift":  # whose further rows stay as they are
        np.testing.assert_allclose(repair.transform(gram), matrix, atol=1e-8 * size)
    if psd != "square":
        np.testing.assert_allclose(GramRepair(psd).fit_transform(matrix), matrix, atol=1e-7 * size)


# Codes of architectures


@cache
def space(name: str) -> SearchSpace:
    kind = catalog().search_spaces.load(name)
    inner: dict[str, tuple[Any, ...]] = {"PIMSpace": (), "SlotSpace": ({"class_path": "MoNN"}, "item_tower")}
    if name in inner:  # spaces around another one
        return kind(catalog().search_spaces.load("NASRecSpace")(num_blocks=3), *inner[name])
    return kind()


@pytest.mark.parametrize("name", [entry.name for entry in catalog().search_spaces])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), garbage=st.lists(st.integers(-3, 40), min_size=8, max_size=8))
def test_codes(name: str, seed: int, garbage: list[int]) -> None:
    one, rng = space(name), np.random.default_rng(seed)
    first, second = one.sample(rng), one.sample(rng)
    broken = tuple((garbage * len(first))[: len(first)])
    changed = [one.mutate(first, rng), one.repair(one.crossover(first, second, rng)), one.repair(broken)]
    assert one.repair(broken) == changed[-1]
    for genotype in (first, *changed):
        assert one.valid(genotype)
        assert one.repair(genotype) == genotype
        document: Any = json.loads(json.dumps(one.to_json(genotype)))
        assert one.from_json(document) == genotype
        model = one.canonical(genotype)
        assert one.valid(model)
        assert one.canonical(model) == model
        assert np.array_equal(one.encode(genotype), one.encode(model))
        assert one.model_config(genotype) == one.model_config(model), "one model, whatever its dead parts say"
        works, same = one.program(genotype, SCHEMA), one.program(model, SCHEMA)
        assert (works.macs, works.parameters, works.table_bytes) == (same.macs, same.parameters, same.table_bytes)
        document[one.choices[seed % len(first)].name] = "nothing"
        with pytest.raises(RecloomError, match="nothing"):
            one.from_json(document)
