"""Generated clicks with a second label, the conversion that may follow a click: data for models of several tasks."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from recloom.batch import Batch
from recloom.data.loader import BlockSource
from recloom.data.synthetic import SyntheticClicks
from recloom.data.world import WorldBlocks


class ConversionBlocks(BlockSource):
    """Blocks of clicks, each row with a conversion beside its click.

    Of clicked rows, those convert whose click was likely, more or less: log-odds `bias` + half the click's own. Labels
    are B x 2 and so are the true probabilities; the conversion's is that of click and conversion together.

    Args:
        clicks: The blocks of clicks.
        seed: Seed of the conversions.
        bias: Log-odds of a conversion after an even click.
    """

    def __init__(self, clicks: WorldBlocks, seed: int, bias: float) -> None:
        self._clicks, self._seed, self._bias = clicks, seed, bias

    def block_rows(self, epoch: int) -> Any:
        """Return the rows of each block."""
        return self._clicks.block_rows(epoch)

    def load(self, epoch: int, index: int) -> Batch:
        """Generate a block."""
        block = self._clicks.load(epoch, index)
        chance = block.extras["probability"]
        after = torch.sigmoid(self._bias + 0.5 * torch.logit(chance.double())).float()
        assert block.timestamps is not None
        entropy = [self._seed, 77, int(block.timestamps[0]), len(chance)]  # of the block, in whichever order it comes
        drawn = np.random.default_rng(np.random.SeedSequence(entropy)).random(len(chance), dtype=np.float32)
        converted = block.labels * (torch.from_numpy(drawn) < after)
        return dataclasses.replace(
            block,
            labels=torch.stack([block.labels, converted], dim=1),
            extras={**block.extras, "probability": torch.stack([chance, chance * after], dim=1)},
        )


class SyntheticConversions(SyntheticClicks):
    """SyntheticClicks with two labels, `label` (the click) and `conversion`, both of known probability.

    A click converts with log-odds `conversion_bias` plus half the log-odds of the click: likely clicks convert more.
    All other options are those of SyntheticClicks.

    Args:
        num_train: Training rows.
        num_val: Validation rows; they follow the training rows in time.
        num_test: Test rows; they follow the validation rows in time.
        batch_size: Rows of a training batch, per rank.
        eval_batch_size: Rows of an evaluation batch, per rank.
        num_workers: Processes that generate rows, per rank and split; 0 generates in the training process.
        seed: Seed of the world and of its rows.
        num_dense: Number of dense features (d0, d1, ...), standard normal.
        cardinalities: Number of ids of each category (c0, c1, ...).
        conversion_bias: Log-odds that a click whose probability was one half converts.
    """

    def __init__(
        self,
        num_train: int = 1_000_000,
        num_val: int = 100_000,
        num_test: int = 100_000,
        batch_size: int = 1024,
        eval_batch_size: int = 8192,
        num_workers: int = 1,
        seed: int = 0,
        num_dense: int = 8,
        cardinalities: tuple[int, ...] = (2000, 500, 200, 100, 80, 50, 30, 20, 100, 60),
        conversion_bias: float = -1.0,
    ) -> None:
        super().__init__(
            num_train,
            num_val,
            num_test,
            batch_size,
            eval_batch_size,
            num_workers,
            seed=seed,
            num_dense=num_dense,
            cardinalities=cardinalities,
            multi_hot={},
        )
        self._bias = conversion_bias
        self._schema = dataclasses.replace(self._schema, labels=("label", "conversion"))

    def source(self, split: str, shuffle: bool = False) -> Any:
        """Return the blocks of `split` ("train", "val" or "test")."""
        return ConversionBlocks(WorldBlocks(self.config, split, shuffle), self.config.seed, self._bias)

    def oracle(self, split: str = "val") -> dict[str, float]:
        """Return the "ne", "auc" and "logloss" of the true click probabilities on the rows of `split`."""
        return WorldBlocks(self.config, split).oracle()
