"""Generated impressions of users and items whose true utility is known, as a LightningDataModule for retrieval."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from recloom.batch import Batch, KeyedJaggedTensor
from recloom.data.module import BlockDataModule
from recloom.data.plan import RankSplit
from recloom.data.retrievalworld import Population, RetrievalWorld, RetrievalWorldConfig
from recloom.data.world import WorldBlocks, world_of
from recloom.errors import RecloomError
from recloom.features import DenseFeature, FeatureSchema, SparseFeature
from recloom.retrieval.rows import Rows
from recloom.retrieval.sides import split_schema


class RetrievalClicks(BlockDataModule):
    """Impressions of items in topics, shown to users with several interests; the true utility of every pair is known.

    Features describe content only, with no ids, so that what a model learns holds for items it has never seen. Half of
    the impressions are of one of the user's topics, half of any item. `world` has the users, the items and `utility`.

    Args:
        num_train: Training impressions.
        num_val: Validation impressions.
        num_test: Test impressions.
        batch_size: Rows of a training batch, per rank.
        eval_batch_size: Rows of an evaluation batch, per rank.
        num_workers: Processes that generate rows, per rank and split; 0 generates in the training process.
        shuffle: Draw the order of the blocks of training rows anew in each epoch.
        seed: Seed of the world and of its rows.
        num_items: Number of items.
        num_users: Number of users.
        groups: Groups of topics.
        topics: Topics of a group.
        width: Width of the latent vectors.
        interests: Interests of a user.
        features: "aligned": similar features are similar items. "misaligned": a strong style, which nobody minds,
            decides which features are similar.
        base_ctr: Mean click probability.
        signal: Standard deviation of the logit.
        rank_split: "blocks": each rank takes its own span of the rows. "rows": each rank takes its part of every
            global batch, so that R ranks see what one rank with an R times larger batch sees.
    """

    def __init__(
        self,
        num_train: int = 2_000_000,
        num_val: int = 100_000,
        num_test: int = 100_000,
        batch_size: int = 4096,
        eval_batch_size: int = 16_384,
        num_workers: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        num_items: int = 50_000,
        num_users: int = 20_000,
        groups: int = 32,
        topics: int = 16,
        width: int = 16,
        interests: int = 3,
        features: Literal["aligned", "misaligned"] = "aligned",
        base_ctr: float = 0.258,
        signal: float = 2.8,
        rank_split: RankSplit = "blocks",
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, shuffle, rank_split)
        if min(num_items, num_users, groups, topics, width, interests) < 1 or not 0 < base_ctr < 1:
            raise RecloomError(
                "RetrievalClicks: sizes must be at least 1, and base_ctr between 0 and 1", "See `recloom fit --help`."
            )
        self.config = RetrievalWorldConfig(
            (num_train, num_val, num_test),
            seed,
            num_items=num_items,
            num_users=num_users,
            groups=groups,
            topics=topics,
            width=width,
            interests=interests,
            features=features,
            base_ctr=base_ctr,
            signal=signal,
        )
        columns = width * (1 if features == "aligned" else 2) + 1
        user = tuple(DenseFeature(f"u{n}", vector=f"interest{n // width}") for n in range(interests * width))
        item = tuple(DenseFeature(f"i{n}", vector="content" if n < columns - 1 else "") for n in range(columns))
        users, items = self.config.attributes
        self._schema = FeatureSchema(
            dense=user + item,
            sparse=(SparseFeature("user_attribute", users), SparseFeature("item_attribute", items)),
            item_features=(*(feature.name for feature in item), "item_attribute"),
            info={"generator": "RetrievalClicks", "seed": seed, "rows": [num_train, num_val, num_test]},
        )

    @property
    def schema(self) -> dict[str, Any]:
        """The FeatureSchema as a dict of primitives."""
        return self._schema.to_dict()

    @property
    def world(self) -> RetrievalWorld:
        """Users, items and utility."""
        world = world_of(self.config)
        assert isinstance(world, RetrievalWorld)
        return world

    def source(self, split: str, shuffle: bool = False) -> WorldBlocks:
        """Return the blocks of `split` ("train", "val" or "test")."""
        return WorldBlocks(self.config, split, shuffle)

    def item_rows(self, items: Population | None = None, first_id: int = 0) -> Rows:
        """Return items as an index takes them: by default all of the world's, with ids 0, 1, ..."""
        items = self.world.items if items is None else items
        ids = torch.arange(first_id, first_id + len(items))
        return Rows(ids, _batch("item_attribute", items.dense, items.attribute), split_schema(self._schema)[1])

    def item_counts(self) -> NDArray[np.int64]:
        """Return how many training rows are of each of the world's items."""
        return self.world.item_counts()

    def user_rows(self, limit: int = 0) -> Rows:
        """Return the users, or the first `limit`, as a search takes them; ids 0, 1, ..."""
        users = np.arange(min(limit or len(self.world.users), len(self.world.users)))
        dense, attribute = self.world.user_rows(users)
        return Rows(torch.from_numpy(users), _batch("user_attribute", dense, attribute), split_schema(self._schema)[0])


def _batch(name: str, dense: NDArray[np.float32], attribute: NDArray[np.int64]) -> Batch:
    return Batch(
        dense_features=torch.from_numpy(dense),
        sparse_features=KeyedJaggedTensor([name], torch.from_numpy(attribute)),
        labels=torch.zeros(len(dense)),
    )
