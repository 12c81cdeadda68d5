"""A small search space with a supernet: up to two layers of chosen widths over dense values and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recloom.embedding import FusedEmbeddingBag, bag_configs
from recloom.features import FeatureSchema
from recloom.model import RankingModule
from recloom.optim import OptimizerConfig
from recloom.search.program import Program
from recloom.search.space import Choice, Genotype, SearchSpace
from recloom.search.supernet import Supernet

DIM = 4
WIDTHS = (0, 8, 16)
FAST = {"dense": "Adam", "dense_lr": 0.01, "sparse": "rowwise_adagrad", "sparse_lr": 0.1}


class Body(nn.Module):
    """Embeddings, dense values and, if wanted, dot products of the embeddings, side by side."""

    def __init__(self, schema: FeatureSchema) -> None:
        super().__init__()
        self.tables = FusedEmbeddingBag(bag_configs(schema, DIM, "sum"))
        fields = len(schema.sparse)
        self.base = len(schema.dense) + fields * DIM
        self.dots = fields * (fields - 1) // 2
        self.register_buffer("pairs", torch.tril_indices(fields, fields, -1), persistent=False)

    def forward(self, dense: Tensor, vectors: Tensor, dot: bool) -> Tensor:
        parts = [dense, vectors.flatten(1)]
        if dot:
            products = vectors @ vectors.transpose(1, 2)
            parts.append(products[:, self.pairs[0], self.pairs[1]])
        return torch.cat(parts, 1)


def activate(x: Tensor, name: str) -> Tensor:
    return torch.relu(x) if name == "relu" else torch.tanh(x)


class ToyModel(RankingModule):
    """The model of one genotype.

    Args:
        schema: Feature schema of the data.
        layers: Width and activation of each layer.
        dot: Whether dot products are added to the input.
        optimizer: Optimizers.
    """

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        layers: Sequence[tuple[int, str]] = (),
        dot: bool = False,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(schema, optimizer)
        self.body = Body(self.schema)
        self.dot = dot
        self.names = [name for _, name in layers]
        width, found = self.body.base + (self.body.dots if dot else 0), []
        for out, _ in layers:
            found.append(nn.Linear(width, out))
            width = out
        self.layers = nn.ModuleList(found)
        self.out = nn.Linear(width, 1)

    def forward(
        self, dense: Tensor, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        x = self.body(dense, self.body.tables(values, offsets, weights), self.dot)
        for layer, name in zip(self.layers, self.names, strict=True):
            x = activate(layer(x), name)
        return self.out(x).squeeze(1)


class ToySpace(SearchSpace):
    """Up to two layers, with or without dot products.

    Args:
        lr: Learning rate of the dense parameters.
    """

    def __init__(self, lr: float = 0.01) -> None:
        self.lr = lr

    @property
    def choices(self) -> Sequence[Choice]:
        found = [Choice("dot", (False, True))]
        for block in ("block0", "block1"):
            found.append(Choice(f"{block}.width", WIDTHS, ordered=True, group=block))
            found.append(Choice(f"{block}.activation", ("relu", "tanh"), group=block))
        return found

    def canonical(self, genotype: Genotype) -> Genotype:
        dot, w0, a0, w1, a1 = genotype
        return (dot, w0, a0 if w0 else 0, w1, a1 if w1 else 0)

    def layers(self, genotype: Genotype) -> list[tuple[int, str]]:
        found = [(WIDTHS[genotype[i]], ("relu", "tanh")[genotype[i + 1]]) for i in (1, 3)]
        return [layer for layer in found if layer[0]]

    def program(self, genotype: Genotype, schema: FeatureSchema) -> Program:
        program = Program(table_bytes=sum(4 * DIM * f.num_embeddings for f in schema.sparse))
        body = Body(schema)
        last = [program.add("tables", "gather", 1, DIM, len(schema.sparse), parameters=program.table_bytes // 4)]
        width, fields = body.base, len(schema.sparse)
        if genotype[0]:
            last.append(program.add("dot", "dynamic", DIM, fields, fields, last))
            width += body.dots
        for index, (out, _) in enumerate(self.layers(genotype)):
            last = [program.add(f"layers.{index}", "matmul", width, out, 1, last, f"block{index}", bias=True)]
            width = out
        program.add("out", "matmul", width, 1, 1, last, "head", bias=True)
        return program

    def model_config(self, genotype: Genotype) -> dict[str, Any]:
        layers = [list(layer) for layer in self.layers(genotype)]
        options = {"layers": layers, "dot": bool(genotype[0]), "optimizer": {**FAST, "dense_lr": self.lr}}
        return {"class_path": "toy_search.ToyModel", "init_args": options}

    def supernet(self, schema: FeatureSchema) -> Supernet:
        return ToySupernet(self, schema.to_dict(), optimizer=OptimizerConfig(**FAST))


class ToySupernet(Supernet):
    """Layers of the largest width, of which a path uses a slice; a last layer for each place it can follow."""

    def __init__(
        self, space: SearchSpace, schema: dict[str, Any], seed: int = 0, optimizer: OptimizerConfig | None = None
    ) -> None:
        super().__init__(space, schema, seed, optimizer)
        self.body = Body(self.schema)
        wide = self.body.base + self.body.dots
        self.layers = nn.ModuleList([nn.Linear(wide, WIDTHS[-1]), nn.Linear(wide, WIDTHS[-1])])
        self.deep = nn.Linear(WIDTHS[-1], WIDTHS[-1])
        self.heads = nn.ModuleList([nn.Linear(wide, 1), nn.Linear(WIDTHS[-1], 1), nn.Linear(WIDTHS[-1], 1)])
        self.computed = 0

    def forward(
        self, dense: Tensor, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        inputs = (dense, self.body.tables(values, offsets, weights))
        path = self.space.canonical(self.path)
        weight, bias = self.head(path)
        return self.features(inputs, [path])[0] @ weight + bias

    def embed(self, batch: Any) -> tuple[Tensor, ...]:
        sparse = batch.sparse_features
        return batch.dense_features, self.body.tables(sparse.values, sparse.bag_offsets, sparse.weights)

    def features(
        self, inputs: tuple[Tensor, ...], paths: Sequence[Genotype], memory: dict[Any, Any] | None = None
    ) -> list[Tensor]:
        memory = {} if memory is None else memory
        return [self._feature(inputs, path, memory) for path in paths]

    def head(self, path: Genotype) -> tuple[Tensor, Tensor]:
        depth = len([1 for i in (1, 3) if path[i]])
        widths = [WIDTHS[path[i]] for i in (1, 3) if path[i]]
        width = widths[-1] if widths else self.body.base + (self.body.dots if path[0] else 0)
        layer = self.heads[depth]
        return layer.weight[0, :width], layer.bias[0]

    def _feature(self, inputs: tuple[Tensor, ...], path: Genotype, memory: dict[Any, Any]) -> Tensor:
        x = self._once(("body", path[0]), memory, lambda: self.body(*inputs, bool(path[0])))
        for place, i in enumerate((1, 3)):
            if path[i]:
                layer = self.deep if place == 1 and path[1] else self.layers[place]
                width, name, key = WIDTHS[path[i]], ("relu", "tanh")[path[i + 1]], path[: i + 2]
                x = self._once(
                    key,
                    memory,
                    lambda x=x, layer=layer, width=width, name=name: activate(
                        nn.functional.linear(x, layer.weight[:width, : x.shape[1]], layer.bias[:width]), name
                    ),
                )
        return x

    def _once(self, key: Any, memory: dict[Any, Any], compute: Any) -> Tensor:
        if key not in memory:
            memory[key] = compute()
            self.computed += 1
        return memory[key]
