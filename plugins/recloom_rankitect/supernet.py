"""GraphSupernet: the weights of all models of a space of graphs, of which each step trains a path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recloom.batch import Batch
from recloom.embedding import EmbeddingFactory, FusedEmbeddingBag, bag_configs
from recloom.errors import RecloomError
from recloom.linear import linear
from recloom.optim import OptimizerConfig
from recloom.search.block import Weight, Weights
from recloom.search.slices import part
from recloom.search.space import Genotype, SearchSpace
from recloom.search.supernet import Supernet
from recloom_rankitect.composed import ComposedSpace
from recloom_rankitect.network import stem_features
from recloom_rankitect.plan import Plan, Step, stem_of


class GraphSupernet(Supernet):
    """Every block at every place where it can stand, with the largest weights it can need there.

    A path uses the leading part of each weight, so that its step costs what its model costs. Running statistics of
    batch normalisations are shared in the same way. Gates (see `Supernet.gates`) multiply the result of a node by those
    of its choices.

    Args:
        space: The space, a BlockSpace or an EngineersSpace.
        schema: Feature schema of the data, with one label.
        seed: Seed of the paths.
        embedding: Embedding tables: FusedEmbeddingBag, or any other EmbeddingBagCollection.
        optimizer: Optimizers and learning rates; unset: Adagrad 0.05, gradients clipped to norm 5.
    """

    relaxed = True

    def __init__(
        self,
        space: SearchSpace,
        schema: dict[str, Any],
        seed: int = 0,
        embedding: EmbeddingFactory = FusedEmbeddingBag,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        if not isinstance(space, ComposedSpace):
            raise RecloomError(f"GraphSupernet is of graphs, not of {type(space).__name__}", "Change the space.")
        default = OptimizerConfig("Adagrad", 0.05, {"eps": 1e-4}, "rowwise_adagrad", 0.05, clip_norm=5.0)
        super().__init__(space, schema, seed, optimizer or default)
        if len(self.schema.labels) != 1:
            raise RecloomError("GraphSupernet ranks by one label, and the data have several", "Keep one label.")
        self.composed = space
        self.sparse_arch = embedding(bag_configs(self.schema, space.embedding_dim))
        self.stem = stem_of(self.schema, self.sparse_arch.output_dim)
        self.slots = nn.ModuleDict({slot: Slot(weights, slot) for slot, weights in largest(space, self.stem).items()})
        tokens = max(self.stem.tokens, space.limits.tokens) * self.stem.dim
        self.most = max(tokens, space.limits.features, self.stem.features)
        self.heads = nn.Parameter(torch.zeros(2, self.most))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(
        self, dense: Tensor, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Return B logits along `self.path`."""
        inputs = (stem_features(dense), self.sparse_arch(values, offsets, weights))
        weight, bias = self.head(self.path)
        return torch.addmv(bias, self.features(inputs, [self.path])[0], weight)

    def sample_path(self, step: int) -> Genotype:
        """Return the canonical path of optimizer step `step`."""
        return self.composed.canonical(super().sample_path(step))

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return B x (dense features) and B x (sparse features) x D."""
        sparse = batch.sparse_features
        tokens = self.sparse_arch(sparse.values, sparse.bag_offsets, sparse.weights)
        return stem_features(batch.dense_features), tokens

    def features(
        self, inputs: tuple[Tensor, ...], paths: Sequence[Genotype], memory: dict[Any, Any] | None = None
    ) -> list[Tensor]:
        """Return for each path the B x width input of its head; steps that paths share are computed once."""
        memory = {} if memory is None else memory
        return [self._features(inputs, path, memory) for path in paths]

    def head(self, path: Genotype) -> tuple[Tensor, Tensor]:
        """Return the head's weight for a path (width) and its bias (scalar)."""
        found = self._plan(path)
        shapes = [*self.stem.shapes, *(step.block.shape for step in found.steps)]
        rows = [part(self.heads, slice(i, i + 1), slice(0, shapes[p].size))[0] for i, p in enumerate(found.head)]
        return torch.cat(rows), self.bias

    def _features(self, inputs: tuple[Tensor, ...], path: Genotype, memory: dict[Any, Any]) -> Tensor:
        found = self._plan(path)
        keys: list[Any] = ["tokens", "features"]
        results = [inputs[1], inputs[0]]
        for step in found.steps:
            key = (step.slot, step.block.width, *(keys[place] for place in step.inputs))
            key = memory.setdefault(("key", key), len(memory))  # nested keys would grow with the depth
            if key not in memory:
                memory[key] = self._step(step, [results[place] for place in step.inputs])
            keys.append(key)
            results.append(memory[key])
        ends = torch.cat([results[place].flatten(1) for place in found.head], dim=1)
        return self._gated(ends, ("head",))

    def _gated(self, result: Tensor, groups: Sequence[str]) -> Tensor:
        if self.gates is not None:
            for place in self.composed.gated(groups):
                result = result * self.gates[place]
        return result

    def _step(self, step: Step, inputs: list[Tensor]) -> Tensor:
        needed = step.block.weights()
        slot: Slot = self.slots[step.slot] if needed else None  # type: ignore[assignment]
        weights = slot.leading(needed) if needed else Weights()
        weights.training, weights.product = self.training, slot.product if needed else None
        result = step.block.forward(weights, *inputs)
        return self._gated(result, step.node.gates) if step.last else result

    def _plan(self, path: Genotype) -> Plan:
        return self.composed.plan(path, self.stem)


class Slot(nn.Module):
    """The weights of a block at a place, as large as any path needs them.

    Args:
        weights: What they are.
        name: Its name: that of a node, which begins with its group, and of a block there.
    """

    def __init__(self, weights: dict[str, Weight], name: str = "") -> None:
        super().__init__()
        self.group = name.partition("/")[0].partition("-")[0]
        for name, weight in weights.items():
            tensor = torch.empty(weight.shape)
            weight.fill(tensor)
            if weight.trained:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def leading(self, needed: dict[str, Weight]) -> Weights:
        """Return the leading parts of the weights, of the shapes that are needed."""
        for name, weight in needed.items():
            assert all(a <= b for a, b in zip(weight.shape, getattr(self, name).shape, strict=True)), name
        return Weights(
            (name, part(getattr(self, name), *(slice(0, size) for size in weight.shape)))
            for name, weight in needed.items()
        )

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, name: str) -> Tensor:
        """Return x weight^T + bias; what replaces products in layers of other modules replaces this of an instance."""
        return linear(x, weight, bias)


def largest(space: ComposedSpace, stem: Any) -> dict[str, dict[str, Weight]]:
    """Return for each slot weights that no path needs larger."""
    found: dict[str, dict[str, Weight]] = {}
    for slot, weights in space.weights(stem):
        known = found.setdefault(slot, dict(weights))
        for name, weight in weights.items():
            shape = tuple(max(sizes) for sizes in zip(known[name].shape, weight.shape, strict=True))
            known[name] = Weight(shape, weight.init, weight.trained)
    return {slot: weights for slot, weights in found.items() if weights}
