"""Embedding tables in less memory: quotient-remainder tables and hashed tables. Both are options of any model.

Both translate ids and hand them to a FusedEmbeddingBag: one lookup for all tables, row gradients, one fused update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from recloom.embedding import EmbeddingBagCollection, EmbeddingBagConfig, FusedEmbeddingBag, init_rows
from recloom.errors import RecloomError, unknown
from recloom_dlrm.values import check_ids, pool_values, table_layout, value_rows

Operation = Literal["mult", "add", "concat"]


class QREmbeddingBag(EmbeddingBagCollection):
    """Quotient-remainder tables (Shi et al. 2019, arXiv 1909.02107, section 2.1): n rows from n/c + c stored ones.

    The vector of id i is made of row i // c of one table and row i mod c of another, so that each id has its own. It
    is made before pooling: a bag's vector is the sum of its ids' vectors, also under mult, where the reference
    implementation multiplies pooled sums. Initial values are symmetric about 0 and scaled such that an id's vector
    has the variance of a whole table's rows, 1 / (3 n).

    `table_weight` gives the stored tables, "NAME/quotient" and "NAME/remainder"; those of a table that is not
    compressed are "NAME" and, under concat, "NAME/second".

    Args:
        tables: The tables, all of one width.
        collisions: c, how many ids share a quotient row.
        operation: How the two rows make a vector: mult (elementwise), add, or concat. concat doubles the output's
            width, and the width of tables that are not compressed.
        threshold: Tables with more rows than this are compressed.
        seed: Seed of the initial values; by default the global seed (`seed_everything`).
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingBagConfig],
        collisions: int = 4,
        operation: Operation = "mult",
        threshold: int = 200,
        seed: int | None = None,
    ) -> None:
        super().__init__(tables)
        if operation not in ("mult", "add", "concat"):
            raise unknown("operation", operation, ("mult", "add", "concat"))
        if collisions < 2:
            raise RecloomError(f"collisions is {collisions}", "At least 2 ids must share a row, or nothing is saved.")
        self.operation, self.collisions, width = operation, collisions, self.one_width()
        self.output_dim = 2 * width if operation == "concat" else width
        self.layout = table_layout(self.tables)
        self.compressed = [table for table in self.tables if table.num_embeddings > max(threshold, collisions)]
        self.parts = FusedEmbeddingBag([*map(self._first, self.tables), *map(self._second, self.tables)], seed)
        self._rescale(torch.initial_seed() if seed is None else seed)
        owners = [table for table in self.tables for _ in table.feature_names]
        divisor = [collisions if table in self.compressed else 1 for table in owners]
        modulus = [self._second(table).num_embeddings for table in owners]
        two = [table in self.compressed or operation == "concat" for table in owners]
        self.register_buffer("divisor", torch.tensor(divisor), persistent=False)
        self.register_buffer("modulus", torch.tensor(modulus), persistent=False)
        self.register_buffer("two_rows", torch.tensor(two), persistent=False)

    def _first(self, table: EmbeddingBagConfig) -> EmbeddingBagConfig:
        if table not in self.compressed:
            return table
        return _part(table, "quotient", -(-table.num_embeddings // self.collisions))

    def _second(self, table: EmbeddingBagConfig) -> EmbeddingBagConfig:
        if table in self.compressed:
            return _part(table, "remainder", self.collisions)
        if self.operation == "concat":
            return _part(table, "second", table.num_embeddings)
        return _part(table, "none", 1)  # a row that is looked up, not used, and never changes

    def _rescale(self, seed: int) -> None:
        """Draw the rows of compressed tables from U(-bound, bound)."""
        for table in self.compressed:
            rows = table.num_embeddings
            bound = {"mult": (3 / rows) ** 0.25, "add": (2 * rows) ** -0.5, "concat": rows**-0.5}[self.operation]
            for part in (self._first(table), self._second(table)):
                weight = self.parts.table_weight(part.name)
                if weight.device.type != "meta":
                    init_rows(weight, part, seed)
                    weight.mul_(bound * part.num_embeddings**0.5)

    def forward(self, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Return the pooled vectors, B x F x D, or B x F x 2 D under concat; see the base class."""
        feature = check_ids(values, offsets, self.layout)
        ids = self._translate(values, feature)
        if offsets is not None and feature is not None and self.operation == "mult":
            bounds = torch.cat([offsets, offsets[1:] + values.shape[0]])
            first, second = value_rows(self.parts, ids, bounds).view(2, values.shape[0], -1)
            vectors = self._combine(first, second, self.get_buffer("two_rows")[feature][:, None])  # N x D
            return pool_values(vectors, values, offsets, weights, self.layout)
        ends = None if offsets is None else torch.cat([offsets, offsets[1:] + values.shape[0]])
        doubled = None
        if weights is not None:  # a product is weighted once
            doubled = torch.cat([weights, torch.ones_like(weights) if self.operation == "mult" else weights])
        rows = self.parts(ids, ends, doubled)  # B x 2 F x D
        first, second = rows[:, : self.num_features], rows[:, self.num_features :]
        return self._combine(first, second, self.get_buffer("two_rows")[:, None])

    def _translate(self, values: Tensor, feature: Tensor | None) -> Tensor:
        """Return the 2 N ids of first rows, then of second rows."""
        divisor, modulus = self.get_buffer("divisor"), self.get_buffer("modulus")
        if feature is None:
            ids = values.view(self.num_features, -1)
            first, second = ids // divisor[:, None], ids % modulus[:, None]
            return torch.cat([first, second]).view(-1)
        return torch.cat([values // divisor[feature], values % modulus[feature]])

    def _combine(self, first: Tensor, second: Tensor, two: Tensor) -> Tensor:
        if self.operation == "concat":
            return torch.cat([first, second], dim=-1)
        if self.operation == "add":
            return first + torch.where(two, second, 0.0)
        return first * torch.where(two, second, 1.0)

    def lookup(self, feature: str, ids: Tensor) -> Tensor:
        """Return the vectors of `ids`, ids.shape x D; see the base class."""
        place = self._place(feature)
        check_ids(ids.reshape(-1), None, self.layout.only(feature))
        divisor, modulus = self.get_buffer("divisor")[place], self.get_buffer("modulus")[place]
        names = self.parts.feature_names
        first = self.parts.lookup(names[place], ids // divisor)
        second = self.parts.lookup(names[self.num_features + place], ids % modulus)
        return self._combine(first, second, self.get_buffer("two_rows")[place])

    def _place(self, feature: str) -> int:
        if feature not in self.feature_names:
            raise unknown("feature", feature, self.feature_names)
        return self.feature_names.index(feature)

    def table_weight(self, name: str) -> Tensor:
        """Return the rows of a stored table, a view; a compressed table is stored as two, see above."""
        if name in [table.name for table in self.compressed]:
            raise RecloomError(
                f"table {name!r} is stored as a quotient and a remainder table",
                f"Ask for {name + '/quotient'!r} and {name + '/remainder'!r}.",
            )
        return self.parts.table_weight(name)

    def extra_repr(self) -> str:
        """Say what is compressed."""
        return f"{len(self.compressed)} of {len(self.tables)} tables compressed, {self.operation}, c={self.collisions}"


class HashedEmbeddingBag(EmbeddingBagCollection):
    """Tables of at most `max_rows` rows: id i has row i mod max_rows (the reference's --max-ind-range).

    `table_weight` gives the stored rows.

    Args:
        tables: The tables, all of one width.
        max_rows: Most rows that a table gets.
        seed: Seed of the initial values; by default the global seed (`seed_everything`).
    """

    def __init__(
        self, tables: Sequence[EmbeddingBagConfig], max_rows: int = 1_000_000, seed: int | None = None
    ) -> None:
        super().__init__(tables)
        if max_rows < 1:
            raise RecloomError(f"max_rows is {max_rows}", "A table needs at least one row.")
        self.layout = table_layout(self.tables)
        self.compressed = [table for table in self.tables if table.num_embeddings > max_rows]
        stored = [replace(table, num_embeddings=min(table.num_embeddings, max_rows)) for table in self.tables]
        self.parts = FusedEmbeddingBag(stored, seed)
        rows = [table.num_embeddings for table in stored for _ in table.feature_names]
        self.register_buffer("rows", torch.tensor(rows), persistent=False)

    def forward(self, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Return the pooled rows, B x F x D; see the base class."""
        feature = check_ids(values, offsets, self.layout)
        rows = self.get_buffer("rows")
        if feature is None:
            ids = (values.view(self.num_features, -1) % rows[:, None]).view(-1)
        else:
            ids = values % rows[feature]
        return self.parts(ids, offsets, weights)

    def lookup(self, feature: str, ids: Tensor) -> Tensor:
        """Return the rows of `ids`, ids.shape x D; see the base class."""
        if feature not in self.feature_names:
            raise unknown("feature", feature, self.feature_names)
        check_ids(ids.reshape(-1), None, self.layout.only(feature))
        return self.parts.lookup(feature, ids % self.get_buffer("rows")[self.feature_names.index(feature)])

    def table_weight(self, name: str) -> Tensor:
        """Return the stored rows, a view."""
        return self.parts.table_weight(name)

    def extra_repr(self) -> str:
        """Say what is compressed."""
        return f"{len(self.compressed)} of {len(self.tables)} tables hashed"


def _part(table: EmbeddingBagConfig, kind: str, rows: int) -> EmbeddingBagConfig:
    names = tuple(f"{name}/{kind}" for name in table.feature_names)
    return replace(table, name=f"{table.name}/{kind}", num_embeddings=rows, feature_names=names)
