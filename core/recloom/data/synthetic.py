"""Synthetic click logs whose true click probabilities are known, as a LightningDataModule."""

from __future__ import annotations

from typing import Any

from recloom.data.clickworld import ClickWorldConfig
from recloom.data.module import BlockDataModule
from recloom.data.plan import RankSplit
from recloom.data.world import WorldBlocks, refuse
from recloom.errors import unknown
from recloom.features import DenseFeature, FeatureSchema, SparseFeature


class SyntheticClicks(BlockDataModule):
    """Clicks drawn from a known model, so that the best possible NE of the same rows is known: see `oracle`.

    Rows are generated while training runs, in worker processes. They depend on the seed and the options below alone:
    every epoch repeats the same `num_train` rows. `Batch.extras["probability"]` holds the true probabilities.

    Args:
        num_train: Training rows.
        num_val: Validation rows; they follow the training rows in time.
        num_test: Test rows; they follow the validation rows in time.
        batch_size: Rows of a training batch, per rank.
        eval_batch_size: Rows of an evaluation batch, per rank.
        num_workers: Processes that generate rows, per rank and split; 0 generates in the training process.
        shuffle: Draw the order of the blocks of training rows anew in each epoch.
        seed: Seed of the world and of its rows.
        num_dense: Number of dense features (d0, d1, ...), standard normal.
        cardinalities: Number of ids of each category (c0, c1, ...).
        multi_hot: Mean bag length of the categories that are bags, by name: {c8: 3, c9: 5}. Unset: these two, as far
            as they exist. {}: none.
        zipf: Exponent of the ids' popularity: id i is drawn in proportion to 1 / (i + 1)^zipf.
        num_pairs: Pairs of categories that interact, drawn from the half of all pairs with the fewest combinations.
        pair_rank: Rank of an interaction.
        interaction: Share of the logit's variance that interactions make, out of reach for logistic regression.
        cross: Share of the interactions' variance that is of third order or dense-times-category.
        drift: How far effects move while the training rows pass: 0 not at all, 1 to an independent draw.
        base_ctr: Mean click probability.
        signal: Standard deviation of the logit: the larger, the lower the oracle's NE.
        rank_split: "blocks": each rank takes its own span of the rows. "rows": each rank takes its part of every
            global batch, so that R ranks see what one rank with an R times larger batch sees.
    """

    def __init__(
        self,
        num_train: int = 2_000_000,
        num_val: int = 200_000,
        num_test: int = 200_000,
        batch_size: int = 1024,
        eval_batch_size: int = 8192,
        num_workers: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        num_dense: int = 8,
        cardinalities: tuple[int, ...] = (2000, 500, 200, 100, 80, 50, 30, 20, 100, 60),
        multi_hot: dict[str, float] | None = None,
        zipf: float = 1.1,
        num_pairs: int = 5,
        pair_rank: int = 2,
        interaction: float = 0.5,
        cross: float = 0.0,
        drift: float = 0.0,
        base_ctr: float = 0.22,
        signal: float = 1.4,
        rank_split: RankSplit = "blocks",
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, shuffle, rank_split)
        names = [f"c{index}" for index in range(len(cardinalities))]
        bags = {name: mean for name, mean in (("c8", 3.0), ("c9", 5.0)) if name in names}
        bags = bags if multi_hot is None else multi_hot
        for name in bags:
            if name not in names:
                raise unknown("category", name, names)
        self.config = ClickWorldConfig(
            rows=(num_train, num_val, num_test),
            seed=seed,
            num_dense=num_dense,
            cardinalities=tuple(cardinalities),
            mean_lengths=tuple(float(bags.get(name, 1.0)) for name in names),
            zipf=zipf,
            num_pairs=num_pairs,
            rank=pair_rank,
            interaction=interaction,
            cross=cross,
            drift=drift,
            base_ctr=base_ctr,
            signal=signal,
        )
        self._check()
        self._schema = FeatureSchema(
            dense=tuple(DenseFeature(f"d{index}") for index in range(num_dense)),
            sparse=tuple(
                SparseFeature(name, cardinalities[index], self.config.max_length(index))
                for index, name in enumerate(names)
            ),
            timestamp="timestamp",
            info={"generator": "SyntheticClicks", "seed": seed, "rows": [num_train, num_val, num_test]},
        )
        self._oracle: dict[str, dict[str, float]] = {}

    @property
    def schema(self) -> dict[str, Any]:
        """The FeatureSchema as a dict of primitives."""
        return self._schema.to_dict()

    def source(self, split: str, shuffle: bool = False) -> WorldBlocks:
        """Return the blocks of `split` ("train", "val" or "test")."""
        return WorldBlocks(self.config, split, shuffle)

    def oracle(self, split: str = "val") -> dict[str, float]:
        """Return the "ne", "auc" and "logloss" of the true probabilities on the rows of `split`: the best possible.

        NE is the mean cross-entropy of the labels over the entropy of their mean, in double precision.
        """
        if split not in self._oracle:
            self._oracle[split] = self.source(split).oracle()
        return self._oracle[split]

    def _check(self) -> None:
        config = self.config
        faults = {
            "rows": (min(config.rows) < 0, "0 or more"),
            "cardinalities": (not config.cardinalities or min(config.cardinalities) < 1, "one or more, each 1 or more"),
            "multi_hot": (min(config.mean_lengths, default=1) <= 0, "above 0"),
            "num_dense": (config.num_dense < 0, "0 or more"),
            "num_pairs": (config.num_pairs < 0, "0 or more"),
            "pair_rank": (config.rank < 1, "1 or more"),
            "interaction": (not 0 <= config.interaction <= 1, "from 0 to 1"),
            "cross": (not 0 <= config.cross <= 1, "from 0 to 1"),
            "drift": (config.drift < 0, "0 or more"),
            "base_ctr": (not 0 < config.base_ctr < 1, "between 0 and 1"),
            "signal": (config.signal < 0, "0 or more"),
        }
        refuse("SyntheticClicks", faults)
