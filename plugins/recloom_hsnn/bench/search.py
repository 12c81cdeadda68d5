"""CPU time of a query: HSNN beside the exhaustive ranker and faiss's own indexes, on one thread.

    recloom bench hsnn                          # 50,000 items, untrained weights: times, not recall
    recloom bench hsnn --items 500000 --nodes 64,2048

The floor of a search is the multiply-adds of what it scores, at the rate of a plain matrix product here, and the bytes
of the items that it rates, at the rate of a plain sum over memory. Both rates are printed. Times are medians of CPU
milliseconds, one query at a time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from recloom.data.retrieval import RetrievalClicks
from recloom.retrieval.exhaustive import Exhaustive
from recloom.retrieval.hnsw import HNSW
from recloom.retrieval.ivf import IVF
from recloom.retrieval.module import encode
from recloom.retrieval.vectors import FlatIP
from recloom_hsnn.compare import one_thread
from recloom_hsnn.model import HSNN
from recloom_hsnn.retrieval import HSNNIndex
from recloom_hsnn.settings import NodesConfig
from recloom_hsnn.two_tower import TwoTower


def main(argv: list[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="recloom bench hsnn", description="CPU time of a query, by index.")
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--nodes", default="64,512", help="nodes of each level (default: 64,512)")
    parser.add_argument("--shares", default="0.01,0.02,0.035,0.06", help="shares scored")
    options = parser.parse_args(argv)
    one_thread()
    torch.manual_seed(0)
    sizes = [int(part) for part in options.nodes.split(",")]
    data = RetrievalClicks(num_items=options.items, num_users=max(options.queries, 10))
    model = HSNN(data.schema, nodes=NodesConfig(sizes=sizes)).eval()
    items, users = data.item_rows(), encode(model.user_encoder, data.user_rows(options.queries))
    ids, codes = items.ids.numpy(), encode(model.item_encoder, items)
    exact = Exhaustive(model.parts())
    exact.build(ids, codes)
    spent = _median(lambda user: exact.search(user, 100), users)
    first, *hidden = model.monn.hidden
    macs = model.item_dim * first + sum(a * b for a, b in zip([first, *hidden], [*hidden, 1], strict=True))
    rate, reads = _rate(), _reads()
    print(f"{options.items:,} items, {macs:,} multiply-adds an item, {rate / 1e9:.1f} G multiply-adds a second", end="")
    print(f", {reads / 1e9:.1f} GB a second")
    print(f"{'index':28}{'ms':>10}{'of exhaustive':>15}{'floor ms':>10}")
    floor = 1000 * macs * options.items / rate
    print(f"{'Exhaustive':28}{spent:10.2f}{'':15}{floor:10.2f}")
    index = HSNNIndex(model.parts(), nodes=sizes)
    index.build(ids, codes)
    for share in map(float, options.shares.split(",")):
        index.share = share
        took = _median(lambda user: index.search(user, 100), users)
        rated = 4 * model.item_dim * options.items * max(index.rated, 2 * share)
        least = share * floor + 1000 * rated / reads
        print(f"{f'HSNN, {100 * share:g}% scored':28}{took:10.2f}{spent / took:14.1f}x{least:10.2f}")
    _vector_indexes(data, options.queries, spent)
    return 0


def _vector_indexes(data: RetrievalClicks, queries: int, spent: float) -> None:
    """Print the rows of faiss's indexes, for a two tower model; `spent` are the exhaustive ranker's milliseconds."""
    tower, items = TwoTower(data.schema, dim=32).eval(), data.item_rows()
    codes, users = encode(tower.item_encoder, items), encode(tower.user_encoder, data.user_rows(queries))
    for name, kind in (("two tower FlatIP", FlatIP), ("two tower IVF", IVF), ("two tower HNSW", HNSW)):
        other = kind(tower.parts())
        other.build(items.ids.numpy(), codes)
        took = _median(lambda user, other=other: other.search(user, 100), users)  # type: ignore[misc]
        print(f"{name:28}{took:10.2f}{spent / took:14.1f}x")


def _median(search: Callable[[np.ndarray], object], users: np.ndarray) -> float:
    times = []
    for row in range(len(users)):
        start = time.process_time()
        search(users[row : row + 1])
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times)


def _rate() -> float:
    """Return the multiply-adds a second of a matrix product that stays in cache."""
    left, right = torch.randn(4096, 128), torch.randn(128, 64)
    best = float("inf")
    for _ in range(20):
        start = time.process_time()
        left @ right
        best = min(best, time.process_time() - start)
    return 4096 * 128 * 64 / best


def _reads() -> float:
    """Return the bytes a second of a sum over 64 MiB."""
    values = torch.ones(1 << 24)
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        values.sum()
        best = min(best, time.process_time() - start)
    return 4 * len(values) / best
