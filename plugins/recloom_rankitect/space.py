"""BlockSpace: whole models composed from low-level blocks, from the raw inputs to the logit (arXiv 2311.08430)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recloom.errors import RecloomError
from recloom.optim import OptimizerConfig
from recloom.search.block import Shape, Weight
from recloom.search.space import Choice, Genotype
from recloom_rankitect import BLOCKS
from recloom_rankitect.composed import ComposedSpace, SupernetFactory
from recloom_rankitect.edits import Nodes, mutated
from recloom_rankitect.graph import STEMS, Graph, Node, block_class, to_document
from recloom_rankitect.plan import Limits, Stem, steps_of

WIDTHS = (16, 32, 64, 128, 256)
NEAR = 0.5  # probability that a source is the node before, and if not, that it is the one before that, ...
STEM = 0.15  # probability that a source is a stem
PAIRS = 0.4  # probability of a block of two inputs
FIELDS = 4  # of a node: block, width, left, right


class BlockSpace(ComposedSpace):
    """Graphs of up to `nodes` blocks; each reads any one or two earlier results, and the head one or two.

    Every combination of options is a model: adapters that the shapes decide make inputs fit (see
    `recloom_rankitect.blocks.adapters`). A random graph has any number of live nodes.

    Args:
        nodes: Most blocks of a graph.
        blocks: Names of the blocks to choose from (`recloom components blocks`); unset: all that this plugin has.
        widths: Widths to choose from, for blocks that have one; 16 stand for one token.
        embedding_dim: Width of embeddings and tokens, D.
        max_features: Results of more features are projected down to so many.
        max_tokens: Results of more tokens are projected down to so many.
        optimizer: Optimizers and learning rates of candidates; unset: those of GraphModel.
        supernet: The network that shares the weights of all candidates: GraphSupernet, with its options.
    """

    def __init__(
        self,
        nodes: int = 16,
        blocks: Sequence[str] | None = None,
        widths: tuple[int, ...] = WIDTHS,
        embedding_dim: int = 16,
        max_features: int = 512,
        max_tokens: int = 32,
        optimizer: OptimizerConfig | None = None,
        supernet: SupernetFactory | None = None,
    ) -> None:
        super().__init__(embedding_dim, Limits(max_features, max_tokens), optimizer, supernet)
        self.blocks = tuple(BLOCKS if blocks is None else blocks)
        self.widths = tuple(sorted(widths))
        if not 1 <= nodes <= 30 or not self.blocks or not self.widths or self.widths[0] < 1:
            raise RecloomError(f"BlockSpace of {nodes} nodes", "1 to 30 nodes, one or more blocks and positive widths.")
        self.nodes = nodes
        kinds = [block_class(name) for name in self.blocks]
        self.binary = np.array([len(kind.inputs) == 2 for kind in kinds])
        self.sized = np.array([kind.sized for kind in kinds])
        share = np.where(self.binary, PAIRS / max(self.binary.sum(), 1), (1 - PAIRS) / max((~self.binary).sum(), 1))
        self._cumulative = np.cumsum(share / share.sum())
        self._cumulative[-1] = 1.0

    @cached_property
    def choices(self) -> Sequence[Choice]:
        """The choices, node by node: block, width, two sources; then what the head reads."""
        found = []
        names = [*STEMS, *(f"n{i + 1}" for i in range(self.nodes))]
        for i in range(self.nodes):
            name, earlier = f"n{i + 1}", tuple(names[: i + len(STEMS)])
            found.append(Choice(f"{name}.block", self.blocks, group=name))
            found.append(Choice(f"{name}.width", self.widths, ordered=True, group=name))
            found += [Choice(f"{name}.{port}", earlier, group=name) for port in ("left", "right")]
        found.append(Choice("head.left", tuple(names), group="head"))
        return [*found, Choice("head.right", ("none", *names), group="head")]

    def sample(self, rng: np.random.Generator) -> Genotype:
        """Return a random genotype: blocks of two inputs, and sources that are near, more often than others."""
        n, here = self.nodes, np.arange(self.nodes) + len(STEMS)
        block, width = self._blocks(n, rng), rng.integers(len(self.widths), size=n)
        left, right = self._sources(here, rng), self._sources(here, rng)
        head = [int(rng.integers(n)) + len(STEMS), int(rng.integers(n + len(STEMS) + 1)) * int(rng.integers(2))]
        return (*np.stack([block, width, left, right], 1).ravel().tolist(), *head)

    def sample_field(self, field: str, genotype: Genotype | None, rng: np.random.Generator) -> tuple[int, ...]:
        """Return a random option, drawn as `sample` does."""
        name, _, what = field.partition(".")
        if what in ("left", "right") and name != "head":
            here = np.array([self.places[field][0] // FIELDS + len(STEMS)])
            return (int(self._sources(here, rng)[0]),)
        if field == "head.left":
            return (int(rng.integers(self.nodes)) + len(STEMS),)
        if what == "block":
            return (int(self._blocks(1, rng)[0]),)
        return super().sample_field(field, genotype, rng)

    def mutate(self, genotype: Genotype, rng: np.random.Generator, count: int = 1) -> Genotype:
        """Return `genotype` after `count` edits: a choice of a live node anew, a node inserted or taken out."""
        for _ in range(count):
            genotype = self.joined(*mutated(self, *self.split(self.canonical(genotype)), rng))
        return genotype

    def canonical(self, genotype: Genotype) -> Genotype:
        """Return the genotype whose live nodes come first, in their order, and in which what is dead has option 0.

        The head reads the later of its two results first.
        """
        nodes, head = self.split(genotype)
        head = sorted(set(head), reverse=True)
        keep = self._live(nodes, head)
        places, count = list(range(len(STEMS))), len(STEMS)
        for alive in keep:
            places.append(count if alive else -1)
            count += alive
        found: Nodes = []
        for (block, width, left, right), alive in zip(nodes, keep, strict=True):
            if alive:
                right = places[right] if self.binary[block] else 0
                found.append([block, width if self.sized[block] else 0, places[left], right])
        found += [[0] * FIELDS] * (self.nodes - len(found))
        return self.joined(found, [places[place] for place in head])

    def matters(self, genotype: Genotype) -> tuple[bool, ...]:
        """Return which choices make a difference."""
        nodes, head = self.split(genotype)
        found: list[bool] = []
        for (block, *_), alive in zip(nodes, self._live(nodes, head), strict=True):
            found += [alive, alive and bool(self.sized[block]), alive, alive and bool(self.binary[block])]
        return (*found, True, True)

    def graph(self, genotype: Genotype) -> Graph:
        """Return what a genotype stands for, dead nodes too; the head reads a result once if both choices name it."""
        nodes, head = self.split(genotype)
        found = []
        for i, (block, width, left, right) in enumerate(nodes):
            name, sources = f"n{i + 1}", (left, right) if self.binary[block] else (left,)
            chosen = self.widths[width] if self.sized[block] else 0
            found.append(Node(self.blocks[block], sources, chosen, name, gates=(name,)))
        return Graph(tuple(found), tuple(dict.fromkeys(head)))

    def model_config(self, genotype: Genotype) -> dict[str, Any]:
        """Return the candidate as a GraphModel."""
        architecture = to_document(self.graph(self.canonical(genotype)).pruned())
        init_args = {"architecture": architecture, **self.options()}
        return {"class_path": "recloom_rankitect.model.GraphModel", "init_args": init_args}

    def encode(self, genotype: Genotype) -> NDArray[np.float32]:
        """Return facts for predictors: what the head sees, how deep it is, and what is done to embeddings on the way.

        Those tell most of some dozen models: their ranks correlate with predictions twice as well as with those from
        counts of blocks and of pairs of neighbours.
        """
        nodes, head = self.split(self.canonical(genotype))
        sparse, dense, depth = [True, False], [False, True], [0, 0]
        reached = np.zeros(len(self.blocks), np.float32)
        for block, _, left, right in nodes[: sum(self._live(nodes, head))]:
            sources = (left, right) if self.binary[block] else (left,)
            sparse.append(any(sparse[place] for place in sources))
            dense.append(any(dense[place] for place in sources))
            depth.append(1 + max(depth[place] for place in sources))
            reached[block] = max(reached[block], sparse[-1])
        sees = [any(sparse[place] for place in head), any(dense[place] for place in head)]
        sizes = [max(depth[place] for place in head) / self.nodes, (len(depth) - len(STEMS)) / self.nodes]
        facts = [*sees, *sizes, len(head) > 1, 0 in head, 1 in head]
        return np.concatenate([np.array(facts, np.float32), reached])

    def weights(self, stem: Stem) -> Iterator[tuple[str, dict[str, Weight]]]:
        """Yield the weights of each block at each node, for the smallest and the largest inputs and widths."""
        tokens, features = max(stem.tokens, self.limits.tokens), max(stem.features, self.limits.features)
        features = -(-max(features, tokens * stem.dim) // stem.dim) * stem.dim
        corners = [Shape(1), Shape(features - 1), Shape(features), Shape(stem.dim, 1), Shape(stem.dim, tokens)]
        for name in self.blocks:
            sources = tuple(range(len(block_class(name).inputs)))
            for width, shapes in product({self.widths[0], self.widths[-1]}, product(corners, repeat=len(sources))):
                for step in steps_of(Node(name, sources, width), shapes, stem.dim, self.limits):
                    for i in range(self.nodes):
                        yield f"n{i + 1}{step.slot}", step.block.weights()

    def split(self, genotype: Genotype) -> tuple[Nodes, list[int]]:
        """Return [block, width, left, right] of each node, and the places of what the head reads."""
        end = FIELDS * self.nodes
        nodes = [list(genotype[start : start + FIELDS]) for start in range(0, end, FIELDS)]
        return nodes, [genotype[end], *([genotype[end + 1] - 1] if genotype[end + 1] else [])]

    def joined(self, nodes: Nodes, head: Sequence[int]) -> Genotype:
        """Return the genotype of what `split` returned."""
        return (*(value for node in nodes for value in node), head[0], head[1] + 1 if len(head) > 1 else 0)

    def _live(self, nodes: Nodes, head: Sequence[int]) -> list[bool]:
        found = [False] * (len(nodes) + len(STEMS))
        for place in head:
            found[place] = True
        for i in range(len(nodes) - 1, -1, -1):
            if found[i + len(STEMS)]:
                block, _, left, right = nodes[i]
                found[left] = True
                if self.binary[block]:
                    found[right] = True
        return found[len(STEMS) :]

    def _blocks(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        return np.searchsorted(self._cumulative, rng.random(count), side="right")

    def _sources(self, here: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return a random source for each node, whose own place is given."""
        place = here - rng.geometric(NEAR, len(here))
        stem = rng.integers(len(STEMS), size=len(here))
        return np.where((place < len(STEMS)) | (rng.random(len(here)) < STEM), stem, place)
