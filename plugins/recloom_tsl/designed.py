"""The paper's designed data set, where what decides a label is known, and the layers compared on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from recloom.batch import Batch, KeyedJaggedTensor
from recloom.data.module import BlockDataModule
from recloom.data.plan import RankSplit
from recloom.data.world import BLOCK_ROWS, World, WorldBlocks
from recloom.errors import RecloomError, unknown
from recloom.features import DenseFeature, FeatureSchema
from recloom.model import RankingModule
from recloom.optim import OptimizerConfig
from recloom_tsl.heads import HeadMLP
from recloom_tsl.tsl import TSL


@dataclass(frozen=True)
class DesignedConfig:
    """What a designed data set is made from; see `DesignedSequences`."""

    rows: tuple[int, int, int]
    seed: int
    length: int
    width: int
    terms: int

    def build(self) -> DesignedWorld:
        """Make the world."""
        return DesignedWorld(self)


class DesignedWorld(World):
    """Rows of a designed data set: T steps h_t and a candidate w of width d, all U(-1, 1).

    K times w <- w + P w, for random permutations P that all rows share; the label is whether mean_t <h_t, w> > 0.

    Args:
        config: What to build.
    """

    def __init__(self, config: DesignedConfig) -> None:
        self.config = config
        generator = np.random.default_rng(np.random.SeedSequence([config.seed, 3]))
        self.permutations = [generator.permutation(config.width) for _ in range(config.terms)]

    def block(self, split: int, index: int) -> Batch:
        """Return block `index` of split number `split`."""
        config = self.config
        rows = min(BLOCK_ROWS, config.rows[split] - index * BLOCK_ROWS)
        generator = np.random.default_rng(np.random.SeedSequence([config.seed, split, index]))
        vectors = generator.uniform(-1.0, 1.0, (rows, config.length + 1, config.width))
        candidate = vectors[:, -1]
        for permutation in self.permutations:
            candidate = candidate + candidate[:, permutation]
        similarity = (vectors[:, :-1].mean(axis=1) * candidate).sum(axis=1)
        return Batch(
            dense_features=torch.from_numpy(vectors.reshape(rows, -1).astype(np.float32)),
            sparse_features=KeyedJaggedTensor([], torch.empty(0, dtype=torch.int64)),
            labels=torch.from_numpy((similarity > 0).astype(np.float32)),
        )


class DesignedSequences(BlockDataModule):
    """The paper's designed data set: a label is the sign of the mean similarity of T random vectors to another one.

    The similarity is an inner product after K steps w <- w + P w with random permutations P of w's d coordinates. For
    K = 0 it is the plain dot product; the larger K, the farther from it. A row's vectors are its dense features: the
    steps h_1, ..., h_T, then w.

    Args:
        num_train: Training rows.
        num_val: Validation rows.
        num_test: Test rows.
        batch_size: Rows of a training batch, per rank.
        eval_batch_size: Rows of an evaluation batch, per rank.
        num_workers: Processes that generate rows, per rank and split; 0 generates in the training process.
        shuffle: Draw the order of the blocks of training rows anew in each epoch.
        seed: Seed of the permutations and the rows.
        length: Number of steps, T.
        width: Width of the vectors, d.
        terms: Number of permutations, K; the paper's are 0, 10, 20 and 30.
        rank_split: "blocks": each rank takes its own span of the rows. "rows": each rank takes its part of every
            global batch, so that R ranks see what one rank with an R times larger batch sees.
    """

    def __init__(
        self,
        num_train: int = 50_000,
        num_val: int = 5_000,
        num_test: int = 5_000,
        batch_size: int = 128,
        eval_batch_size: int = 5_000,
        num_workers: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        length: int = 10,
        width: int = 5,
        terms: int = 10,
        rank_split: RankSplit = "blocks",
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, shuffle, rank_split)
        if min(num_train, num_val, num_test, terms) < 0 or min(length, width) < 1:
            raise RecloomError(
                f"designed sequences of {length} steps of width {width}, {terms} terms, and "
                f"{num_train}, {num_val} and {num_test} rows cannot be made",
                "Give at least one step and width 1, and no negative numbers.",
            )
        self.config = DesignedConfig((num_train, num_val, num_test), seed, length, width, terms)
        names = [f"h{t}_{j}" for t in range(1, length + 1) for j in range(width)] + [f"w_{j}" for j in range(width)]
        self._schema = FeatureSchema(
            dense=tuple(DenseFeature(name) for name in names),
            info={"generator": "DesignedSequences", "seed": seed, "terms": terms},
        )

    @property
    def schema(self) -> dict[str, Any]:
        """The FeatureSchema as a dict of primitives."""
        return self._schema.to_dict()

    def source(self, split: str, shuffle: bool = False) -> WorldBlocks:
        """Return the blocks of `split` ("train", "val" or "test")."""
        return WorldBlocks(self.config, split, shuffle)


Kind = Literal["dot", "ind", "def", "mha", "concat"]


class DesignedModel(RankingModule):
    """A layer over given vectors, then an MLP e-2e-1 to the logit: the published script's models, by `kind`.

    "dot", "ind" and "def" give the MLP TSL's scores (e = K T); "mha" the output of multi-head attention, whose heads
    are as wide as the vectors (e = K d); "concat" the vectors themselves (e = (T + 1) d).

    Args:
        schema: Feature schema of the data; filled in from the data module.
        kind: The layer: dot, ind, def, mha or concat.
        heads: Number of heads, K.
        length: Number of steps, T.
        width: Width of the vectors, d.
        frozen: What the published script does: A keeps its initial values, and multi-head attention gets new random
            weights at every call. By default all weights are trained. Nothing of "dot" and "concat" can be frozen.
        optimizer: Optimizers and learning rates.
    """

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        kind: Kind = "def",
        heads: int = 1,
        length: int = 10,
        width: int = 5,
        frozen: bool = False,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(schema, optimizer)
        columns = len(self.schema.dense)
        if columns != (length + 1) * width:
            raise RecloomError(
                f"the data have {columns} dense features; {length} steps and a candidate of width {width} make "
                f"{(length + 1) * width}",
                "Give the model the length and width of the data.",
            )
        if kind not in ("dot", "ind", "def", "mha", "concat"):
            raise unknown("kind of DesignedModel", kind, ("dot", "ind", "def", "mha", "concat"))
        if frozen and kind in ("dot", "concat"):
            raise RecloomError(f"{kind!r} has nothing to freeze", "Leave out `frozen`.")
        self.length, self.width = length, width
        self.layer: nn.Module | None = None
        if kind == "mha":
            self.layer = MultiHeadAttention(width, heads, frozen)
            inner = heads * width
        elif kind == "concat":
            inner = columns
        else:
            self.layer = tsl = TSL(width, length, kind, "mul", heads, normalize=False)  # type: ignore[arg-type]
            if tsl.a is not None:
                tsl.a.data += torch.eye(width)
                tsl.a.requires_grad_(not frozen)
            inner = heads * length
        self.over_arch = HeadMLP(1, [inner, 2 * inner, 1])

    def forward(
        self, dense: Tensor, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Return B logits; of the inputs only `dense`, B x ((T + 1) d), is used."""
        vectors = dense.unflatten(1, (self.length + 1, self.width))
        steps, candidate = vectors[:, :-1], vectors[:, -1]
        if isinstance(self.layer, TSL):
            found = self.layer.scores(steps, candidate, steps.new_ones(steps.shape[:2], dtype=torch.bool)).flatten(1)
        else:
            found = dense if self.layer is None else self.layer(steps, candidate)
        return self.over_arch(found).flatten()


class MultiHeadAttention(nn.Module):
    """The published script's comparison: projections to K d columns, then torch's multi-head attention.

    Args:
        width: Width of the vectors, d.
        heads: Number of heads, K.
        frozen: Draw the weights of the attention (not of the projections) anew at every call.
    """

    def __init__(self, width: int, heads: int, frozen: bool) -> None:
        super().__init__()
        self.heads, self.inner = heads, heads * width
        self.query, self.key, self.value = (
            nn.Parameter(torch.randn(width, self.inner) / math.sqrt(width)) for _ in range(3)
        )
        self.attention = None if frozen else self._draw()

    def _draw(self) -> nn.MultiheadAttention:
        return nn.MultiheadAttention(self.inner, self.heads, batch_first=True)

    def forward(self, steps: Tensor, candidate: Tensor) -> Tensor:
        """Map B x T x d steps and B x d candidates to B x (K d)."""
        attention = self._draw().to(steps.device) if self.attention is None else self.attention
        query = candidate.unsqueeze(1) @ self.query
        return attention(query, steps @ self.key, steps @ self.value, need_weights=False)[0].squeeze(1)
