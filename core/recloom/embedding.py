"""Embedding tables: what a backend must offer, and the default backend with all tables in one weight."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from recloom import rowcheck, rowgrad, rowkernels
from recloom.errors import RecloomError, unknown
from recloom.features import FeatureSchema
from recloom.rowlayout import POOLINGS, stack_layout
from recloom.tracing import is_exporting

Pooling = Literal["sum", "mean", "weighted"]
SEED_BLOCK = 1 << 16


@dataclass(frozen=True)
class EmbeddingBagConfig:
    """One embedding table.

    Args:
        name: Name of the table.
        embedding_dim: Width of a row, D.
        num_embeddings: Number of rows; ids go from 0 to num_embeddings - 1.
        feature_names: The features that look up in it; several may share it.
        pooling: How the rows of a bag are combined: sum, mean, or weighted (a sum with the values' weights).
    """

    name: str
    embedding_dim: int
    num_embeddings: int
    feature_names: tuple[str, ...]
    pooling: Pooling = "sum"

    def __post_init__(self) -> None:
        if self.embedding_dim < 1 or self.num_embeddings < 1 or not self.feature_names:
            raise RecloomError(
                f"table {self.name!r} has {self.num_embeddings} rows of width {self.embedding_dim} "
                f"and {len(self.feature_names)} features",
                "A table needs at least one of each: check the schema and embedding_dim.",
            )
        if self.pooling not in POOLINGS:
            raise unknown("pooling", self.pooling, POOLINGS)


class EmbeddingBagCollection(nn.Module, ABC):
    """Embedding tables that give one vector of width D for each feature: the slot `embedding` of a model.

    Features are in the order of the tables, and of `feature_names` within a table.

    Args:
        tables: The tables; all of one width D, unless the backend brings them to one.
    """

    output_dim: int
    """Width of the output, D; set by the subclass when it is not the tables' own."""

    def __init__(self, tables: Sequence[EmbeddingBagConfig]) -> None:
        super().__init__()
        self.tables = list(tables)
        self.feature_names = [name for table in tables for name in table.feature_names]
        if not self.tables:
            raise RecloomError("an embedding collection needs a table", "Check the schema's sparse features.")
        for kind, names in (("table", [t.name for t in tables]), ("feature", self.feature_names)):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise RecloomError(f"{kind} {twice[0]!r} appears twice in the embedding tables", "Names must differ.")
        self.output_dim = self.tables[0].embedding_dim

    @property
    def num_features(self) -> int:
        """Number of features, F."""
        return len(self.feature_names)

    @abstractmethod
    def forward(self, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Return the pooled rows, B x F x D.

        Args:
            values: N ids, key-major (all samples of feature 0, then of feature 1, ...).
            offsets: F*B+1 bounds of the bags, or None: exactly one id a bag, N = F*B.
            weights: N value weights, needed by weighted pooling.

        Raises:
            DataError: An id is outside its table.
        """

    def start(
        self, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None
    ) -> Callable[[], Tensor]:
        """Begin what `forward` does; return a function that finishes it and returns the pooled rows.

        A model that calls it before its dense arch, and the function after, gives a backend whose rows come from
        other ranks the time in between. Here nothing is gained: it is all done at once.
        """
        pooled = self(values, offsets, weights)
        return lambda: pooled

    @abstractmethod
    def lookup(self, feature: str, ids: Tensor) -> Tensor:
        """Return the rows of `ids` in the feature's table, un-pooled: ids.shape x D."""

    @abstractmethod
    def table_weight(self, name: str) -> Tensor:
        """Return the table's rows, num_embeddings x embedding_dim: a view to read and write, outside of autograd."""

    def one_width(self) -> int:
        """Return the tables' common width, or raise RecloomError."""
        widths = {table.embedding_dim for table in self.tables}
        if len(widths) > 1:
            raise RecloomError(
                f"{type(self).__name__} holds tables of one width, and got widths {sorted(widths)}",
                "Use a mixed-dimension collection, or give all tables the same embedding_dim.",
            )
        return widths.pop()


EmbeddingFactory = Callable[[list[EmbeddingBagConfig]], EmbeddingBagCollection]


def bag_configs(schema: FeatureSchema, embedding_dim: int, pooling: Pooling = "sum") -> list[EmbeddingBagConfig]:
    """Return a table for each table name of `schema`'s sparse features, all features that share it with it.

    Raises:
        RecloomError: Features that share a table do not follow one another in the schema: a collection's vectors
            are in the order of its tables, and a batch's ids in the schema's; the two must be one.
    """
    features: dict[str, list[str]] = {}
    rows: dict[str, int] = {}
    for feature in schema.sparse:
        features.setdefault(feature.table_name, []).append(feature.name)
        rows[feature.table_name] = max(rows.get(feature.table_name, 0), feature.num_embeddings)
    if [name for names in features.values() for name in names] != schema.sparse_names:
        shared = next(names for names in features.values() if len(names) > 1)
        raise RecloomError(
            f"the features {', '.join(shared)} share a table but do not follow one another in the schema",
            "List the features of a table side by side.",
        )
    return [
        EmbeddingBagConfig(name, embedding_dim, rows[name], tuple(names), pooling) for name, names in features.items()
    ]


def init_rows(rows: Tensor, table: EmbeddingBagConfig, seed: int, start: int = 0) -> None:
    """Fill `rows` with the initial values of rows start, start+1, ... of `table`: U(-1/sqrt(n), 1/sqrt(n)).

    Drawn in blocks of 65,536 rows, each from its own generator seeded by (seed, table's name, block): the values
    depend neither on the order of tables nor on which rank holds which rows.
    """
    bound = table.num_embeddings**-0.5
    for block in range(start // SEED_BLOCK, -(-(start + len(rows)) // SEED_BLOCK)):
        first, last = block * SEED_BLOCK, min((block + 1) * SEED_BLOCK, table.num_embeddings)
        begin, end = max(first, start), min(last, start + len(rows))
        digest = hashlib.sha256(f"{seed}/{table.name}/{block}".encode()).digest()
        generator = torch.Generator(rows.device).manual_seed(int.from_bytes(digest[:7], "little"))
        part = rows[begin - start : end - start]
        if (begin, end) == (first, last):
            part.uniform_(-bound, bound, generator=generator)
        else:
            whole = torch.empty(last - first, rows.shape[1], device=rows.device)
            part.copy_(whole.uniform_(-bound, bound, generator=generator)[begin - first : end - first])


class FusedEmbeddingBag(EmbeddingBagCollection):
    """The default backend: all tables in one weight, one lookup for all features, one fused sparse update.

    Args:
        tables: The tables, all of one width.
        seed: Seed of the initial values; by default the global seed (`seed_everything`).
        gradient: "fused": row gradients, which CompositeOptimizer applies (no `.grad` ever); "sparse": an ordinary
            sparse COO `.grad`, for any optimizer that takes one.
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingBagConfig],
        seed: int | None = None,
        gradient: Literal["fused", "sparse"] = "fused",
    ) -> None:
        super().__init__(tables)
        if gradient not in ("fused", "sparse"):
            raise unknown("gradient", gradient, ("fused", "sparse"))
        self.gradient = gradient
        self.layout = stack_layout([(t.num_embeddings, t.feature_names, t.pooling) for t in self.tables])
        self._single = {name: self.layout.only(name) for name in self.feature_names}
        weight = torch.empty(sum(table.num_embeddings for table in self.tables), self.one_width())
        rowkernels.advise_huge_pages(weight)
        self.engine: rowgrad.RowEngine | None = None
        self.weight = nn.Parameter(weight)
        self.reset_parameters(torch.initial_seed() if seed is None else seed)

    @property
    def row_parameter_names(self) -> tuple[str, ...]:
        """The parameters that take row gradients instead of `.grad` (see `recloom.rowgrad`)."""
        return ("weight",) if self.gradient == "fused" else ()

    def reset_parameters(self, seed: int) -> None:
        """Draw all tables anew."""
        if self.weight.device.type != "meta":
            for table in self.tables:
                init_rows(self.table_weight(table.name), table, seed)
        if self.gradient == "fused":
            rowgrad.row_gradients(self.weight)

    def forward(self, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Return the pooled rows, B x F x D; see the base class."""
        if self.layout.weighted and weights is None:
            raise RecloomError(
                f"table {next(t.name for t in self.tables if t.pooling == 'weighted')!r} has weighted pooling, "
                "and the batch has no value weights",
                "Use pooling sum or mean, or data with value weights.",
            )
        if is_exporting():
            return rowgrad.plain(self.weight, values, offsets, weights, self.layout)
        if self.gradient == "sparse":
            rowcheck.check(values, offsets, self.layout)
            return rowgrad.plain(self.weight, values, offsets, weights, self.layout, sparse=True)
        return rowgrad.lookup(self.weight, values, offsets, weights, self.layout, self.engine)

    def lookup(self, feature: str, ids: Tensor) -> Tensor:
        """Return the rows of `ids`, ids.shape x D; see the base class."""
        if feature not in self._single:
            raise unknown("feature", feature, self._single)
        layout, flat = self._single[feature], ids.reshape(-1)
        if is_exporting() or self.gradient == "sparse":
            rows = rowgrad.plain(self.weight, flat, None, None, layout, sparse=self.gradient == "sparse")
        else:
            rows = rowgrad.lookup(self.weight, flat, None, None, layout, self.engine)
        return rows.view(*ids.shape, self.output_dim)

    def table_weight(self, name: str) -> Tensor:
        """Return the table's rows, a view; see the base class."""
        start = 0
        for table in self.tables:
            if table.name == name:
                return self.weight.detach()[start : start + table.num_embeddings]
            start += table.num_embeddings
        raise unknown("table", name, [table.name for table in self.tables])

    def extra_repr(self) -> str:
        """Say how large it is."""
        return f"{len(self.tables)} tables, {self.weight.shape[0]} x {self.output_dim}, gradient={self.gradient}"
