"""NASRec's weight-sharing supernet: the weights of all models of a space, of which each step trains a path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from recloom.batch import Batch
from recloom.embedding import EmbeddingFactory, FusedEmbeddingBag, bag_configs
from recloom.errors import RecloomError, unknown
from recloom.optim import OptimizerConfig
from recloom.search.operators import Piece, Pieces
from recloom.search.space import Genotype, SearchSpace
from recloom.search.supernet import Supernet
from recloom_nasrec.architecture import Architecture, Block, Live
from recloom_nasrec.blocks import paired_tokens
from recloom_nasrec.mergers import SPLITS
from recloom_nasrec.model import published_optimizer
from recloom_nasrec.network import NASRecNetwork, sizes_of, stem_features
from recloom_nasrec.sampling import Coin, PathSampler, Strategy, full_path
from recloom_nasrec.space import NASRecSpace
from recloom_nasrec.walk import Keys, Walk

Path = Genotype | Architecture


class NASRecSupernet(Supernet):
    """The supernet: every operator at its largest, of which a path uses slices.

    Mode "mask" is the published arithmetic: operators at their full size on inputs in which zeros stand for what is not
    chosen; normalised over the full width, then masked; masked tokens take their share of attention. Mode "fast"
    computes the slices alone, normalises over them, and attends to the tokens that there are. Both are the same where
    there is neither normalisation nor attention. What does not reach the logit is computed in neither.

    Args:
        space: The space, a NASRecSpace.
        schema: Feature schema of the data, with one label.
        mode: "fast" or "mask".
        layer_norm: Whether operators have layer normalisations; on, as published.
        strategy: How a step's path is drawn: "single-operator any-connection" (the paper's choice), or its ablations.
        warmup_steps: Steps over which the probability of training the full path goes from 1 to 0. Published: 15,000
            (Criteo), 12,500 (Avazu), 20,000 (KDD), of one epoch.
        warmup_coin: "step": one coin decides for the whole path. "block": one for all connections and one for the
            inside of each block, as the reference implementation does it.
        seed: Seed of the paths.
        embedding: Embedding tables: FusedEmbeddingBag, or any other EmbeddingBagCollection.
        optimizer: Optimizers and learning rates; unset: Adagrad as published, learning rate 0.12, eps 0.01, and
            gradients clipped to norm 5.
    """

    def __init__(
        self,
        space: SearchSpace,
        schema: dict[str, Any],
        mode: Literal["fast", "mask"] = "fast",
        layer_norm: bool = True,
        strategy: Strategy = "single-operator any-connection",
        warmup_steps: int = 0,
        warmup_coin: Coin = "step",
        seed: int = 0,
        embedding: EmbeddingFactory = FusedEmbeddingBag,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        if not isinstance(space, NASRecSpace):
            raise RecloomError(f"NASRecSupernet is of NASRecSpace, not of {type(space).__name__}", "Change the space.")
        if mode not in ("fast", "mask"):
            raise unknown("mode", mode, ("fast", "mask"))
        published = published_optimizer(0.12)
        published.clip_norm = 5.0
        super().__init__(space, schema, seed, optimizer or published)
        if len(self.schema.labels) != 1:
            raise RecloomError("NASRecSupernet ranks by one label, and the data have several", "Keep one label.")
        self.nasrec = space
        self.mode = mode
        self.layer_norm = layer_norm
        self._places = {choice.name: place for place, choice in enumerate(space.choices)}
        self.sampler = PathSampler(space, strategy, warmup_steps, warmup_coin)
        self.keys = Keys()
        self.embedding = embedding
        self.sparse_arch = embedding(bag_configs(self.schema, space.embedding_dim))
        everything = [Live(True, True, True, True) for _ in range(space.num_blocks + 1)]
        self.pairs = paired_tokens(max(space.dense_dims))
        self.network = NASRecNetwork(
            full_path(space),
            sizes_of(self.schema),
            self.sparse_arch.output_dim,
            layer_norm,
            "apart",
            live=everything,
            pairs=self.pairs,
        )

    relaxed = True

    # The contract of Supernet

    def sample_path(self, step: int) -> Architecture:
        """Return the path of optimizer step `step`: a function of the seed and the step."""
        return self.sampler(step, np.random.default_rng([self.seed, step]))

    def forward(
        self, dense: Tensor, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Return B logits along `self.path`."""
        walk = self._walk((stem_features(dense), self._tokens(values, offsets, weights)), self.architecture(self.path))
        return self.network.head(*self._ends(walk), width=1).squeeze(1)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return B x (dense features) and B x D x (sparse features)."""
        sparse = batch.sparse_features
        return stem_features(batch.dense_features), self._tokens(sparse.values, sparse.bag_offsets, sparse.weights)

    def features(
        self, inputs: tuple[Tensor, ...], paths: Sequence[Path], memory: dict[Any, Any] | None = None
    ) -> list[Tensor]:
        """Return for each path the B x width input of its head; what paths share is computed once.

        Without `memory`, results are dropped as soon as no path needs them; with it, they stay in there.
        """
        stem = (inputs[0], inputs[1])
        paths_ = [self.architecture(path) for path in paths]
        if memory is not None:
            return [self.network.head.gather(*self._ends(self._walk(stem, path, memory))) for path in paths_]
        last = [("features", self.nasrec.num_blocks), ("tokens", self.nasrec.num_blocks)]
        memory, uses = {}, self._uses(paths_)
        found = []
        for path in paths_:
            walk = self._walk(stem, path, memory, uses)
            found.append(self.network.head.gather(*self._ends(walk)))
            for node in last:
                walk.done(walk.keys[node][0])
        return found

    def head(self, path: Path) -> tuple[Tensor, Tensor]:
        """Return the head's weight for the columns of a path (width) and its bias (scalar)."""
        block = self.architecture(path)[-1]
        return self.network.head.weight(*self.end_columns(block)).squeeze(0), self.network.head.bias.squeeze(0)

    def _walk(
        self,
        stem: tuple[Tensor, Tensor],
        path: Architecture,
        memory: dict[int, Tensor] | None = None,
        uses: dict[int, int] | None = None,
    ) -> Walk:
        keys = None if memory is None else self.keys
        gate = None if self.gates is None else self._gate
        return Walk(self.network.blocks, path, stem, self.mode == "mask", SPLITS, memory, keys, uses, gate)

    def _gate(self, choice: str) -> Tensor:
        assert self.gates is not None
        return self.gates[self._places[choice]]

    def _tokens(self, values: Tensor, offsets: Tensor | None, weights: Tensor | None) -> Tensor:
        tokens: Tensor = self.sparse_arch(values, offsets, weights)
        return tokens.transpose(1, 2).contiguous()

    def architecture(self, path: Path) -> Architecture:
        """Return what a path stands for."""
        return path if isinstance(path[0], Block) else self.nasrec.architecture(path)

    def _ends(self, walk: Walk) -> tuple[Pieces, Pieces]:
        last = len(walk.path)
        features, tokens = walk(("features", last)), walk(("tokens", last))
        starts = [columns[0].start for columns in self.end_columns(walk.path[-1])]
        return (
            [Piece(starts[0], features.shape[1], features)],
            [Piece(starts[1], tokens.shape[2], tokens)],
        )

    def end_columns(self, block: Block) -> tuple[Pieces, Pieces]:
        """Return where the last block's results stand in the head's input."""
        if self.mode == "mask":
            most = max(self.nasrec.dense_dims), SPLITS + max(self.nasrec.sparse_dims)
            return [Piece(0, most[0])], [Piece(0, most[1])]
        lead = SPLITS * block.interact
        return [Piece(0, block.dense_dim)], [Piece(SPLITS - lead, lead + block.sparse_dim)]

    def _uses(self, paths: Sequence[Architecture]) -> Counter[int]:
        """Return how often each result is needed: by others, each once, and by each path's head."""
        uses: Counter[int] = Counter()
        needed: dict[int, tuple[int, ...]] = {}
        last = self.nasrec.num_blocks
        for path in paths:
            nodes = self.keys.of(path)
            by_key = dict(nodes.values())
            pending = [nodes[("features", last)][0], nodes[("tokens", last)][0]]
            uses.update(pending)
            while pending:
                key = pending.pop()
                if key not in needed:
                    needed[key] = by_key[key]
                    uses.update(by_key[key])
                    pending += by_key[key]
        return uses
