"""What the experiment measures of trained models: recall by share, items that come and go, the table of models."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from recloom.metrics import NormalizedEntropy
from recloom.retrieval.cascade import Cascade, combine
from recloom.retrieval.evaluation import measure
from recloom.retrieval.exhaustive import Exhaustive
from recloom.retrieval.index import Floats, RetrievalIndex
from recloom.retrieval.ivf import IVF
from recloom.retrieval.module import RetrievalModule, encode
from recloom.retrieval.vectors import FlatIP
from recloom_hsnn.compare import K, Searched, Setting, exhaustive, searched, train, world
from recloom_hsnn.model import HSNN
from recloom_hsnn.retrieval import HSNNIndex

SHARES = (0.01, 0.02, 0.035, 0.05, 0.06)


def recalls(at: Searched, nodes: tuple[int, ...] | None = None, **options: Any) -> dict[str, Any]:
    """Return HSNN's recall at `SHARES` (nodes counted), its milliseconds and how evenly leaves are used.

    Args:
        at: The model and its exhaustive best.
        nodes: Nodes by k-means on the items; None: those of the model.
        options: Further options of the index.
    """
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


def freshness(at: Searched, share: float = 0.035) -> dict[str, float]:
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


def models(at: Searched, first: RetrievalModule, large: Searched, nes: dict[str, float]) -> list[dict[str, Any]]:
    """Return the paper's table 1 in shape: models and indexes with NE, multiply-adds, CPU time and recall of the truth.

    Args:
        at: HSNN with the small ranker.
        first: The two tower model.
        large: HSNN with the larger ranker.
        nes: Test NE of "two tower", "joint" and "large".
    """
    truth = np.argsort(-at.data.world.utility(np.arange(len(at.users))), axis=1)[:, :K]
    rows = at.data.item_rows()
    codes, users = encode(first.item_encoder, rows), encode(first.user_encoder, at.data.user_rows(len(at.users)))
    found: list[dict[str, Any]] = []

    def add(name: str, ne: str, index: RetrievalIndex, macs: int, vectors: tuple[Floats, Floats]) -> None:
        index.build(at.ids, vectors[0])
        one = measure(index, vectors[1], truth, timed=20)
        scored = one.scored or 1.0  # faiss's own indexes count no evaluations
        facts = {"macs": macs * scored * len(at.ids), "milliseconds": one.milliseconds, "recall": one.recall}
        found.append({"model": name, "ne": nes[ne], **facts})

    add("two tower, all items", "two tower", FlatIP(first.parts()), codes.shape[1], (codes, users))
    near = IVF(first.parts())
    add("two tower, IVF", "two tower", near, codes.shape[1], (codes, users))
    lists = int(near.stats()["lists"])
    found[-1]["macs"] = codes.shape[1] * (lists + len(at.ids) * min(near.probes, lists) / lists)
    for each, name, ne in ((at, "tiny", "joint"), (large, "larger", "large")):
        model, own, cost = each.model, (each.codes, each.users), evaluation_macs(each.model)
        add(f"MoNN {name}, all items", ne, Exhaustive(model.parts()), cost, own)
        add(f"HSNN, MoNN {name}, 2% scored", ne, HSNNIndex(model.parts(), share=0.02), cost, own)
    return found


def evaluation_macs(model: HSNN) -> int:
    """Return the multiply-adds of scoring one item, once the user's part is made."""
    widths = [model.item_sizes.item * model.item_sizes.dim, *model.monn.hidden, model.tasks]
    return sum(before * after for before, after in pairwise(widths))


def misaligned(setting: Setting, seed: int) -> dict[str, float]:
    """Return recall and node NE of nodes learned jointly and by k-means, where features are not what users mind.

    The node NE of k-means is the better one of nodes as they were trained with and of nodes made anew at the end.
    """
    data = world(setting, seed, "misaligned")
    found: dict[str, float] = {}
    kinds: dict[str, dict[str, Any]] = {"learned": {}, "kmeans": {"source": "kmeans", "grad_scale": 0.0}}
    for name, options in kinds.items():
        model, ne = train("hsnn", data, setting, seed, **options)
        at = searched(model, data, setting.queries)
        nodes = None if name == "learned" else setting.sizes
        for kind, rated in (("", 0.05), ("_plain", 0.0)):
            index = HSNNIndex(at.model.parts(), share=0.04, rated=rated, nodes=nodes)
            index.build(at.ids, at.codes)
            found[f"{name}{kind}"] = measure(index, at.users, at.reference, timed=0).recall
        found |= {f"{name}_ne": ne, f"{name}_node_ne": node_ne(at.model, data)}
        if name == "kmeans":
            at.model.index.begin(at.model.recent.known())
            found["kmeans_node_ne"] = min(found["kmeans_node_ne"], node_ne(at.model, data))
    return found


@torch.no_grad()
def node_ne(model: HSNN, data: Any) -> float:
    """Return the test NE of items seen as their leaf's vector."""
    metric = NormalizedEntropy()
    for batch in data.test_dataloader():
        users, items = model.codes(batch)
        hard = [one.hard for one in model.assign(items, model.alpha(1.0))]
        metric.update(model.node_logits(users, hard)[-1][:, 0], batch.labels, batch.weights)
    return float(metric.compute())
