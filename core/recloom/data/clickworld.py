"""A world of clicks whose probabilities are known: the generator behind `SyntheticClicks`. Imports no Lightning.

The logit of a row is a sum of independent terms of known variance:

    dense features      a_j x_j + b_j (x_j^2 - 1)
    categories          w_f[c]
    pairs               <v_f[c], v_g[c']>             a low-rank interaction: logistic regression sees none of it
    cross               sum_k u_f[c] u_g[c'] u_h[c''] and x_j q_f[c]: dot products of categories see none of it

Every table is centred and scaled under the popularity of its ids, so that a term of order two adds nothing to the
terms of order one. Under drift a table turns from one independent draw to another as time passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recloom.batch import Batch, KeyedJaggedTensor
from recloom.data.world import BLOCK_ROWS, SPLITS, START, World, fit_bias, zipf

_WEEK = 7 * 86_400  # the training rows span a week


@dataclass(frozen=True)
class ClickWorldConfig:
    """What a world is made from; worlds of equal configs are equal. See `SyntheticClicks` for the fields."""

    rows: tuple[int, int, int]
    seed: int
    num_dense: int
    cardinalities: tuple[int, ...]
    mean_lengths: tuple[float, ...]
    zipf: float
    num_pairs: int
    rank: int
    interaction: float
    cross: float
    drift: float
    base_ctr: float
    signal: float

    def max_length(self, feature: int) -> int:
        """Return the length at which a feature's bags are cut; 1 for one-hot features."""
        mean = self.mean_lengths[feature]
        return 1 if mean == 1 else int(np.ceil(4 * mean))

    def build(self) -> ClickWorld:
        """Make the world."""
        return ClickWorld(self)


@dataclass(frozen=True)
class _Term:
    """A product of columns of the features' tables, summed over `columns`; with a dense feature or none."""

    features: tuple[int, ...]
    columns: tuple[slice, ...]
    dense: int | None = None


class ClickWorld(World):
    """The tables of a world, and its rows.

    Args:
        config: What to build.
    """

    def __init__(self, config: ClickWorldConfig) -> None:
        self.config = config
        random = np.random.default_rng(np.random.SeedSequence([config.seed, 0]))
        self._popularity = [zipf(size, config.zipf) for size in config.cardinalities]
        self._cumulative = [np.cumsum(popularity) for popularity in self._popularity]
        self._dense_weights = self._plan_dense(random)
        self._terms, widths = self._plan_terms(random)
        # one table a feature and drift state: column 0 holds w_f, the others the latents of its terms
        states = 2 if config.drift else 1
        self._tables = [
            [torch.from_numpy(self._table(random, f, width)) for f, width in enumerate(widths)] for _ in range(states)
        ]
        self._term_scales = [self._term_scale(term) for term in self._terms]
        self._bias = 0.0
        self._bias = self._fit_bias()

    def block(self, split: int, index: int) -> Batch:
        """Return block `index` of split number `split` (0 train, 1 val, 2 test): a function of the config alone."""
        config = self.config
        start = index * BLOCK_ROWS
        count = min(BLOCK_ROWS, config.rows[split] - start)
        random = np.random.Generator(np.random.SFC64(np.random.SeedSequence([config.seed, 1 + split, index])))
        position = (sum(config.rows[:split]) + start + np.arange(count)) / max(config.rows[0], 1)
        dense = torch.from_numpy(random.standard_normal((count, config.num_dense), dtype=np.float32))
        ids, lengths = zip(*(self._draw(random, f, count) for f in range(len(config.cardinalities))), strict=True)
        probability = torch.sigmoid(self._logits(dense, ids, lengths, torch.from_numpy(position)))
        chance = torch.from_numpy(random.random(count, dtype=np.float32))
        one_hot = all(length is None for length in lengths)
        ones = torch.ones(count, dtype=torch.int64)
        return Batch(
            dense_features=dense,
            sparse_features=KeyedJaggedTensor(
                [f"c{f}" for f in range(len(ids))],
                torch.cat(ids).int(),
                lengths=None if one_hot else torch.cat([ones if length is None else length for length in lengths]),
            ),
            labels=(chance < probability).float(),
            timestamps=torch.from_numpy(START + (position * _WEEK).astype(np.int64)),
            extras={"probability": probability},
        )

    def _draw(self, random: np.random.Generator, feature: int, count: int) -> tuple[Tensor, Tensor | None]:
        """Return the ids of a feature for `count` rows, and the lengths of the rows' bags (None: one id each)."""
        mean, longest = self.config.mean_lengths[feature], self.config.max_length(feature)
        lengths = None if longest == 1 else torch.from_numpy(np.minimum(random.poisson(mean, count), longest))
        total = count if lengths is None else int(lengths.sum())
        ids = np.searchsorted(self._cumulative[feature], random.random(total), side="right")
        return torch.from_numpy(ids.clip(max=self.config.cardinalities[feature] - 1)), lengths

    def _logits(
        self, dense: Tensor, ids: Sequence[Tensor], lengths: Sequence[Tensor | None], position: Tensor
    ) -> Tensor:
        """Return B logits; `position` is the time, 0 at the first training row and 1 after the last."""
        config = self.config
        linear, square = self._dense_weights
        logits = self._bias + dense @ linear + (dense * dense - 1) @ square
        pooled = [_pool(table, i, length, m) for table, i, length, m in self._lookups(self._tables[0], ids, lengths)]
        if config.drift:
            angle = (position * (config.drift * np.pi / 2)).float()[:, None]
            later = [_pool(table, i, length, m) for table, i, length, m in self._lookups(self._tables[1], ids, lengths)]
            pooled = [a * angle.cos() + b * angle.sin() for a, b in zip(pooled, later, strict=True)]
        for values in pooled:
            logits += values[:, 0]
        for term, scale in zip(self._terms, self._term_scales, strict=True):
            product = pooled[term.features[0]][:, term.columns[0]]
            for feature, columns in zip(term.features[1:], term.columns[1:], strict=True):
                product = product * pooled[feature][:, columns]
            value = product.sum(1) if term.dense is None else product.sum(1) * dense[:, term.dense]
            logits += scale * value
        return logits

    def _lookups(
        self, tables: list[Tensor], ids: Sequence[Tensor], lengths: Sequence[Tensor | None]
    ) -> list[tuple[Tensor, Tensor, Tensor | None, float]]:
        return list(zip(tables, ids, lengths, self.config.mean_lengths, strict=True))

    def _plan_dense(self, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw a_j and b_j; their terms together have the variance that `_share` gives them."""
        weights = random.standard_normal((2, self.config.num_dense)) * [[1.0], [0.4]]
        variance = float((weights[0] ** 2).sum() + 2 * (weights[1] ** 2).sum())  # Var(x^2) = 2
        weights *= np.sqrt(self._share("dense") / max(variance, 1e-30))
        linear, square = torch.from_numpy(weights).float()
        return linear, square

    def _plan_terms(self, random: np.random.Generator) -> tuple[list[_Term], list[int]]:
        """Choose which features interact; return the terms and the width of each feature's table."""
        config, features = self.config, len(self.config.cardinalities)
        widths = [1] * features
        terms: list[_Term] = []

        def add(chosen: Sequence[int], dense: int | None = None) -> None:
            columns = []
            for feature in chosen:
                columns.append(slice(widths[feature], widths[feature] + config.rank))
                widths[feature] += config.rank
            terms.append(_Term(tuple(chosen), tuple(columns), dense))

        pairs = [(f, g) for f in range(features) for g in range(f + 1, features)]
        pairs.sort(key=lambda pair: config.cardinalities[pair[0]] * config.cardinalities[pair[1]])
        learnable = max(len(pairs) // 2, min(config.num_pairs, len(pairs)))  # few cells, so that each is seen often
        for place in random.permutation(learnable)[: config.num_pairs]:
            add(pairs[place])
        if config.cross:
            for _ in range((config.num_pairs + 1) // 2):
                add([int(f) for f in random.permutation(features)[: min(3, features)]])
                if config.num_dense:
                    add([int(random.integers(features))], int(random.integers(config.num_dense)))
        return terms, widths

    def _table(self, random: np.random.Generator, feature: int, width: int) -> np.ndarray:
        """Draw a feature's table, centred and of unit variance under its popularity; column 0 scaled to its share."""
        popularity = self._popularity[feature]
        table = random.standard_normal((len(popularity), width))
        table -= popularity @ table
        table /= np.sqrt(popularity @ table**2 + 1e-30)
        table[:, 0] *= np.sqrt(self._share("main") / len(self.config.cardinalities))
        return table.astype(np.float32)

    def _term_scale(self, term: _Term) -> float:
        """Return what gives a term its share of the variance, from the covariances of its tables' columns."""
        product = np.ones((self.config.rank, self.config.rank))
        for feature, columns in zip(term.features, term.columns, strict=True):
            part = self._tables[0][feature][:, columns].double().numpy()
            product *= part.T @ (part * self._popularity[feature][:, None])
        kind = "pairs" if len(term.features) == 2 else "cross"
        alike = sum((len(other.features) == 2) == (len(term.features) == 2) for other in self._terms)
        return float(np.sqrt(self._share(kind) / alike / max(product.sum(), 1e-30)))

    def _share(self, kind: str) -> float:
        """Return the variance of the logit that all terms of a kind have together."""
        config = self.config
        interaction = config.interaction if config.num_pairs else 0.0
        shares = {
            "dense": 0.3 * (1 - interaction) if config.num_dense else 0.0,
            "main": (0.7 if config.num_dense else 1.0) * (1 - interaction),
            "pairs": interaction * (1 - config.cross),
            "cross": interaction * config.cross,
        }
        return shares[kind] * config.signal**2

    def _fit_bias(self) -> float:
        """Return the constant that makes the mean probability `base_ctr`, from rows that are in no split."""
        config = self.config
        random = np.random.default_rng(np.random.SeedSequence([config.seed, 1 + len(SPLITS)]))
        numbers = config.num_dense + sum(config.mean_lengths)
        count = int(np.clip(2e7 / max(numbers, 1), 2_000, 50_000))  # fewer rows, where a row has thousands of numbers
        dense = torch.from_numpy(random.standard_normal((count, config.num_dense), dtype=np.float32))
        ids, lengths = zip(*(self._draw(random, f, count) for f in range(len(config.cardinalities))), strict=True)
        logits = self._logits(dense, ids, lengths, torch.linspace(0, 1, count)).double()
        return fit_bias(logits.numpy(), config.base_ctr)


def _pool(table: Tensor, ids: Tensor, lengths: Tensor | None, mean_length: float) -> Tensor:
    """Return B x width: the rows of `ids`, summed over each bag and divided by the root of the mean length."""
    if lengths is None:
        return torch.nn.functional.embedding(ids, table)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    bags = torch.nn.functional.embedding_bag(ids, table, offsets, mode="sum", include_last_offset=True)
    return bags / mean_length**0.5
