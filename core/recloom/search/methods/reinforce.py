"""Reinforcement learning: a policy over genotypes that is moved towards what did well."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from recloom.errors import RecloomError
from recloom.search.evaluator import SearchContext
from recloom.search.method import History, Observation, SearchMethod
from recloom.search.methods.random import best_first
from recloom.search.policy import Kind, Policy
from recloom.search.space import Genotype

MOST_WEIGHT = 2.0  # of an off-policy sample
WINDOW = 200  # candidates among which a new one is ranked


class Reinforce(SearchMethod):
    """REINFORCE (Williams 1992) over the genotype; on-policy, and off-policy by importance weights from the history.

    The reward of a candidate is its rank among those that were tried before and with it, from 1 for the best to -1:
    the same for one value and for several (by front and crowding), and diverged ones simply come last. A penalty in
    the objective (TuNAS, Bender et al. 2020, -|cost / target - 1|) is part of what is ranked. The policy is updated
    once a generation, from its candidates; then `replay` times from random earlier ones, weighted by the ratio of the
    policy's probability now and when they were proposed, at most 2. Everything is replayed from the history.

    Args:
        policy: "independent": choices are drawn on their own. "autoregressive": each given those before it.
        lr: Step size.
        generation: Candidates between two updates; a multiple of the search's `batch`.
        replay: Earlier candidates learned from anew at each update, as a multiple of `generation`; 0: on-policy alone.
        entropy: Weight of the entropy, against settling too early.
        explore: Probability that a choice is drawn uniformly.
        initial: Random candidates at first, which the policy then learns from.
    """

    def __init__(
        self,
        policy: Kind = "independent",
        lr: float = 0.3,
        generation: int = 8,
        replay: int = 2,
        entropy: float = 0.002,
        explore: float = 0.02,
        initial: int = 16,
    ) -> None:
        if generation < 1 or replay < 0 or lr <= 0:
            raise RecloomError(
                f"reinforcement learning with generation {generation}, replay {replay}, lr {lr}", "See --help."
            )
        self.policy, self.lr, self.generation, self.replay = policy, lr, generation, replay
        self.entropy, self.explore, self.initial = entropy, explore, initial

    def setup(self, context: SearchContext) -> None:
        """Prepare for a search."""
        super().setup(context)
        self._forget()

    def ask(self, history: History, rng: np.random.Generator) -> Genotype:
        """Return a genotype that the policy draws."""
        if history.number < self.initial:
            return self.space.sample(rng)
        generation = history.number // self.generation
        known = [o for o in history.finished if o.number < generation * self.generation]
        return self.learned(known, generation).sample(rng, self.explore)

    def learned(self, known: Sequence[Observation], generations: int) -> Policy:
        """Return the policy after what finished of the first generations."""
        if [o.number for o in known[: len(self._used)]] != self._used or generations < self._done:
            self._forget()  # something finished late, or another history
        while self._done < generations:
            end = (self._done + 1) * self.generation
            new = [o for o in known[len(self._used) :] if o.number < end and o.evaluated]
            self._used += [o.number for o in known[len(self._used) :] if o.number < end]
            self._update(new)
            self._done += 1
        return self._now

    def _forget(self) -> None:
        self._now = Policy(self.space, self.policy, self.seed)
        self._used: list[int] = []
        self._done = 0
        self._memory: list[tuple[Observation, tuple[bool, ...], float]] = []

    def _update(self, new: list[Observation]) -> None:
        """Learn from a generation, and from what was tried earlier."""
        fresh = []
        for o in new:
            live = self.space.matters(o.genotype)
            fresh.append((o, live, self._now.log_probability(o.genotype, live)))
        self._memory += fresh
        if not fresh:
            return
        recent = self._memory[-WINDOW:]
        rewards = dict(zip((o.number for o, *_ in recent), ranked([o for o, *_ in recent]), strict=True))
        step = self.lr / math.sqrt(self.generation)
        for o, live, _ in fresh:
            self._now.reinforce(o.genotype, live, step * rewards[o.number], self.entropy)
        rng = np.random.default_rng([self.seed, self._done])
        for place in rng.integers(len(recent), size=self.replay * self.generation):
            o, live, then = recent[place]
            now = self._now.log_probability(o.genotype, live)
            weight = math.exp(min(now - then, math.log(MOST_WEIGHT)))
            self._now.reinforce(o.genotype, live, step * weight * rewards[o.number])


def ranked(observations: list[Observation]) -> list[float]:
    """Return for each observation 1 if it is the best to -1 if it is the worst."""
    found = [0.0] * len(observations)
    for rank, place in enumerate(best_first(observations)):
        found[place] = 1 - 2 * rank / max(len(observations) - 1, 1)
    return found
