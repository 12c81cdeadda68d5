"""Models of one generated world, trained side by side for the experiment and the benchmark."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from recloom.data.retrieval import RetrievalClicks
from recloom.optim import OptimizerConfig
from recloom.retrieval.exhaustive import Exhaustive
from recloom.retrieval.index import Floats, Ids
from recloom.retrieval.module import RetrievalModule, encode
from recloom.training import train_and_test
from recloom_hsnn.model import HSNN
from recloom_hsnn.monn import MoNN
from recloom_hsnn.scorer import MoNNConfig
from recloom_hsnn.settings import NodesConfig
from recloom_hsnn.two_tower import TwoTower

K = 100
RATES = {"ranker": 0.006, "hsnn": 0.006, "two tower": 0.01}  # two tower: the best of .003, .006 and .01


@dataclass(frozen=True)
class Setting:
    """Sizes of a comparison.

    Args:
        rows: Training impressions.
        evaluated: Validation impressions, and as many of the test.
        epochs: Passes over them.
        items: Items of the world.
        queries: Users who search.
        sizes: Nodes of each level.
        large: Items of the large catalogue, none of them trained on.
        large_sizes: Nodes there.
        large_queries: Users who search there.
        shares: Shares scored there.
        ranker: Size of the larger MoNN in the table of models.
    """

    rows: int = 2_000_000
    evaluated: int = 100_000
    epochs: int = 1
    items: int = 50_000
    queries: int = 200
    sizes: tuple[int, ...] = (64, 512)
    large: int = 500_000
    large_sizes: tuple[int, ...] = (64, 2048)
    large_queries: int = 30
    shares: tuple[float, ...] = (0.003, 0.006, 0.018, 0.03)
    ranker: Literal["small", "medium"] = "small"


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


def world(setting: Setting, seed: int, features: Literal["aligned", "misaligned"] = "aligned") -> RetrievalClicks:
    """Return the data."""
    return RetrievalClicks(
        num_train=setting.rows,
        num_val=setting.evaluated,
        num_test=setting.evaluated,
        num_items=setting.items,
        seed=seed,
        batch_size=2048,
        features=features,
    )


def train(
    name: str, data: RetrievalClicks, setting: Setting, seed: int, monn: MoNNConfig | None = None, **nodes: Any
) -> tuple[RetrievalModule, float]:
    """Train "ranker", "two tower" or "hsnn"; return the model and its test NE."""
    pl.seed_everything(seed, verbose=False)
    steps = setting.epochs * setting.rows // 2048
    optimizer = OptimizerConfig(
        dense="Adam",
        dense_lr=RATES[name],
        sparse="rowwise_adagrad",
        sparse_lr=0.05,
        decay_start=10,
        decay_steps=int(1.1 * steps),
    )
    model: RetrievalModule
    if name == "hsnn":
        config = NodesConfig(sizes=setting.sizes, start=0.6, **nodes)
        model = HSNN(data.schema, monn=monn, optimizer=optimizer, nodes=config)
    elif name == "ranker":
        model = MoNN(data.schema, monn=monn, optimizer=optimizer)
    else:
        model = TwoTower(data.schema, optimizer=optimizer)
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


def one_thread() -> None:
    """Have torch and faiss use one thread: times are of one core."""
    import faiss

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
