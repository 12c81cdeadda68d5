"""Models of one generated world trained and searched side by side, for the experiment and the benchmark."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from recloom.data.retrieval import RetrievalClicks
from recloom.optim import OptimizerConfig
from recloom.retrieval.cascade import Cascade, combine
from recloom.retrieval.evaluation import measure
from recloom.retrieval.exhaustive import Exhaustive
from recloom.retrieval.index import Floats, Ids
from recloom.retrieval.module import RetrievalModule, encode
from recloom.training import train_and_test
from recloom_hsnn.model import HSNN
from recloom_hsnn.monn import MoNN, TwoTower
from recloom_hsnn.nodes import NodesConfig
from recloom_hsnn.retrieval import HSNNIndex

SHARES = (0.02, 0.035, 0.05, 0.06)
K = 100


@dataclass(frozen=True)
class Setting:
    """Sizes of a comparison.

    Args:
        rows: Training impressions.
        epochs: Passes over them.
        items: Items of the world.
        queries: Users who search.
        sizes: Nodes of each level.
        large: Items of the large catalogue, none of them trained on.
        large_sizes: Nodes there.
        large_queries: Users who search there.
        shares: Shares scored there.
    """

    rows: int = 2_000_000
    epochs: int = 1
    items: int = 50_000
    queries: int = 200
    sizes: tuple[int, ...] = (32, 512)
    large: int = 500_000
    large_sizes: tuple[int, ...] = (64, 2048)
    large_queries: int = 30
    shares: tuple[float, ...] = (0.01, 0.018, 0.03)


@dataclass
class Searched:
    """A trained model with its items' and users' codes, and the exhaustive scorer's best.

    Args:
        data: The world.
        model: The model.
        ids: N ids.
        codes: Their codes.
        users: U users' codes.
        reference: U x K best ids.
        milliseconds: CPU time of an exhaustive query.
    """

    data: RetrievalClicks
    model: HSNN
    ids: Ids
    codes: Floats
    users: Floats
    reference: Ids
    milliseconds: float


def world(setting: Setting, seed: int) -> RetrievalClicks:
    """Return the data."""
    return RetrievalClicks(num_train=setting.rows, num_items=setting.items, seed=seed, batch_size=2048)


def train(name: str, data: RetrievalClicks, setting: Setting, seed: int, **nodes: Any) -> tuple[RetrievalModule, float]:
    """Train "ranker", "two tower" or "hsnn"; return the model and its test NE."""
    pl.seed_everything(seed, verbose=False)
    steps = setting.epochs * setting.rows // 2048
    optimizer = OptimizerConfig(
        dense="Adam",
        dense_lr=0.006,
        sparse="rowwise_adagrad",
        sparse_lr=0.05,
        decay_start=10,
        decay_steps=int(1.1 * steps),
    )
    model: RetrievalModule
    if name == "hsnn":
        config = NodesConfig(sizes=setting.sizes, start=0.6, **nodes)
        model = HSNN(data.schema, optimizer=optimizer, nodes=config)
    else:
        kinds: dict[str, Any] = {"ranker": MoNN, "two tower": TwoTower}
        model = kinds[name](data.schema, optimizer=optimizer)
    done = train_and_test(model, data, epochs=setting.epochs, keep_best=False, accelerator="cpu")
    return model.eval(), done.metrics["ne"]


def searched(model: RetrievalModule, data: RetrievalClicks, queries: int) -> Searched:
    """Encode the world's items and some users; find the best of all items."""
    assert isinstance(model, HSNN)
    items = data.item_rows()
    ids, codes = items.ids.numpy(), encode(model.item_encoder, items)
    users = encode(model.user_encoder, data.user_rows(queries))
    reference, spent = exhaustive(model, ids, codes, users)
    return Searched(data, model, ids, codes, users, reference, spent)


def exhaustive(model: RetrievalModule, ids: Ids, codes: Floats, users: Floats) -> tuple[Ids, float]:
    """Return the U x K best ids and the CPU milliseconds of a query."""
    index = Exhaustive(model.parts())
    index.build(ids, codes)
    start = time.process_time()
    found = index.search(users, K).ids
    return found, 1000 * (time.process_time() - start) / len(users)


def recalls(at: Searched, nodes: tuple[int, ...] | None = None, **options: Any) -> dict[str, Any]:
    """Return HSNN's recall at `SHARES` (nodes counted), its milliseconds and how evenly leaves are used."""
    index = HSNNIndex(at.model.parts(), nodes=nodes, **options)
    index.build(at.ids, at.codes)
    found: dict[str, Any] = {"stats": index.stats()}
    for share in SHARES:
        index.share = share
        one = measure(index, at.users, at.reference)
        found[f"{share:g}"] = {"recall": one.recall, "scored": one.scored, "milliseconds": one.milliseconds}
    return found


def cascade(at: Searched, first: RetrievalModule) -> dict[str, float]:
    """Return the recall of the cascade at `SHARES`."""
    index = Cascade(combine(first.parts(), at.model.parts()), candidates=K)
    index.build(at.ids, np.concatenate([encode(first.item_encoder, at.data.item_rows()), at.codes], axis=1))
    users = np.concatenate([encode(first.user_encoder, at.data.user_rows(len(at.users))), at.users], axis=1)
    found = {}
    for share in SHARES:
        index.candidates = int(share * len(at.ids))
        found[f"{share:g}"] = measure(index, users, at.reference, timed=0).recall
    return found


def freshness(at: Searched, share: float = 0.05) -> dict[str, float]:
    """Return what upserts cost, whether deleted items come back, recall after churn and of cold items.

    A tenth of the items is deleted; as many of 50 topics that no other items are of come instead.
    """
    model, data = at.model, at.data
    count = len(at.ids) // 10
    index = HSNNIndex(model.parts(), share=share)
    index.build(at.ids, at.codes)
    fresh = data.item_rows(data.world.make_items(count, batch=1, new_topics=50), first_id=len(at.ids))
    gone = np.random.default_rng(0).choice(at.ids, count, replace=False)
    index.delete(gone)
    start = time.process_time()
    for part in fresh.chunks(256):
        index.upsert(part.ids.numpy(), encode(model.item_encoder, part))
    spent = 1000 * (time.process_time() - start) / count
    back = int(np.isin(index.search(at.users, K).ids, gone).sum())
    ids = index.ids()
    codes = index.codes(ids)
    reference, _ = exhaustive(model, ids, codes, at.users)
    cold = fresh.ids.numpy()
    changed = measure(index, at.users, reference, {"cold": cold, "old": at.ids}, timed=0)
    rebuilt = HSNNIndex(model.parts(), share=share, nodes=[len(level) for level in index.tree.nodes])
    rebuilt.build(ids, codes)
    trained_nodes = HSNNIndex(model.parts(), share=share)
    trained_nodes.build(ids, codes)
    best = max(measure(each, at.users, reference, timed=0).recall for each in (rebuilt, trained_nodes))
    some = data.item_rows(data.world.make_items(count, batch=2), first_id=2 * len(at.ids))
    index.upsert(some.ids.numpy(), encode(model.item_encoder, some))
    ids = index.ids()
    reference, _ = exhaustive(model, ids, index.codes(ids), at.users)
    parts = measure(index, at.users, reference, {"cold": some.ids.numpy(), "trained": at.ids}, timed=0).segments
    return {
        "upsert_ms": spent,
        "returned_deleted": back,
        "churned": changed.recall,
        "rebuilt": best,
        "cold": parts["cold"],
        "trained": parts["trained"],
    }


def large(at: Searched, setting: Setting) -> dict[str, Any]:
    """Return recall and CPU time on a catalogue of items that the model never saw."""
    rows = at.data.item_rows(at.data.world.make_items(setting.large, batch=3))
    ids, codes = rows.ids.numpy(), encode(at.model.item_encoder, rows)
    users = at.users[: setting.large_queries]
    reference, spent = exhaustive(at.model, ids, codes, users)
    index = HSNNIndex(at.model.parts(), nodes=setting.large_sizes)
    index.build(ids, codes)
    found: dict[str, Any] = {"exhaustive_ms": spent}
    for share in setting.shares:
        index.share = share
        one = measure(index, users, reference)
        found[f"{share:g}"] = {"recall": one.recall, "scored": one.scored, "milliseconds": one.milliseconds}
    return found


def one_thread() -> None:
    """Have torch and faiss use one thread: times are of one core."""
    import faiss

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
