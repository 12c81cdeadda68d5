"""NASRec's search space (arXiv 2207.07187): blocks of a dense and a sparse operator, wired to any earlier blocks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from recloom.errors import RecloomError, unknown
from recloom.features import FeatureSchema
from recloom.optim import OptimizerConfig
from recloom.search.program import Program
from recloom.search.space import Choice, Genotype, SearchSpace
from recloom.search.supernet import Supernet
from recloom_nasrec.architecture import MAX_CONNECTIONS, Architecture, Block, pruned, to_document
from recloom_nasrec.mergers import SPLITS

OPERATORS = {"small": (("fc", "dot"), ("efc",)), "full": (("fc", "dot", "gating", "sum"), ("efc", "transformer"))}
DENSE_DIMS = (16, 32, 64, 128, 256, 512, 768, 1024)
SPARSE_DIMS = (16, 32, 48, 64)
_CONNECTIONS = ("dense_from", "sparse_from")


class NASRecSpace(SearchSpace):
    """NASRec's space: for each block two operators, two widths, two mergers, and the earlier blocks it builds on.

    A block gives features (B x d) and tokens (B x n x D). Small has the operators fc, dot and efc (embedding fully
    connected); full has gating, sum and transformer too.

    Args:
        size: "small" or "full", the two spaces of the paper.
        num_blocks: Number of blocks.
        embedding_dim: Width of embeddings and tokens, D.
        dense_dims: Widths of features to choose from.
        sparse_dims: Numbers of tokens to choose from.
        max_connections: Most earlier blocks that an input is taken from.
        layer_norm: Whether candidates have layer normalisations; the published models have none.
        optimizer: Optimizers and learning rates of candidates; unset: the published Adagrad (see NASRecNet).
        supernet: The network that shares the weights of all candidates: NASRecSupernet, with its options.
    """

    def __init__(
        self,
        size: Literal["small", "full"] = "small",
        num_blocks: int = 7,
        embedding_dim: int = 16,
        dense_dims: tuple[int, ...] = DENSE_DIMS,
        sparse_dims: tuple[int, ...] = SPARSE_DIMS,
        max_connections: int = MAX_CONNECTIONS,
        layer_norm: bool = False,
        optimizer: OptimizerConfig | None = None,
        supernet: Callable[[SearchSpace, dict[str, Any]], Supernet] | None = None,
    ) -> None:
        if size not in OPERATORS:
            raise unknown("size of NASRecSpace", size, OPERATORS)
        numbers = (num_blocks, embedding_dim, max_connections, *dense_dims, *sparse_dims)
        if not dense_dims or not sparse_dims or min(numbers) < 1:
            raise RecloomError("NASRecSpace: numbers of blocks, widths and connections must be positive", "See --help.")
        self.size = size
        self.num_blocks = num_blocks
        self.embedding_dim = embedding_dim
        self.dense_ops, self.sparse_ops = OPERATORS[size]
        self.dense_dims, self.sparse_dims = tuple(sorted(dense_dims)), tuple(sorted(sparse_dims))
        self.max_connections = max_connections
        self.layer_norm = layer_norm
        self.optimizer = optimizer
        self._supernet = supernet

    @cached_property
    def choices(self) -> Sequence[Choice]:
        """The choices, block by block. Connections are a bit a source; left and right belong to full alone."""
        return [choice for place in range(1, self.num_blocks + 1) for choice in self._choices(f"block{place}", place)]

    def sample_field(self, field: str, genotype: Genotype | None, rng: np.random.Generator) -> tuple[int, ...]:
        """Return random options; of connections a uniformly random number, each set of that number alike."""
        if field.endswith(_CONNECTIONS):
            count = len(self.places[field])
            return connect(count, int(rng.integers(1, min(count, self.max_connections) + 1)), rng)
        return super().sample_field(field, genotype, rng)

    def valid(self, genotype: Genotype) -> bool:
        """Return whether each input has 1 to `max_connections` sources, and each option exists."""
        return super().valid(genotype) and all(
            1 <= sum(genotype[place] for place in places) <= self.max_connections
            for field, places in self.places.items()
            if field.endswith(_CONNECTIONS)
        )

    @property
    def log10_size(self) -> float:
        """Decimal logarithm of the number of valid genotypes, redundant encodings included."""
        found = 0.0
        for field, places in self.places.items():
            if field.endswith(_CONNECTIONS):
                counts = range(1, min(len(places), self.max_connections) + 1)
                found += math.log10(sum(math.comb(len(places), count) for count in counts))
            else:
                found += sum(math.log10(len(self.choices[place].options)) for place in places)
        return found

    def architecture(self, genotype: Genotype) -> Architecture:
        """Return what a genotype stands for."""
        chosen = self.to_json(genotype)
        return tuple(self._block(chosen, f"block{place}", place) for place in range(1, self.num_blocks + 1))

    def genotype(self, architecture: Architecture) -> Genotype:
        """Return the genotype of an architecture.

        Raises:
            RecloomError: It is not one of this space.
        """
        chosen: dict[str, Any] = {}
        for name, block in to_document(architecture).items():
            for key, value in block.items():
                if key in _CONNECTIONS:
                    chosen |= {f"{name}.{key}.{j}": j in value for j in range(int(name.removeprefix("block")))}
                elif self.size == "full" or key not in ("left", "right"):
                    chosen[f"{name}.{key}"] = value
        return self.from_json(chosen)

    def canonical(self, genotype: Genotype) -> Genotype:
        """Return the genotype with the first options, and the stem as the source, for what does not reach the head."""
        smallest = Block(
            (self.dense_ops[0],), (self.sparse_ops[0],), self.dense_dims[0], self.sparse_dims[0], (0,), (0,)
        )
        return self.genotype(pruned(self.architecture(genotype), smallest, SPLITS * self.embedding_dim))

    def program(self, genotype: Genotype, schema: FeatureSchema) -> Program:
        """Return what the candidate does for a sample; see `recloom_nasrec.counting` for the published way to count."""
        from recloom_nasrec.counting import program

        return program(self.architecture(genotype), schema, self.embedding_dim, self.layer_norm)

    def model_config(self, genotype: Genotype) -> dict[str, Any]:
        """Return the candidate as a NASRecNet."""
        architecture = to_document(self.architecture(self.canonical(genotype)))
        init_args: dict[str, Any] = {"architecture": architecture, "embedding_dim": self.embedding_dim}
        if self.layer_norm:
            init_args["layer_norm"] = True
        if self.optimizer is not None:
            init_args["optimizer"] = dataclasses.asdict(self.optimizer)
        return {"class_path": "recloom_nasrec.model.NASRecNet", "init_args": init_args}

    def supernet(self, schema: FeatureSchema) -> Supernet:
        """Return the network that shares the weights of all candidates."""
        from recloom_nasrec.supernet import NASRecSupernet

        return (self._supernet or NASRecSupernet)(self, schema.to_dict())

    def _choices(self, name: str, place: int) -> Iterable[Choice]:
        def choice(key: str, options: Sequence[Any], ordered: bool = False, field: str = "") -> Choice:
            return Choice(f"{name}.{key}", tuple(options), ordered, f"{name}.{field}" if field else "", name)

        yield choice("dense_op", self.dense_ops, field="ops")
        yield choice("sparse_op", self.sparse_ops, field="ops")
        yield choice("dense_dim", self.dense_dims, ordered=True)
        yield choice("sparse_dim", self.sparse_dims, ordered=True)
        yield choice("interact", (False, True))
        yield choice("fm", (False, True))
        for key in _CONNECTIONS:
            for source in range(place):
                yield choice(f"{key}.{source}", (False, True), field=key)
        if self.size == "full":
            yield choice("left", range(place))
            yield choice("right", range(place))

    def _block(self, chosen: dict[str, Any], name: str, place: int) -> Block:
        sources = {
            key: tuple(source for source in range(place) if chosen[f"{name}.{key}.{source}"]) for key in _CONNECTIONS
        }
        return Block(
            dense_ops=(chosen[f"{name}.dense_op"],),
            sparse_ops=(chosen[f"{name}.sparse_op"],),
            dense_dim=chosen[f"{name}.dense_dim"],
            sparse_dim=chosen[f"{name}.sparse_dim"],
            left=(chosen.get(f"{name}.left", 0),),
            right=(chosen.get(f"{name}.right", 0),),
            interact=chosen[f"{name}.interact"],
            fm=chosen[f"{name}.fm"],
            **sources,
        )


def connect(count: int, chosen: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Return `count` bits of which `chosen` are 1, at random."""
    bits = np.zeros(count, np.int64)
    bits[rng.choice(count, chosen, replace=False)] = 1
    return tuple(int(bit) for bit in bits)
