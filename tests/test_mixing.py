"""Components of all plugins in pairs: every two of them train together."""

from __future__ import annotations

import itertools
import math
import warnings
from importlib.util import find_spec
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from recloom import quiet
from recloom.errors import RecloomError
from recloom.features import FeatureSchema
from recloom.plugins import catalog
from recloom.search.slot import SlotSpace

NONE = "none"
LEFT_OUT = {  # in one process, on data without files of their own; the tests named run them
    "ShardedEmbeddingBag": "the strategy hybrid makes it of others: tests/plugins/test_dlrm_strategy.py",
    "TorchRecEmbeddingBag": "its extra, and tests/plugins/test_dlrm_torchrec.py",
    **({} if find_spec("fbgemm_gpu") else {"FbgemmEmbeddingBag": "its extra is not installed here"}),
    "NodeEmbeddingBag": "needs a file of vectors: tests/plugins/test_edge_nodes.py",
}
STRATEGIES = ("auto", "hybrid", "shadow_ma", "shadow_bmuf", "fr_ma", "local_sgd", "diloco")
"""Those that run on one rank; tests/plugins/test_shadowsync_ranks.py has the others, and several ranks."""

AXES = {
    "interaction": [entry.name for entry in catalog().interactions],
    "sequence_encoder": [NONE, *(entry.name for entry in catalog().sequence_encoders)],
    "embedding": [entry.name for entry in catalog().embeddings if entry.name not in LEFT_OUT],
    "strategy": list(STRATEGIES),
}


def pairwise(axes: dict[str, list[str]]) -> list[dict[str, str]]:
    """Return combinations in which every two options of two axes meet: greedily, those with most new pairs first."""
    names = list(axes)
    wanted = {
        frozenset([(a, x), (b, y)]) for a, b in itertools.combinations(names, 2) for x in axes[a] for y in axes[b]
    }
    every = [dict(zip(names, options, strict=True)) for options in itertools.product(*axes.values())]
    found = []
    while wanted:
        best = max(every, key=lambda c: sum(frozenset(pair) in wanted for pair in itertools.combinations(c.items(), 2)))
        found.append(best)
        wanted -= {frozenset(pair) for pair in itertools.combinations(best.items(), 2)}
    return found


COMBINATIONS = pairwise(AXES)


class Losses(pl.Callback):
    """Keeps the losses of training steps."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(float(outputs["loss"]))


def test_every_pair_is_met() -> None:
    for a, b in itertools.combinations(AXES, 2):
        assert {(c[a], c[b]) for c in COMBINATIONS} == set(itertools.product(AXES[a], AXES[b]))
    assert len(COMBINATIONS) < 1.4 * len(AXES["sequence_encoder"]) * len(AXES["strategy"])


@pytest.fixture(scope="module")
def data() -> Any:
    kind: Any = catalog().datamodules.load("SyntheticBehaviour")
    return kind(num_train=128, num_val=64, num_test=0, batch_size=64, num_workers=0)


@pytest.mark.parametrize("part", range(4))
def test_they_train_together(part: int, data: Any) -> None:
    quiet.hush()
    for combination in COMBINATIONS[part::4]:
        losses = train(data, **combination)
        assert len(losses) == 2, combination
        assert all(map(math.isfinite, losses)), combination


def train(data: Any, interaction: str, sequence_encoder: str, embedding: str, strategy: str) -> list[float]:
    """Train DLRM, put together of these, for two steps; return their losses."""
    slots: dict[str, Any] = {"interaction": catalog().interactions.load(interaction)}
    slots["embedding"] = catalog().embeddings.load(embedding)
    if sequence_encoder != NONE:
        slots["sequence_encoder"] = catalog().sequence_encoders.load(sequence_encoder)
    torch.manual_seed(0)
    model: Any = catalog().models.load("DLRM")
    sizes = {"embedding_dim": 8, "dense_arch": (), "over_arch": (16,)}
    module = model(data.schema, **sizes, **slots)
    losses = Losses()
    kind: Any = catalog().strategies.load(strategy) if strategy != "auto" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            strategy=strategy if kind is None else kind(),
            accelerator="cpu",
            devices=1,
            max_steps=2,
            callbacks=[losses],
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=data)
    return losses.seen


def test_a_slot_can_be_searched() -> None:
    """A graph of Rankitect's blocks in the slot of HSNN's item tower: built there, priced as what is there."""
    quiet.hush()
    tower = catalog().search_spaces.load("BlockSpace")(nodes=4)
    whole = {"class_path": "recloom_hsnn.model.HSNN", "init_args": {"monn": {"size": "tiny"}}}
    space = SlotSpace(tower, whole, "item_tower", side="item", outputs=32)
    data: Any = catalog().datamodules.load("RetrievalClicks")(num_items=50, num_users=20, num_train=100)
    schema = FeatureSchema.from_dict(data.schema)
    rng = np.random.default_rng(0)
    for _ in range(5):
        genotype = space.canonical(space.mutate(space.sample(rng), rng))
        assert space.valid(genotype)
        model = space.build(genotype, schema)
        assert type(model.item_encoder.tower).__name__ == "GraphModel"
        assert space.program(genotype, schema).macs == model.item_encoder.tower.program().macs > 0
    assert "item_tower" not in whole["init_args"]
    with pytest.raises(RecloomError, match="has 'item_tower' already"):
        SlotSpace(tower, space.model_config(genotype), "item_tower")
