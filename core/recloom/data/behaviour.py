"""Synthetic behaviour histories whose true click probabilities are known, as a LightningDataModule."""

from __future__ import annotations

from typing import Any

from recloom.data.behaviourworld import BehaviourWorldConfig
from recloom.data.module import BlockDataModule
from recloom.data.plan import RankSplit
from recloom.data.world import WorldBlocks, refuse
from recloom.errors import RecloomError
from recloom.features import FeatureSchema, SequenceFeature, SparseFeature


class SyntheticBehaviour(BlockDataModule):
    """Users with interests that come due at regular times and switch, for models of behaviour histories.

    A row is a user's history ("history": item and category of each step, with times) and a candidate item. Whether it
    is clicked depends on how current the user's interest in its category is, on whether that category is due at this
    time (only real time gaps tell: places in the history say nothing of it), and on the item. A model that sees history
    and candidate can reach the best possible NE, see `oracle`; `recloom.data.behaviourworld` has the formula.

    Rows are generated while training runs, in worker processes, and depend on the seed and the options below alone.
    `Batch.extras["probability"]` holds the true probabilities.

    Args:
        num_train: Training rows, a user each.
        num_val: Validation rows; they follow the training rows in time.
        num_test: Test rows; they follow the validation rows in time.
        batch_size: Rows of a training batch, per rank.
        eval_batch_size: Rows of an evaluation batch, per rank.
        num_workers: Processes that generate rows, per rank and split; 0 generates in the training process.
        shuffle: Draw the order of the blocks of training rows anew in each epoch.
        seed: Seed of the world and of its rows.
        max_length: Longest history, L.
        mean_length: Mean length of histories before they are cut at L; lengths are geometric, so some are empty.
        num_items: Number of items, a multiple of the number of categories.
        num_categories: Number of categories.
        zipf: Exponent of the popularity of categories, and of the items of one.
        interests: Interests of a user.
        periods: Periods in days, whole hours each; every category has one of them.
        jitter: Standard deviation of a step's time around when it was due, in parts of the period.
        noise: Share of steps that belong to no interest.
        switching: Probability that an interest replaced another one during the history.
        periodicity: Share of the logit's variance that depends on whether the candidate's category is due.
        quality: Share of the rest that is the item's quality.
        base_ctr: Mean click probability.
        signal: Standard deviation of the logit: the larger, the lower the oracle's NE.
        shared_users: The users of the training rows come back in the others, and there is a feature "user". Unset:
            every row of every split is another user.
        rank_split: "blocks": each rank takes its own span of the rows. "rows": each rank takes its part of every
            global batch, so that R ranks see what one rank with an R times larger batch sees.
    """

    def __init__(
        self,
        num_train: int = 1_000_000,
        num_val: int = 100_000,
        num_test: int = 100_000,
        batch_size: int = 1024,
        eval_batch_size: int = 8192,
        num_workers: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        max_length: int = 50,
        mean_length: float = 30.0,
        num_items: int = 5000,
        num_categories: int = 40,
        zipf: float = 1.0,
        interests: int = 3,
        periods: tuple[float, ...] = (1.0, 3.5, 7.0),
        jitter: float = 0.05,
        noise: float = 0.4,
        switching: float = 0.5,
        periodicity: float = 0.5,
        quality: float = 0.4,
        base_ctr: float = 0.3,
        signal: float = 2.0,
        shared_users: bool = False,
        rank_split: RankSplit = "blocks",
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, shuffle, rank_split)
        if not periods or any(not 1 <= 24 * days <= 24 * 28 or 24 * days % 1 for days in periods):
            raise RecloomError(
                f"SyntheticBehaviour: periods is {list(periods)}", "Give days: whole hours each, up to 28 days."
            )
        self.config = BehaviourWorldConfig(
            rows=(num_train, num_val, num_test),
            seed=seed,
            max_length=max_length,
            mean_length=mean_length,
            num_items=num_items,
            num_categories=num_categories,
            zipf=zipf,
            interests=interests,
            periods=tuple(int(24 * days) for days in periods),
            jitter=jitter,
            noise=noise,
            switching=switching,
            periodicity=periodicity,
            quality=quality,
            base_ctr=base_ctr,
            signal=signal,
            shared_users=shared_users,
        )
        self._check()
        sparse = (SparseFeature("item", num_items), SparseFeature("category", num_categories))
        users = (SparseFeature("user", num_train),) if shared_users else ()
        self._schema = FeatureSchema(
            sparse=(*sparse, *users),
            sequences=(SequenceFeature("history", sparse, max_length, timestamps=True),),
            timestamp="timestamp",
            info={"generator": "SyntheticBehaviour", "seed": seed, "rows": [num_train, num_val, num_test]},
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
        """Return the "ne", "auc" and "logloss" of the true probabilities on the rows of `split`: the best possible."""
        if split not in self._oracle:
            self._oracle[split] = self.source(split).oracle()
        return self._oracle[split]

    def _check(self) -> None:
        config = self.config
        faults = {
            "rows": (
                min(config.rows) < 0 or (config.shared_users and not config.rows[0]),
                "0 or more, and some to train on with shared_users",
            ),
            "max_length": (config.max_length < 1, "1 or more"),
            "mean_length": (config.mean_length <= 0, "above 0"),
            "num_categories": (config.num_categories < 1, "1 or more"),
            "num_items": (
                not 0 < config.num_items < 1 << 23 or config.num_items % max(config.num_categories, 1) != 0,
                "a multiple of num_categories below 8,388,608",
            ),
            "interests": (config.interests < 1, "1 or more"),
            "jitter": (not 0 <= config.jitter <= 0.25, "from 0 to 0.25"),
            "noise": (not 0 <= config.noise <= 1, "from 0 to 1"),
            "switching": (not 0 <= config.switching <= 1, "from 0 to 1"),
            "periodicity": (not 0 <= config.periodicity <= 1, "from 0 to 1"),
            "quality": (not 0 <= config.quality <= 1, "from 0 to 1"),
            "base_ctr": (not 0 < config.base_ctr < 1, "between 0 and 1"),
            "signal": (config.signal < 0, "0 or more"),
        }
        refuse("SyntheticBehaviour", faults)
