"""What the experiment measures: layers on the designed data, encoders side by side on one data set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recloom.plugins import catalog

if TYPE_CHECKING:
    from recloom.data.module import BlockDataModule
    from recloom.model import RankingModule

LAYERS = {
    "dot": ("dot", 1),
    "ind": ("ind", 1),
    "def": ("def", 1),
    "def, 4 heads": ("def", 4),
    "def, 8 heads": ("def", 8),
    "multi-head attention": ("mha", 8),
    "concatenation": ("concat", 1),
}
"""The published script's layers: kind and heads."""


@dataclass(frozen=True)
class Contender:
    """A model of histories.

    Args:
        encoder: Name of the sequence encoder; "" for none, "TBSM" for the whole model.
        options: Its options.
    """

    encoder: str
    options: Mapping[str, Any]


NO_HISTORY = "no history"
PLACES: dict[str, Contender] = {
    NO_HISTORY: Contender("", {}),
    "mean": Contender("MeanPooling", {}),
    "DIN": Contender("DIN", {}),
    "DIEN": Contender("DIEN", {}),
    "BST": Contender("Transformer", {"style": "bst", "time": "position"}),
    "SASRec": Contender("Transformer", {"style": "sasrec", "time": "position"}),
    "GRU": Contender("GRU", {}),
    "TSL dot": Contender("TSL", {"kind": "dot"}),
    "TSL": Contender("TSL", {"kind": "def"}),
    "TBSM": Contender("TBSM", {"time": "position"}),
}
"""Every model with what it knows of order by itself: places in the history, or nothing."""
GAPS = {name: Contender(c.encoder, {**c.options, "time": "gap"}) for name, c in PLACES.items() if c.encoder}
"""The same with real time gaps."""


@dataclass(frozen=True)
class Setting:
    """How the encoders are trained.

    Args:
        batch_size: Rows of a training batch.
        epochs: Passes over the training rows; validation chooses the best.
        embedding_dim: Width of the embeddings.
        over_arch: Hidden widths of the over arch of DLRM, in which all encoders but TBSM sit.
        optimizer: Options of OptimizerConfig.
    """

    batch_size: int
    epochs: int
    embedding_dim: int
    over_arch: tuple[int, ...]
    optimizer: Mapping[str, Any]


def designed_auc(layer: str, terms: int, frozen: bool, seed: int) -> float:
    """Return the test AUC in percent after one epoch in the published setting: batch 128, Adagrad 0.05."""
    import lightning.pytorch as pl

    from recloom.optim import OptimizerConfig
    from recloom.training import train_and_test

    pl.seed_everything(seed, verbose=False)
    kind, heads = LAYERS[layer]
    data = catalog().datamodules.load("DesignedSequences")(terms=terms, seed=seed, batch_size=128, num_workers=0)
    model = catalog().models.load("DesignedModel")(
        data.schema, kind=kind, heads=heads, frozen=frozen, optimizer=OptimizerConfig("Adagrad", 0.05)
    )
    return 100 * train_and_test(model, data, keep_best=False, accelerator="cpu").metrics["auc"]


def train(contender: Contender, setting: Setting, data: Callable[..., BlockDataModule], seed: int) -> dict[str, Any]:
    """Train one contender; return its test metrics, and its logits, labels and users of the test rows.

    Args:
        contender: What to train.
        setting: How.
        data: Makes the data module of a batch size and a seed.
        seed: Seed of weights and order.
    """
    import lightning.pytorch as pl

    from recloom.training import predict, train_and_test

    pl.seed_everything(seed, verbose=False)
    rows = data(batch_size=setting.batch_size, seed=seed)
    model = _model(contender, setting, rows.schema)
    done = train_and_test(model, rows, epochs=setting.epochs, accelerator="cpu")
    found = predict(model, rows)
    return {
        "auc": 100 * done.metrics["auc"],
        "ne": done.metrics["ne"],
        "oracle_ne": done.metrics.get("oracle_ne"),
        "seconds": done.seconds,
        "parameters": done.parameters,
        "logits": [round(value, 4) for value in found.logits.tolist()] if found.groups is not None else [],
        "labels": found.labels.int().tolist() if found.groups is not None else [],
        "groups": found.groups.tolist() if found.groups is not None else [],
    }


def _model(contender: Contender, setting: Setting, schema: dict[str, Any]) -> RankingModule:
    from recloom.optim import OptimizerConfig

    optimizer = OptimizerConfig(**setting.optimizer)
    dlrm: Callable[..., RankingModule] = catalog().models.load("DLRM")
    if contender.encoder == "TBSM":
        tbsm: Callable[..., RankingModule] = catalog().models.load("TBSM")
        return tbsm(schema, **contender.options, optimizer=optimizer)
    encoder = None
    if contender.encoder:
        kind: Callable[..., Any] = catalog().sequence_encoders.load(contender.encoder)
        encoder = functools.partial(kind, **contender.options)
    return dlrm(
        schema,
        embedding_dim=setting.embedding_dim,
        dense_arch=(),
        over_arch=setting.over_arch,
        sequence_encoder=encoder,
        optimizer=optimizer,
    )


def parquet(path: Path) -> Callable[..., BlockDataModule]:
    """Return what makes the data module of a prepared data set."""
    module: Callable[..., BlockDataModule] = catalog().datamodules.load("ParquetClicks")
    return functools.partial(module, path, num_workers=0)


def behaviour(**options: Any) -> Callable[..., BlockDataModule]:
    """Return what makes generated histories with planted periods; the seed makes another world."""
    module: Callable[..., BlockDataModule] = catalog().datamodules.load("SyntheticBehaviour")
    return functools.partial(module, **options)


def user_bootstrap(runs: Sequence[dict[str, Any]], draws: int = 500, seed: int = 0) -> NDArray[np.float64]:
    """Return the mean AUC of `runs` (seeds of one model, on the same rows) in percent, for each resample of users.

    The users drawn are the same for every call with the same users, so differences between models are paired.
    """
    groups = np.unique(np.array(runs[0]["groups"]), return_inverse=True)[1]
    generator = np.random.default_rng(seed)
    users = int(groups.max()) + 1
    counts = generator.multinomial(users, np.full(users, 1 / users), draws).astype(np.float64)  # draws x users
    weights = counts[:, groups]  # draws x rows
    return 100 * np.mean([_weighted_auc(run, weights) for run in runs], axis=0)


def _weighted_auc(run: dict[str, Any], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an AUC for each row of `weights` (draws x rows), ties counted half."""
    logits, labels = np.array(run["logits"]), np.array(run["labels"], np.float64)
    order = np.argsort(logits, kind="stable")
    starts = np.flatnonzero(np.diff(logits[order], prepend=-np.inf))
    positive = np.add.reduceat((weights * labels)[:, order], starts, axis=1)  # draws x distinct scores
    negative = np.add.reduceat((weights * (1 - labels))[:, order], starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    return (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))
