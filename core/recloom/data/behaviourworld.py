"""A world of behaviour histories whose click probabilities are known: the generator behind `SyntheticBehaviour`.

Every category has a period, and its items a Zipf popularity. A user has a few interests: a category and a phase each.
An interest may have switched at some time; before, it was another category and phase. The steps of a history fall at
uniform times in four weeks: a part of them is noise, any category by popularity; the others belong to one of the user's
interests each, and are moved back to the last time at which the interest was due, give or take a jitter. The user then
stays away, for any time up to the least common multiple of the periods, and comes back to see a candidate.

The click probability is a function of the history and the candidate alone, so a model can reach it. Of the steps of
the candidate's category, let r be a step's place from the end (0 the latest), g its gap in seconds, P the period:

    a = sum 2^(-r / 10)                           how current the interest is: places tell, times don't
    d = sum 2^(-r / 10) cos(2 pi g / P)           whether it is due
    logit = bias + signal (sqrt(periodicity) d / (1 + a) / D
                           + sqrt(1 - periodicity) (sqrt(1 - quality) (log(1 + a) - M) / A + sqrt(quality) q[item]))

D, M and A make each term's mean 0 and variance 1. Since the time away is uniform over whole periods, d has mean 0
whatever the ids and their order: without times nothing can be known of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from recloom.batch import Batch, KeyedJaggedTensor, Sequences
from recloom.data.hashing import uniform
from recloom.data.world import BLOCK_ROWS, START, World, fit_bias, zipf

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]

HALF_LIFE = 10  # steps
_HOUR = 3600
_SPAN = 28 * 86_400  # seconds that a history goes back from its last step, before steps move to when they were due
_VISITS = 42 * 86_400  # the training rows span six weeks: shared users come back when their history has passed
_AGE_BITS = 23  # ages of steps, in seconds, are below 97 days
_CALIBRATION_ROWS = 50_000


@dataclass(frozen=True)
class BehaviourWorldConfig:
    """What a world is made from; worlds of equal configs are equal. See `SyntheticBehaviour` for the fields."""

    rows: tuple[int, int, int]
    seed: int
    max_length: int
    mean_length: float
    num_items: int
    num_categories: int
    zipf: float
    interests: int
    periods: tuple[int, ...]  # hours
    jitter: float
    noise: float
    switching: float
    periodicity: float
    quality: float
    base_ctr: float
    signal: float
    shared_users: bool

    def build(self) -> BehaviourWorld:
        """Make the world."""
        return BehaviourWorld(self)


@dataclass
class _Visits:
    """B users who come back: what they did (N steps), what they are shown, and what it depends on."""

    lengths: Ints  # B
    items: Ints  # N
    ages: Ints  # N seconds before the last step's time, at the earliest
    candidates: Ints  # B items
    away: Ints  # B seconds since then
    current: Floats  # B, a
    due: Floats  # B, d / (1 + a)


class BehaviourWorld(World):
    """The tables of a world, and its rows.

    Args:
        config: What to build.
    """

    def __init__(self, config: BehaviourWorldConfig) -> None:
        self.config = config
        random = np.random.default_rng(np.random.SeedSequence([config.seed, 0]))
        categories = config.num_categories
        spread = np.arange(categories) % len(config.periods)
        self.periods = np.array(config.periods, np.int32)[random.permutation(spread)] * _HOUR  # of each category
        self._away = math.lcm(*config.periods) * _HOUR
        # item i is number i // C by popularity in category i % C
        popularity = zipf(config.num_items // categories, config.zipf)
        self._numbers = np.cumsum(popularity)
        self._categories = np.cumsum(zipf(categories, config.zipf))
        quality = random.standard_normal((len(popularity), categories))
        quality -= popularity @ quality
        self.quality: Floats = (quality / np.sqrt((popularity @ quality**2).mean() + 1e-30)).reshape(-1)
        self._scales = (1.0, 0.0, 1.0)  # D, M, A
        self._bias = 0.0
        self._calibrate()

    def block(self, split: int, index: int) -> Batch:
        """Return block `index` of split number `split` (0 train, 1 val, 2 test): a function of the config alone."""
        config = self.config
        count = min(BLOCK_ROWS, config.rows[split] - index * BLOCK_ROWS)
        random = np.random.Generator(np.random.SFC64(np.random.SeedSequence([config.seed, 1 + split, index])))
        rows = sum(config.rows[:split]) + index * BLOCK_ROWS + np.arange(count)
        now = START + (rows * (_VISITS / max(config.rows[0], 1))).astype(np.int64)
        users = rows % config.rows[0] if config.shared_users else rows
        visits = self._visits(random, users, now, split)
        probability = (1 / (1 + np.exp(-self._logits(visits)))).astype(np.float32)
        ids = [visits.candidates, visits.candidates % config.num_categories]
        names = ["item", "category"]
        if config.shared_users:
            ids, names = [*ids, users], [*names, "user"]
        steps = np.stack([visits.items, visits.items % config.num_categories], axis=1).astype(np.int32)
        ended = np.repeat(now - visits.away, visits.lengths)
        history = Sequences(
            names[:2],
            torch.from_numpy(steps),
            torch.from_numpy(np.concatenate([[0], np.cumsum(visits.lengths)])),
            torch.from_numpy(ended - visits.ages),
        )
        return Batch(
            dense_features=torch.zeros(count, 0),
            sparse_features=KeyedJaggedTensor(names, torch.from_numpy(np.concatenate(ids).astype(np.int32))),
            labels=torch.from_numpy((random.random(count, np.float32) < probability).astype(np.float32)),
            sequences={"history": history},
            timestamps=torch.from_numpy(now),
            extras={"probability": torch.from_numpy(probability)},
        )

    def _visits(self, random: np.random.Generator, users: Ints, now: Ints, split: int) -> _Visits:
        config, count = self.config, len(users)
        away = random.integers(1, self._away, count, endpoint=True)
        before, after = self._interests(users, split)
        lengths = np.minimum(random.geometric(1 / (config.mean_length + 1), count) - 1, config.max_length)
        row = np.repeat(np.arange(count), lengths)
        category, ages = self._steps(random, row, before, after, now - away)
        items = self._items(random, category)
        # rows in order, the oldest step first
        bits = config.num_items.bit_length()
        packed = ((row << _AGE_BITS) + ((1 << _AGE_BITS) - 1 - ages) << bits) + items
        packed.sort()
        items = packed & ((1 << bits) - 1)
        ages = (1 << _AGE_BITS) - 1 - (packed >> bits & ((1 << _AGE_BITS) - 1))
        # half of the candidates are of current interests, a quarter of what was one before the switch
        kind, slot, each = random.random(count), random.integers(config.interests, size=count), np.arange(count)
        shown = np.where(kind < 0.5, after[0][each, slot], before[0][each, slot])
        shown = np.where(kind < 0.75, shown, self._popular(random, count))
        # the terms of the logit
        alike = np.flatnonzero(items % config.num_categories == shown[row])
        owner = row[alike]
        weights = 0.5 ** ((np.cumsum(lengths)[owner] - 1 - alike) / HALF_LIFE)
        turns = (ages[alike] + away[owner]) / self.periods[shown[owner]]
        current = np.bincount(owner, weights, count).astype(np.float64)
        due = np.bincount(owner, weights * np.cos(2 * np.pi * turns), count) / (1 + current)
        return _Visits(lengths, items, ages, self._items(random, shown), away, current, due)

    def _interests(self, users: Ints, split: int) -> tuple[tuple[Ints, Floats], tuple[Ints, Floats]]:
        """Return the B x S (categories, phases as parts of a period) before the switch, and those after it.

        They are functions of the user: who is in several splits has the same interests, or those after the next switch.
        """
        config = self.config
        places = (users[:, None] * config.interests + np.arange(config.interests)).astype(np.int64)

        def trait(number: int) -> Floats:
            return uniform(places.reshape(-1), config.seed * 1000 + number).reshape(places.shape)

        after = ((trait(0) * config.num_categories).astype(np.int32), trait(1))
        for era in range(3, 3 * split + 6, 3):
            before, switched = after, trait(era + 2) < config.switching
            category = (trait(era) * config.num_categories).astype(np.int32)
            after = (np.where(switched, category, before[0]), np.where(switched, trait(era + 1), before[1]))
        return before, after

    def _steps(
        self,
        random: np.random.Generator,
        row: Ints,
        before: tuple[Ints, Floats],
        after: tuple[Ints, Floats],
        end: Ints,
    ) -> tuple[Ints, Ints]:
        """Return the N categories and ages of steps, in no order; `row` is the row of each."""
        config, count = self.config, len(row)
        switch = random.random(before[0].shape, np.float32) * _SPAN
        place = row * config.interests + random.integers(config.interests, size=count, dtype=np.int32)
        ages = random.random(count, np.float32) * _SPAN
        old = ages > switch.reshape(-1)[place]
        category = np.where(old, before[0].reshape(-1)[place], after[0].reshape(-1)[place])
        phase = np.where(old, before[1].reshape(-1)[place], after[1].reshape(-1)[place])
        period = self.periods[category]
        latest = (end[row] - phase * period) % period  # age of the last time at which it was due
        due = latest + period * np.ceil((ages - latest) / period)
        due += random.standard_normal(count, np.float32) * (config.jitter * period)
        noise = random.random(count, np.float32) < config.noise
        category = np.where(noise, self._popular(random, count), category)
        return category, np.where(noise, ages, np.clip(due, 0, (1 << _AGE_BITS) - 1)).astype(np.int64)

    def _popular(self, random: np.random.Generator, count: int) -> Ints:
        """Return `count` categories by popularity."""
        found = np.searchsorted(self._categories, random.random(count), side="right")
        return np.minimum(found, len(self._categories) - 1)

    def _items(self, random: np.random.Generator, category: Ints) -> Ints:
        """Return an item of each category by popularity."""
        found = np.searchsorted(self._numbers, random.random(len(category)), side="right")
        return np.minimum(found, len(self._numbers) - 1) * self.config.num_categories + category

    def _logits(self, visits: _Visits) -> Floats:
        config, (spread, mean, width) = self.config, self._scales
        rest = np.sqrt(1 - config.quality) * (np.log1p(visits.current) - mean) / width
        rest += np.sqrt(config.quality) * self.quality[visits.candidates]
        due = np.sqrt(config.periodicity) * visits.due / spread
        return self._bias + config.signal * (due + np.sqrt(1 - config.periodicity) * rest)

    def _calibrate(self) -> None:
        """Set D, M, A and the bias, from rows that are in no split."""
        random = np.random.default_rng(np.random.SeedSequence([self.config.seed, 4]))
        users = -1 - np.arange(_CALIBRATION_ROWS)
        visits = self._visits(random, users, np.full(len(users), START), 0)
        current = np.log1p(visits.current)
        self._scales = (float(visits.due.std()), float(current.mean()), float(current.std()))
        self._bias = fit_bias(self._logits(visits), self.config.base_ctr)
