"""The contract of retrieval indexes: what comes and goes, filters, files; the same for every kind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from recloom.errors import DataError, RecloomError
from recloom.plugins import catalog
from recloom.retrieval import snapshot
from recloom.retrieval.build import build
from recloom.retrieval.cascade import combine
from recloom.retrieval.index import Filter, Parts, RetrievalIndex
from recloom.retrieval.rows import Rows, distinct
from recloom.testing import tiny_batch, tiny_schema

DIM = 8
KINDS = ("Exhaustive", "FlatIP", "IVF", "HNSW", "Cascade", "HSNN")


def inner(users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    return torch.einsum("ud,uld->ul", users, items)


def parts(kind: str) -> Parts:
    """Inner products, as a scorer and as what they are; for Cascade two of them side by side."""
    draw = np.random.default_rng(5)
    nodes = {"nodes1": draw.normal(size=(4, DIM)), "nodes2": draw.normal(size=(16, DIM))}
    tables = {**nodes, "parents2": np.arange(16) % 4, "kind": np.array([-1, 0])}
    one = Parts(DIM, DIM, kind != "HSNN", {"score": inner, "node1": inner, "node2": inner}, tables)
    return combine(one, one) if kind == "Cascade" else one


def wide(kind: str, codes: np.ndarray) -> np.ndarray:
    return np.concatenate([codes, codes], axis=1) if kind == "Cascade" else codes


def everything(kind: str) -> RetrievalIndex:
    """An index that looks at everything, so that what it finds is known."""
    options = {"IVF": {"lists": 8, "probes": 8}, "HNSW": {"ef_search": 2000}, "Cascade": {"candidates": 2000}}
    found = catalog().indexes.load(kind)(parts(kind), **options.get(kind, {}))
    if kind == "HSNN":
        found.share, found.beam = 2.0, 1.0
    return found


def brute(users: np.ndarray, ids: np.ndarray, codes: np.ndarray, k: int, keep: np.ndarray) -> np.ndarray:
    scores = np.where(keep, users @ codes.T, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.where(np.isneginf(np.take_along_axis(scores, order, 1)), -1, ids[order])
    return np.pad(found, ((0, 0), (0, k - found.shape[1])), constant_values=-1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_changes_equal_a_fresh_build(kind: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    index, known = everything(kind), {}
    ids = np.arange(0, 600, 2)
    codes = draw.normal(size=(300, DIM)).astype(np.float32)
    index.build(ids, wide(kind, codes))
    known.update(zip(ids.tolist(), codes, strict=True))
    for step in range(1000):
        some = draw.choice(800, size=draw.integers(1, 6), replace=False)
        if draw.random() < 0.5:
            fresh = draw.normal(size=(len(some), DIM)).astype(np.float32) * np.float32(3 if step % 50 == 7 else 1)
            index.upsert(some, wide(kind, fresh))
            known.update(zip(some.tolist(), fresh, strict=True))
            if step % 100 == 0:  # the next search sees it
                assert np.isin(some, index.search(wide(kind, fresh[:1]), len(index)).ids).all()
        else:
            gone = index.delete(some)
            assert gone == sum(known.pop(item, None) is not None for item in some.tolist())
    ids = np.array(sorted(known))
    codes = np.stack([known[item] for item in ids.tolist()])
    assert np.array_equal(index.ids(), ids)
    assert len(index) == len(ids)
    assert np.array_equal(index.codes(ids), wide(kind, codes))
    fresh = everything(kind)
    fresh.build(ids, wide(kind, codes))
    users = draw.normal(size=(7, DIM)).astype(np.float32)
    wanted = brute(users, ids, codes, 20, np.ones((7, len(ids)), bool))
    for each in (index, fresh, reloaded(index, kind, tmp_path)):
        assert np.array_equal(each.search(wide(kind, users), 20).ids, wanted)
        np.testing.assert_allclose(each.search(wide(kind, users), 1).scores[:, 0], (users @ codes.T).max(1), rtol=1e-4)


def reloaded(index: RetrievalIndex, kind: str, folder: Path) -> RetrievalIndex:
    index.save(folder)
    found = everything(kind).load(folder)
    users = wide(kind, np.random.default_rng(2).normal(size=(5, DIM)).astype(np.float32))
    assert np.array_equal(found.search(users, 30).ids, index.search(users, 30).ids)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_filters_return_no_banned_id_and_k_items_whenever_k_exist(kind: str) -> None:
    draw = np.random.default_rng(3)
    options = {"IVF": {"probes": 1}, "HNSW": {"ef_search": 10}, "Cascade": {"candidates": 20, "first": "IVF"}}
    index = catalog().indexes.load(kind)(parts(kind), **options.get(kind, {}))  # as narrow as can be
    if kind == "HSNN":
        index.share, index.beam = 0.02, 0.1
    ids = draw.permutation(5000)[:1000]
    codes = draw.normal(size=(1000, DIM)).astype(np.float32)
    index.build(ids, wide(kind, codes))
    users = draw.normal(size=(6, DIM)).astype(np.float32)
    seen = [draw.choice(ids, size=count, replace=False) for count in (0, 1, 5, 50, 300, 995)]
    for allowed in (None, ids[:3], ids[:40], np.append(ids[:200], 999_999)):
        for banned in (None, ids[:20]):
            found = index.search(wide(kind, users), 10, Filter(allowed, banned, seen)).ids
            keep = np.ones((6, 1000), bool)
            keep &= True if allowed is None else np.isin(ids, allowed)
            keep &= True if banned is None else ~np.isin(ids, banned)
            keep &= ~np.stack([np.isin(ids, own) for own in seen])
            for user in range(6):
                got = found[user][found[user] >= 0]
                assert len(set(got.tolist())) == len(got) == min(10, int(keep[user].sum())), (kind, user)
                assert np.isin(got, ids[keep[user]]).all()
    exact = everything(kind)
    exact.build(ids, wide(kind, codes))
    keep = ~np.stack([np.isin(ids, own) for own in seen])
    assert np.array_equal(
        exact.search(wide(kind, users), 10, Filter(seen=seen)).ids, brute(users, ids, codes, 10, keep)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_index_and_wrong_input(kind: str) -> None:
    index = everything(kind)
    width = index.parts.item_dim
    index.build(np.empty(0, np.int64), np.empty((0, width), np.float32))
    users = np.ones((2, width), np.float32)
    assert (index.search(users, 3).ids == -1).all()
    assert index.delete(np.array([4])) == 0
    index.upsert(np.array([4]), np.ones((1, width), np.float32))
    assert index.search(users, 2).ids.tolist() == [[4, -1], [4, -1]]
    for ids, codes, text in (
        ([1, 1], np.ones((2, width)), "id 1 is given twice"),
        ([-3], np.ones((1, width)), "has the id -3"),
        ([1], np.full((1, width), np.nan), "not all finite"),
        ([1], np.ones((1, width + 1)), "shape"),
    ):
        with pytest.raises(RecloomError, match=text):
            index.upsert(np.array(ids), codes)
    with pytest.raises(RecloomError, match="k is 0"):
        index.search(users, 0)
    assert len(index) == 1


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("FlatIP", {}, "FlatIP searches inner products"),
        ("HSNN", {"shair": 0.1}, "no option of HSNN named 'shair'"),
        ("HSNN", {"share": "x"}, "share is 'x'\n  Its type is float"),
        ("HSNN", {"seed": True}, "seed is True"),
        ("HSNN", {"share": 2}, "share is 2"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_exported(
    kind: str, options: dict[str, object], said: str, tmp_path: Path
) -> None:
    model = Mock(spec=["eval", "user_encoder", "item_encoder"])  # encoders that nothing could export
    model.eval.return_value.parts.return_value = parts("HSNN")
    with pytest.raises(RecloomError, match=said):
        build(tmp_path / "index", model, Mock(), kind, options)
    assert not list(tmp_path.iterdir())


def test_a_crash_while_writing_leaves_the_old_snapshot(tmp_path: Path) -> None:
    """A process is killed in the middle of a write; the folder is read, and written again."""
    first = snapshot.write(tmp_path, lambda folder: (folder / "items").write_text("old"))
    script = f"""
import os, signal
from pathlib import Path
from recloom.retrieval import snapshot
def save(folder):
    (folder / "items").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
snapshot.write(Path({str(tmp_path)!r}), save)
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path / "snapshots")) == 2
    assert snapshot.current(tmp_path) == first
    for text in ("new", "newer", "newest"):
        last = snapshot.write(tmp_path, lambda folder, text=text: (folder / "items").write_text(text))
    assert snapshot.current(tmp_path) == last
    assert (last / "items").read_text() == "newest"
    assert len(os.listdir(tmp_path / "snapshots")) == 2  # the last two; nothing of the crash
    (last / "items").write_text("cut")
    with pytest.raises(DataError, match="missing or cut short"):
        snapshot.current(tmp_path)


def test_rows_come_back_from_a_file(tmp_path: Path) -> None:
    schema = tiny_schema(histories=True)
    batch = tiny_batch(schema, rows=9)
    rows = Rows(torch.arange(9), batch, schema)
    rows.save(tmp_path / "rows.parquet")
    found = Rows.load(tmp_path / "rows.parquet", schema)
    assert torch.equal(found.ids, rows.ids)
    assert torch.equal(found.batch.dense_features, batch.dense_features)
    assert torch.equal(found.batch.sparse_features.values, batch.sparse_features.values)
    assert torch.equal(found.batch.sequences["history"].values, batch.sequences["history"].values)
    twice = Rows.concat([found.slice(3, 7), found.slice(0, 5)])
    assert distinct(twice).ids.tolist() == list(range(7))
    pq.write_table(pq.read_table(tmp_path / "rows.parquet").drop(["id"]), tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="no column 'id'"):
        Rows.load(tmp_path / "bad.parquet", schema)
