"""Policies: distributions over genotypes that are made more or less likely, for reinforcement and gradient search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recloom.search.space import Genotype, SearchSpace

Array = NDArray[np.float64]
Kind = Literal["independent", "autoregressive"]
PRIOR_SAMPLES = 1000


class Policy:
    """Categorical distributions of all choices, at first as the space's own random genotypes are distributed.

    "independent": one a choice. "autoregressive": its logits are linear in the options of the choices before it, so
    that options that go well together are found together.

    Args:
        space: The space.
        kind: The kind.
        seed: Seed of the random genotypes that the first probabilities are counted from.
    """

    def __init__(self, space: SearchSpace, kind: Kind = "independent", seed: int = 0) -> None:
        self.space = space
        self.sizes = [len(choice.options) for choice in space.choices]
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self.logits = np.log(prior(space, seed))
        self.pairs = np.zeros((len(self.logits), len(self.logits))) if kind == "autoregressive" else None

    def probabilities(self, genotype: Sequence[int] = ()) -> list[Array]:
        """Return the probabilities of each choice's options, given the choices before it as in `genotype`."""
        found = []
        total = self.logits.copy()
        for place in range(len(self.sizes)):
            found.append(softmax(total[self._slice(place)]))
            if self.pairs is not None and place < len(genotype):
                total += self.pairs[self.starts[place] + genotype[place]]
        return found

    def sample(self, rng: np.random.Generator, explore: float = 0.0) -> Genotype:
        """Return a genotype, brought into the space where options do not go together.

        Args:
            rng: Random numbers.
            explore: Probability that a choice is drawn uniformly.
        """
        total, found = self.logits.copy(), []
        noise, uniform = rng.gumbel(size=len(total)), rng.random(len(self.sizes)) < explore
        for place in range(len(self.sizes)):
            here = self._slice(place)
            found.append(int(np.argmax(noise[here] if uniform[place] else total[here] + noise[here])))
            if self.pairs is not None:
                total += self.pairs[self.starts[place] + found[-1]]
        return self.space.repair(tuple(found))

    def best(self) -> Genotype:
        """Return the most likely option of each choice, one after the other."""
        found: list[int] = []
        total = self.logits.copy()
        for place in range(len(self.sizes)):
            found.append(int(np.argmax(total[self._slice(place)])))
            if self.pairs is not None:
                total += self.pairs[self.starts[place] + found[-1]]
        return self.space.repair(tuple(found))

    def log_probability(self, genotype: Genotype, live: Sequence[bool]) -> float:
        """Return the logarithm of the probability of the options of the choices that matter."""
        found = self.probabilities(genotype)
        chosen = zip(found, genotype, live, strict=True)
        return float(sum(np.log(max(p[option], 1e-12)) for p, option, matters in chosen if matters))

    def reinforce(self, genotype: Genotype, live: Sequence[bool], amount: float, entropy: float = 0.0) -> None:
        """Move along `amount` times the gradient of the log-probability, and `entropy` times that of the entropy."""
        change = np.zeros(len(self.logits))
        for place, p in enumerate(self.probabilities(genotype)):
            here = self._slice(place)
            if live[place]:
                change[here] -= amount * p
                change[self.starts[place] + genotype[place]] += amount
            if entropy:
                log = np.log(np.maximum(p, 1e-12))
                change[here] -= entropy * p * (log - (p * log).sum())
        self.logits += change
        if self.pairs is not None:
            for place, option in enumerate(genotype):
                if live[place]:
                    after = self.starts[place + 1]
                    self.pairs[self.starts[place] + option, after:] += change[after:]

    def confidence(self) -> float:
        """Return the mean probability of the most likely options: 1 when the policy has settled."""
        return float(np.mean([p.max() for p in self.probabilities(self.best())]))

    def _slice(self, place: int) -> slice:
        return slice(int(self.starts[place]), int(self.starts[place + 1]))


def prior(space: SearchSpace, seed: int = 0) -> Array:
    """Return how often the space's random genotypes have each option of each choice, one after the other."""
    rng = np.random.default_rng([seed, 0x9081])
    sizes = [len(choice.options) for choice in space.choices]
    drawn = np.array([space.sample(rng) for _ in range(PRIOR_SAMPLES)])
    counts = [np.bincount(drawn[:, place], minlength=size) for place, size in enumerate(sizes)]
    return np.concatenate([(count + 1.0) / (count + 1.0).sum() for count in counts])


def softmax(logits: Array) -> Array:
    """Return probabilities."""
    shifted = np.exp(logits - logits.max())
    return np.asarray(shifted / shifted.sum())
