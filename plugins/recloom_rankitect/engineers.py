"""EngineersSpace: a macro stack as engineers would design it; kinds, widths, depths and ranks are searched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import product
from typing import Any

from recloom.errors import RecloomError, unknown
from recloom.optim import OptimizerConfig
from recloom.search.block import Weight
from recloom.search.space import Choice, Genotype
from recloom_rankitect.composed import ComposedSpace, SupernetFactory
from recloom_rankitect.graph import Graph
from recloom_rankitect.plan import Limits, Stem
from recloom_rankitect.stack import USES, Layer, stack

SIZES = ("tokens", "rank", "width")


class EngineersSpace(ComposedSpace):
    """Stacks of up to `layers` layers: for each its kind (see StackModel) and sizes; then the over MLP's.

    Args:
        layers: Most layers.
        kinds: Kinds of layers to choose from.
        tokens: Numbers of tokens to choose from.
        ranks: Compression ranks to choose from.
        widths: Hidden widths to choose from.
        over_layers: Most hidden layers of the over MLP.
        embedding_dim: Width of embeddings and tokens, D.
        max_features: Results of more features are projected down to so many.
        max_tokens: Results of more tokens are projected down to so many.
        optimizer: Optimizers and learning rates of candidates; unset: those of StackModel.
        supernet: The network that shares the weights of all candidates: GraphSupernet, with its options.
    """

    def __init__(
        self,
        layers: int = 4,
        kinds: Sequence[str] = tuple(USES),
        tokens: tuple[int, ...] = (4, 8, 16),
        ranks: tuple[int, ...] = (1, 2, 4, 8),
        widths: tuple[int, ...] = (32, 64, 128, 256),
        over_layers: int = 2,
        embedding_dim: int = 16,
        max_features: int = 1024,
        max_tokens: int = 64,
        optimizer: OptimizerConfig | None = None,
        supernet: SupernetFactory | None = None,
    ) -> None:
        super().__init__(embedding_dim, Limits(max_features, max_tokens), optimizer, supernet)
        for kind in kinds:
            if kind not in USES:
                raise unknown("kind of layer", kind, USES)
        if layers < 1 or over_layers < 0 or not kinds or min((*tokens, *ranks, *widths), default=0) < 1:
            raise RecloomError("EngineersSpace: numbers of layers and sizes must be positive", "See --help.")
        self.layers, self.kinds, self.over_layers = layers, tuple(kinds), over_layers
        self.sizes = {"tokens": tuple(sorted(tokens)), "rank": tuple(sorted(ranks)), "width": tuple(sorted(widths))}

    @cached_property
    def choices(self) -> Sequence[Choice]:
        """The depth; each layer's kind and sizes; the over MLP's depth and width."""
        found = [Choice("depth", tuple(range(1, self.layers + 1)), ordered=True, group="stack")]
        for number in range(1, self.layers + 1):
            name = f"layer{number}"
            found.append(Choice(f"{name}.kind", self.kinds, group=name))
            found += [Choice(f"{name}.{size}", self.sizes[size], ordered=True, group=name) for size in SIZES]
        found.append(Choice("over.depth", tuple(range(self.over_layers + 1)), ordered=True, group="over"))
        return [*found, Choice("over.width", self.sizes["width"], ordered=True, group="over")]

    def matters(self, genotype: Genotype) -> tuple[bool, ...]:
        """Return which choices make a difference."""
        found = [True]
        for number in range(self.layers):
            there, kind = number <= genotype[0], self.kinds[genotype[1 + 4 * number]]
            found += [there, *(there and size in USES[kind] for size in SIZES)]
        return (*found, True, genotype[-2] > 0)

    def canonical(self, genotype: Genotype) -> Genotype:
        """Return the genotype in which what makes no difference has option 0."""
        return tuple(option if live else 0 for option, live in zip(genotype, self.matters(genotype), strict=True))

    def graph(self, genotype: Genotype) -> Graph:
        """Return what a genotype stands for."""
        layers, over = self._stack(genotype)
        return stack([Layer(**layer) for layer in layers], over, self.embedding_dim)

    def model_config(self, genotype: Genotype) -> dict[str, Any]:
        """Return the candidate as a StackModel."""
        layers, over = self._stack(genotype)
        init_args = {"layers": layers, "over_arch": over, **self.options()}
        return {"class_path": "recloom_rankitect.stack.StackModel", "init_args": init_args}

    def weights(self, stem: Stem) -> Iterator[tuple[str, dict[str, Weight]]]:
        """Yield the weights of layers of all kinds and numbers of tokens, behind layers of all numbers of tokens."""
        counts, large = range(len(self.sizes["tokens"])), [len(self.sizes[size]) - 1 for size in SIZES[1:]]
        fixed = [(kind, 0) for kind, name in enumerate(self.kinds) if "tokens" not in USES[name]][:1]
        free = [kind for kind, name in enumerate(self.kinds) if "tokens" in USES[name]][:1]
        earlier = [*fixed, *product(free, counts)]  # a kind for each shape that layers give
        for depth, (before, n), kind, m in product(range(self.layers), earlier, range(len(self.kinds)), counts):
            layers = [(before, n, *large)] * depth + [(kind, m, *large)] + [(0, 0, 0, 0)] * (self.layers - depth - 1)
            genotype = (depth, *(option for layer in layers for option in layer), self.over_layers, large[-1])
            for step in self.plan(genotype, stem).steps:
                yield step.slot, step.block.weights()

    def _stack(self, genotype: Genotype) -> tuple[list[dict[str, Any]], list[int]]:
        chosen = self.to_json(genotype)
        layers = []
        for number in range(1, chosen["depth"] + 1):
            kind = chosen[f"layer{number}.kind"]
            layers.append({"kind": kind, **{size: chosen[f"layer{number}.{size}"] for size in USES[kind]}})
        return layers, [chosen["over.width"]] * chosen["over.depth"]
