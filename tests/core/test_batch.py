"""Jagged tensors and batches: slices, selections and joins against plain lists."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recloom.batch import KeyedJaggedTensor, Sequences

Bags = list[list[list[int]]]  # key, sample, ids


@st.composite
def bags(draw: st.DrawFn) -> Bags:
    keys, samples = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    return [[draw(st.lists(st.integers(0, 99), max_size=4)) for _ in range(samples)] for _ in range(keys)]


def build(value: Bags) -> KeyedJaggedTensor:
    flat = [item for key in value for bag in key for item in bag]
    lengths = torch.tensor([len(bag) for key in value for bag in key])
    values = torch.tensor(flat, dtype=torch.int64)
    return KeyedJaggedTensor([f"k{i}" for i in range(len(value))], values, lengths=lengths, weights=values / 2)


def read(tensor: KeyedJaggedTensor) -> Bags:
    assert tensor.weights is None or torch.equal(tensor.weights * 2, tensor.values.float())
    found: Bags = []
    for key in tensor.keys:
        values, lengths = tensor[key]
        found.append([part.tolist() for part in values.split(lengths.tolist())])
    return found


@settings(max_examples=80, deadline=None)
@given(bags(), st.data())
def test_rows_select_and_keys_match_plain_lists(value: Bags, data: st.DataObject) -> None:
    tensor = build(value)
    samples = len(value[0])
    assert tensor.stride == samples
    assert read(tensor) == value
    start = data.draw(st.integers(0, samples))
    end = data.draw(st.integers(start, samples))
    if end > start:
        assert read(tensor.rows(start, end)) == [key[start:end] for key in value]
    order = data.draw(st.permutations(range(len(value))))
    assert read(tensor.select([f"k{i}" for i in order])) == [value[i] for i in order]


def test_one_hot_is_the_same_as_bags_of_one() -> None:
    values = torch.arange(12)
    short = KeyedJaggedTensor(["a", "b", "c"], values)
    long = KeyedJaggedTensor(["a", "b", "c"], values, lengths=torch.ones(12, dtype=torch.int64))
    assert short.one_hot
    assert short.bag_offsets is None
    assert read(short.rows(1, 3)) == read(long.rows(1, 3))
    assert torch.equal(short.offsets, long.offsets)


def test_padded_histories_end_with_the_latest_step() -> None:
    values = torch.arange(1, 7).repeat_interleave(2).view(6, 2)
    times = torch.tensor([100, 200, 10, 20, 30, 40])
    histories = Sequences(["item", "category"], values, torch.tensor([0, 2, 2, 6]), times)
    padded, mask = histories.padded()
    assert padded[..., 0].tolist() == [[0, 0, 1, 2], [0, 0, 0, 0], [3, 4, 5, 6]]
    assert mask.tolist() == [[False, False, True, True], [False] * 4, [True] * 4]
    short, short_mask = histories.padded(3)
    assert short[..., 1].tolist() == [[0, 1, 2], [0, 0, 0], [4, 5, 6]]
    assert short_mask.sum(1).tolist() == [2, 0, 3]
    now = torch.tensor([250, 7, 41])
    assert histories.gaps(now, 3).tolist() == [[0.0, 150.0, 50.0], [0.0] * 3, [21.0, 11.0, 1.0]]
    empty = Sequences(["item"], values[:0, :1], torch.zeros(3, dtype=torch.int64), times[:0])
    assert empty.padded(2)[1].tolist() == [[False] * 2] * 2
    assert empty.gaps(now[:2], 2).tolist() == [[0.0] * 2] * 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=6), st.data())
def test_histories_are_cut_and_joined_as_lists_are(histories: list[list[int]], data: st.DataObject) -> None:
    def build_histories(lists: list[list[int]]) -> Sequences:
        flat = torch.tensor([item for row in lists for item in row], dtype=torch.int32)
        bounds = torch.tensor([0, *[len(row) for row in lists]]).cumsum(0)
        return Sequences(["item"], flat[:, None], bounds, flat.long() * 7)

    def read_histories(value: Sequences) -> list[list[int]]:
        assert value.timestamps is not None
        assert torch.equal(value.values[:, 0].long() * 7, value.timestamps)
        return [part.flatten().tolist() for part in value.values.split(value.lengths.tolist())]

    cut = data.draw(st.integers(0, len(histories)))
    whole = build_histories(histories)
    parts = [whole.rows(0, cut), whole.rows(cut, len(histories))]
    assert read_histories(parts[0]) == histories[:cut]
    assert read_histories(parts[1]) == histories[cut:]
    assert read_histories(Sequences.concat(parts)) == histories
    assert parts[0].values.dtype == torch.int64
