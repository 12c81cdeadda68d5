"""What replicas learn: a DLRM on generated clicks under a strategy, tested on rows that no rank has trained on."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from recloom.data.synthetic import SyntheticClicks
from recloom.model import RankingModule
from recloom.optim import OptimizerConfig
from recloom.plugins import catalog

WORLD: dict[str, Any] = {
    "cardinalities": (2000, 1000, 500, 200, 12, 12, 8, 8),
    "multi_hot": {},
    "num_pairs": 3,
    "pair_rank": 1,
    "interaction": 0.3,
}
"""Large tables for replicas to differ in; what interacts has few ids, and every training finds it. With the generator's
defaults trainings that differ in the moments of their rounds alone differ by up to 1% of NE, and 0.1% is asked for."""


class Slow(Callback):
    """Makes every step last at least some seconds: so that a round falls on as many steps as on a faster machine.

    Args:
        seconds: Least time of a step.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        """Sleep for what is left."""
        time.sleep(max(0.0, self._end - time.monotonic()))
        self._end = time.monotonic() + self.seconds


def model_and_data(setting: dict[str, Any]) -> tuple[RankingModule, SyntheticClicks]:
    """Return the model and the data of a setting: `seed`, `rows` of all ranks together, `batch` of each.

    And `embedding`: the registered name of another embedding.
    """
    pl.seed_everything(setting["seed"], verbose=False)
    data = SyntheticClicks(
        num_train=setting["rows"], num_val=1000, num_test=60_000, batch_size=setting["batch"], num_workers=0,
        seed=setting["seed"], **WORLD,
    )  # fmt: skip
    optimizer = OptimizerConfig("Adam", 0.002, {}, "rowwise_adagrad", 0.05)
    dlrm: Any = catalog().models.load("DLRM")
    name = setting.get("embedding")
    embedding: dict[str, Any] = {"embedding": catalog().embeddings.load(name)} if name else {}
    return dlrm(data.schema, 16, (64, 32), (64, 32), optimizer=optimizer, **embedding), data


def fit(trainer: pl.Trainer, setting: dict[str, Any]) -> dict[str, float]:
    """Train on this rank's share of the rows; return the test metrics of the model that all agree on."""
    model, data = model_and_data(setting)
    if setting.get("seconds"):
        trainer.callbacks.append(Slow(setting["seconds"]))  # type: ignore[attr-defined]
    trainer.fit(model, data)
    torch.set_grad_enabled(True)
    tested = trainer.test(model, data, verbose=False)[0]
    return {name.removeprefix("test_"): float(value) for name, value in tested.items()}
