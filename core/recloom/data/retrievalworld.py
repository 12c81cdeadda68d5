"""Users, items and the utility of one to the other, known: what impressions are drawn from. Imports no Lightning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from recloom.batch import Batch, KeyedJaggedTensor
from recloom.data.world import BLOCK_ROWS, World, fit_bias, zipf

Floats = NDArray[np.float32]
Features = Literal["aligned", "misaligned"]


@dataclass(frozen=True)
class RetrievalWorldConfig:
    """What a world is made from; see `RetrievalClicks`."""

    rows: tuple[int, int, int]
    seed: int
    num_items: int = 50_000
    num_users: int = 20_000
    groups: int = 32
    topics: int = 16
    width: int = 16
    interests: int = 3
    attributes: tuple[int, int] = (20, 30)
    zipf: float = 0.6
    spread: float = 0.35
    noise: float = 0.1
    features: Features = "aligned"
    shift: float = 0.0
    base_ctr: float = 0.258
    signal: float = 2.8

    def build(self) -> RetrievalWorld:
        """Make the world."""
        return RetrievalWorld(self)


@dataclass(frozen=True)
class Population:
    """Users or items: what decides clicks, and what models see of it.

    Args:
        vectors: N x (interests x) width latent unit vectors.
        attribute: N attribute ids.
        quality: N numbers that every user likes alike; zeros for users.
        topic: N topics (of a user's first interest).
        dense: N x columns of features.
    """

    vectors: Floats
    attribute: NDArray[np.int64]
    quality: Floats
    topic: NDArray[np.int64]
    dense: Floats

    def __len__(self) -> int:
        return len(self.attribute)


class RetrievalWorld(World):
    """Items in topics, users with several interests: logit = b + s (max_i max(0, cos_i)^2 + pair table + quality).

    The maximum over interests and the table of attribute pairs keep any single inner product from fitting it. Features
    are of content only (no ids): what is learned holds for items that were never seen.

    Args:
        config: What to build.
    """

    def __init__(self, config: RetrievalWorldConfig) -> None:
        self.config = config
        draw = self._generator(0)
        width, topics = config.width, config.groups * config.topics
        coarse = _unit(draw.normal(size=(config.groups, width)))
        fine = _unit(draw.normal(size=(topics, width)))
        self.centres = _unit(np.repeat(coarse, config.topics, axis=0) + 0.7 * fine)
        self.rotation = np.linalg.qr(draw.normal(size=(width, width)))[0].astype(np.float32)
        self.style = _unit(draw.normal(size=(64, width)))
        self.pairs = draw.normal(size=config.attributes).astype(np.float32)
        self.popularity = zipf(topics, config.zipf)[draw.permutation(topics)]
        self.items = self.make_items(config.num_items)
        self.users = self._make_users()
        self.by_topic = np.argsort(self.items.topic, kind="stable")
        self.topic_starts = np.searchsorted(self.items.topic[self.by_topic], np.arange(topics + 1))
        users, items = self._pairs(self._generator(3), 100_000)
        raw = self._raw(users, items)
        self.scale = config.signal / float(raw.std())
        self.bias = fit_bias(self.scale * raw.astype(np.float64), config.base_ctr)

    def make_items(self, count: int, batch: int = 0, new_topics: int = 0) -> Population:
        """Return `count` items; other numbers of `batch` give others.

        Args:
            count: Number of items.
            batch: Number of the draw.
            new_topics: Draw them from so many topics that no other items are of; 0: from the world's own.
        """
        config, draw = self.config, self._generator(1, batch)
        if new_topics:
            centres = _unit(draw.normal(size=(new_topics, config.width)))
            topic = draw.integers(new_topics, size=count)
        else:
            centres = self.centres
            topic = draw.choice(len(centres), size=count, p=self.popularity)
        vectors = _unit(centres[topic] + config.spread * _unit(draw.normal(size=(count, config.width))))
        quality = 0.35 * draw.normal(size=count).astype(np.float32)
        seen = vectors @ self.rotation + config.noise / np.sqrt(config.width) * draw.normal(size=vectors.shape)
        columns = [seen, quality[:, None]]
        if config.features == "misaligned":  # a strong style, which nobody minds, over a faint content
            style = 2.0 * self.style[draw.integers(len(self.style), size=count)]
            columns = [0.5 * seen, style + 0.1 * draw.normal(size=style.shape), quality[:, None]]
        attribute = draw.integers(config.attributes[1], size=count)
        return Population(vectors, attribute, quality, topic, np.concatenate(columns, 1).astype(np.float32))

    def utility(self, users: NDArray[np.int64], items: Population | None = None) -> Floats:
        """Return the logits of every item for `users`: U x N. Of `items`, by default the world's own."""
        found = self.items if items is None else items
        interests = self.users.vectors[users]  # U x I x W
        cosines = np.maximum(interests.reshape(-1, self.config.width) @ found.vectors.T, 0) ** 2
        best = cosines.reshape(len(users), self.config.interests, -1).max(axis=1)
        pairs = 0.04 * self.pairs[self.users.attribute[users]][:, found.attribute]
        return (self.scale * (best + pairs + 0.1 * found.quality) + self.bias).astype(np.float32)

    def user_rows(self, users: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
        """Return the dense features and the attributes of `users`."""
        return self.users.dense[users], self.users.attribute[users]

    def block(self, split: int, index: int) -> Batch:
        """Return block `index` of split number `split`: half of the items are of one of the user's topics."""
        rows = min(BLOCK_ROWS, self.config.rows[split] - index * BLOCK_ROWS)
        draw = self._generator(4, split, index)
        users, items = self._pairs(draw, rows)
        logits = self.scale * self._raw(users, items) + self.bias
        chance = (1 / (1 + np.exp(-logits))).astype(np.float32)
        dense = np.concatenate([self.users.dense[users], self.items.dense[items]], axis=1)
        attributes = np.stack([self.users.attribute[users], self.items.attribute[items]])
        return Batch(
            dense_features=torch.from_numpy(dense),
            sparse_features=KeyedJaggedTensor(["user_attribute", "item_attribute"], torch.from_numpy(attributes)),
            labels=torch.from_numpy((draw.random(rows) < chance).astype(np.float32)),
            extras={"probability": torch.from_numpy(chance), "group": torch.from_numpy(users)},
        )

    def item_counts(self) -> NDArray[np.int64]:
        """Return how many training impressions are of each item: by the draws that `block` begins with."""
        rows, found = self.config.rows[0], np.zeros(len(self.items), np.int64)
        for index, start in enumerate(range(0, rows, BLOCK_ROWS)):
            _, items = self._pairs(self._generator(4, 0, index), min(BLOCK_ROWS, rows - start))
            found += np.bincount(items, minlength=len(found))
        return found

    def _make_users(self) -> Population:
        config, draw = self.config, self._generator(2)
        shape = (config.num_users, config.interests)
        topics = draw.choice(len(self.centres), size=shape, p=self.popularity)
        noise = config.spread * _unit(draw.normal(size=(*shape, config.width)))
        vectors = _unit(self.centres[topics] + noise)
        seen = vectors @ self.rotation + config.noise / np.sqrt(config.width) * draw.normal(size=vectors.shape)
        self.user_topics = topics
        return Population(
            vectors,
            draw.integers(config.attributes[0], size=config.num_users),
            np.zeros(config.num_users, np.float32),
            topics[:, 0],
            seen.reshape(config.num_users, -1).astype(np.float32),
        )

    def _pairs(self, draw: np.random.Generator, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw who was shown what."""
        users = draw.integers(len(self.users), size=rows)
        items = draw.integers(len(self.items), size=rows)
        topic = self.user_topics[users, draw.integers(self.config.interests, size=rows)]
        start, stop = self.topic_starts[topic], self.topic_starts[topic + 1]
        place = start + (draw.random(rows) * (stop - start)).astype(np.int64)
        near = self.by_topic[np.minimum(place, len(self.items) - 1)]
        near = np.where(stop > start, near, items)
        return users, np.where(draw.random(rows) < 0.5, near, items)

    def _raw(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> Floats:
        cosines = np.einsum("niw,nw->ni", self.users.vectors[users], self.items.vectors[items])
        best = (np.maximum(cosines, 0) ** 2).max(axis=1)
        pairs = 0.04 * self.pairs[self.users.attribute[users], self.items.attribute[items]]
        return best + pairs + 0.1 * self.items.quality[items]

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.config.seed, 71, *key]))


def _unit(vectors: NDArray) -> Floats:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
