"""Which rank holds which rows: whole tables (table-wise), or equal ranges of a table's rows (row-wise)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from recloom.embedding import EmbeddingBagConfig
from recloom.errors import unknown

Sharding = Literal["auto", "table_wise", "row_wise"]
KINDS = ("auto", "table_wise", "row_wise")


@dataclass(frozen=True)
class TablePlan:
    """Where the rows of one table are: row i is on rank `ranks[i // block]`.

    Args:
        table: The table.
        kind: "table_wise" or "row_wise".
        ranks: The ranks that hold rows, in the order of the rows.
        block: Rows on each of them; the last may hold fewer.
        lookups: Expected ids a sample, over all features of the table.
    """

    table: EmbeddingBagConfig
    kind: str
    ranks: tuple[int, ...]
    block: int
    lookups: float

    def rows(self, rank: int) -> tuple[int, int]:
        """Return (the first row on `rank`, the number of rows there)."""
        if rank not in self.ranks:
            return 0, 0
        start = min(self.ranks.index(rank) * self.block, self.table.num_embeddings)
        return start, min(self.block, self.table.num_embeddings - start)

    @property
    def bytes(self) -> int:
        """Bytes of the table's float32 rows."""
        return 4 * self.table.num_embeddings * self.table.embedding_dim


@dataclass(frozen=True)
class ShardingPlan:
    """Where the rows of all tables of one collection are.

    Args:
        tables: One plan a table, in the order of the collection's tables.
        world_size: Number of ranks.
    """

    tables: tuple[TablePlan, ...]
    world_size: int

    def spans(self, rank: int) -> tuple[tuple[int, int], ...]:
        """Return (first row, number of rows) of each stretch on `rank`, as rows of all tables one after the other."""
        starts = accumulate((plan.table.num_embeddings for plan in self.tables), initial=0)
        found = ((start, plan.rows(rank)) for start, plan in zip(starts, self.tables, strict=False))
        return tuple((start + first, count) for start, (first, count) in found if count)

    def report(self) -> str:
        """Return the plan as a table for the log: where each table is, and each rank's bytes and lookups."""
        lines = [("table", "rows", "dim", "MB", "lookups", "sharding", "ranks")]
        for plan in self.tables:
            table, ranks = plan.table, plan.ranks
            where = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}, {plan.block:,} rows each"
            size = f"{plan.bytes / 1e6:,.1f}"
            rows = f"{table.num_embeddings:,}"
            lines.append((table.name, rows, str(table.embedding_dim), size, f"{plan.lookups:g}", plan.kind, where))
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        shown = [
            "  ".join(cell.rjust(widths[i]) if 1 <= i <= 4 else cell.ljust(widths[i]) for i, cell in enumerate(line))
            for line in lines
        ]
        for rank in range(self.world_size):
            parts = [(plan, plan.rows(rank)[1] / plan.table.num_embeddings) for plan in self.tables]
            size = f"{sum(plan.bytes * part for plan, part in parts) / 1e6:,.1f}"
            lookups = f"{sum(plan.lookups * part for plan, part in parts):.3g}"
            shown.append(f"rank {rank}: {size} MB, {lookups} lookups a sample")
        return "\n".join(line.rstrip() for line in shown)


def make_plan(
    tables: Sequence[EmbeddingBagConfig],
    world_size: int,
    sharding: Sharding = "auto",
    overrides: Mapping[str, str] | None = None,
    lookups: Mapping[str, float] | None = None,
) -> ShardingPlan:
    """Return the plan of `tables` over `world_size` ranks; every rank computes the same one.

    A table's load is its share of all bytes plus its share of all embedding values looked up. With "auto", a table
    whose load is above a rank's fair share is split by rows over all ranks; then the others, largest first, go whole
    to the rank with the least load so far (the longest-processing-time rule, within 4/3 of the best balance).

    Args:
        tables: The tables of a collection.
        world_size: Number of ranks, R.
        sharding: How to choose: "auto" as above, or the same for all tables.
        overrides: "table_wise" or "row_wise" by table name, whatever `sharding` says.
        lookups: Expected ids a sample by feature name; 1 where it says nothing.

    Raises:
        RecloomError: A table or a kind of sharding that does not exist.
    """
    overrides, lookups = overrides or {}, lookups or {}
    _check(tables, sharding, overrides)
    expected = {table.name: sum(lookups.get(name, 1.0) for name in table.feature_names) for table in tables}
    loads = _loads(tables, expected)
    fair = sum(loads.values()) / world_size * (1 + 1e-9)
    ranks = [0.0] * world_size
    plans: dict[str, TablePlan] = {}
    whole: list[EmbeddingBagConfig] = []
    for table in tables:
        kind = overrides.get(table.name, sharding)
        if kind == "auto":
            kind = "row_wise" if loads[table.name] > fair and table.num_embeddings >= world_size else "table_wise"
        if kind == "table_wise" or world_size == 1:
            whole.append(table)
            continue
        block = -(-table.num_embeddings // world_size)
        plans[table.name] = TablePlan(table, kind, tuple(range(world_size)), block, expected[table.name])
        ranks = [load + loads[table.name] / world_size for load in ranks]
    for table in sorted(whole, key=lambda t: (-loads[t.name], t.name)):
        rank = ranks.index(min(ranks))
        ranks[rank] += loads[table.name]
        plans[table.name] = TablePlan(table, "table_wise", (rank,), table.num_embeddings, expected[table.name])
    return ShardingPlan(tuple(plans[table.name] for table in tables), world_size)


def _loads(tables: Sequence[EmbeddingBagConfig], expected: Mapping[str, float]) -> dict[str, float]:
    size = {table.name: table.num_embeddings * table.embedding_dim for table in tables}
    work = {table.name: expected[table.name] * table.embedding_dim for table in tables}
    total = sum(work.values()) or 1.0
    return {name: size[name] / sum(size.values()) + work[name] / total for name in size}


def _check(tables: Sequence[EmbeddingBagConfig], sharding: str, overrides: Mapping[str, str]) -> None:
    names = [table.name for table in tables]
    for name, kind in overrides.items():
        if name not in names:
            raise unknown("table", name, names)
        if kind not in KINDS[1:]:
            raise unknown("sharding", kind, KINDS[1:])
    if sharding not in KINDS:
        raise unknown("sharding", sharding, KINDS)
