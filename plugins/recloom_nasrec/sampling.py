"""How a step of supernet training draws its path."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from recloom.errors import unknown
from recloom_nasrec.architecture import Architecture, Block
from recloom_nasrec.space import NASRecSpace, connect

Strategy = Literal["single-operator any-connection", "single-operator single-connection", "any-operator any-connection"]
STRATEGIES: tuple[Strategy, ...] = (
    "single-operator any-connection",
    "single-operator single-connection",
    "any-operator any-connection",
)
Coin = Literal["step", "block"]


class PathSampler:
    """Draws paths for supernet training.

    The number of an input's connections is 1 + Binomial(min(sources, 4) - 1, 0.5) where any connection may be taken;
    the number of operators likewise where any operator may.

    Args:
        space: The space.
        strategy: One operator of each kind, or any; one connection of each input, or any.
        warmup_steps: Steps over which the probability of the full path goes from 1 to 0, linearly.
        coin: "step": one coin a step, for the full path. "block": a coin for all connections and one for the inside
            of each block, so that most steps are in between, as the reference implementation does it.
    """

    def __init__(self, space: NASRecSpace, strategy: Strategy, warmup_steps: int, coin: Coin) -> None:
        if strategy not in STRATEGIES:
            raise unknown("strategy", strategy, STRATEGIES)
        if coin not in ("step", "block"):
            raise unknown("warmup_coin", coin, ("step", "block"))
        self.space = space
        operators, connections = strategy.split()
        self.any_operator = operators == "any-operator"
        self.any_connection = connections == "any-connection"
        self.warmup_steps = warmup_steps
        self.coin = coin
        self.full = full_path(space)

    def __call__(self, step: int, rng: np.random.Generator) -> Architecture:
        """Return the path of a step, counted from 0."""
        full = 1 - step / self.warmup_steps if step < self.warmup_steps else 0.0
        if self.coin == "step":
            return self.full if rng.random() < full else tuple(self._block(place, rng) for place in self._places)
        wired = rng.random() < full
        found = []
        for place, whole in zip(self._places, self.full, strict=True):
            block = self._block(place, rng)
            if wired:
                block = replace(
                    block,
                    dense_from=whole.dense_from,
                    sparse_from=whole.sparse_from,
                    left=whole.left,
                    right=whole.right,
                )
            if rng.random() < full:
                block = replace(
                    whole,
                    dense_from=block.dense_from,
                    sparse_from=block.sparse_from,
                    left=block.left,
                    right=block.right,
                )
            found.append(block)
        return tuple(found)

    @property
    def _places(self) -> range:
        return range(1, self.space.num_blocks + 1)

    def _block(self, place: int, rng: np.random.Generator) -> Block:
        space = self.space
        pair = rng.integers(place, size=2)
        return Block(
            dense_ops=self._operators(space.dense_ops, rng),
            sparse_ops=self._operators(space.sparse_ops, rng),
            dense_dim=space.dense_dims[rng.integers(len(space.dense_dims))],
            sparse_dim=space.sparse_dims[rng.integers(len(space.sparse_dims))],
            dense_from=self._sources(place, rng),
            sparse_from=self._sources(place, rng),
            left=(int(pair[0]),),
            right=(int(pair[1]),),
            interact=bool(rng.integers(2)),
            fm=bool(rng.integers(2)),
        )

    def _operators(self, names: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
        count = binomial(len(names), self.space.max_connections, rng) if self.any_operator else 1
        bits = connect(len(names), count, rng)
        return tuple(name for name, bit in zip(names, bits, strict=True) if bit)

    def _sources(self, count: int, rng: np.random.Generator) -> tuple[int, ...]:
        chosen = binomial(count, self.space.max_connections, rng) if self.any_connection else 1
        return tuple(source for source, bit in enumerate(connect(count, chosen, rng)) if bit)


def binomial(count: int, most: int, rng: np.random.Generator) -> int:
    """Return 1 + Binomial(min(count, most) - 1, 0.5)."""
    return 1 + int(rng.binomial(min(count, most) - 1, 0.5))


def full_path(space: NASRecSpace) -> Architecture:
    """Return all operators at their full width, all mergers, all connections."""
    return tuple(
        Block(
            dense_ops=space.dense_ops,
            sparse_ops=space.sparse_ops,
            dense_dim=max(space.dense_dims),
            sparse_dim=max(space.sparse_dims),
            dense_from=tuple(range(place)),
            sparse_from=tuple(range(place)),
            left=tuple(range(place)),
            right=tuple(range(place)),
            interact=True,
            fm=True,
        )
        for place in range(1, space.num_blocks + 1)
    )
