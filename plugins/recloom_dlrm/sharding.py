"""Embedding tables sharded over ranks: the model-parallel half of the paper's hybrid scheme (section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn  # type: ignore[attr-defined]
from torch import Tensor, nn

from recloom import rowgrad, rowkernels
from recloom.dcp import RowSpans
from recloom.embedding import EmbeddingBagCollection, EmbeddingBagConfig, FusedEmbeddingBag, init_rows
from recloom.errors import RecloomError, unknown
from recloom.rowlayout import RowLayout, stack_layout
from recloom.strategy import RecloomStrategy, mark_sharded
from recloom.tracing import is_exporting
from recloom_dlrm import exchange, pooling
from recloom_dlrm.planner import Sharding, ShardingPlan, make_plan
from recloom_dlrm.routing import Router


class ShardedEmbeddingBag(EmbeddingBagCollection):
    """Embedding tables of which each rank holds a part: whole tables, or ranges of a table's rows.

    A lookup sends ids to the ranks that have their rows and gets the pooled rows back; gradients go the same way,
    and each rank updates its own rows. Initial values, checkpoints and results are those of FusedEmbeddingBag, on
    any number of ranks. No rank ever holds all rows: memory is taken once the number of ranks is known.

    Args:
        tables: The tables, all of one width.
        seed: Seed of the initial values; by default the global seed (`seed_everything`).
        sharding: table_wise: each table on one rank; row_wise: each table's rows over all ranks; auto: row-wise for
            the tables that are larger than a rank's fair share, table-wise for others.
        overrides: table_wise or row_wise by table name, whatever `sharding` says: {c3: row_wise}.
        lookups: Expected ids a sample by feature name, for the balance; 1 where it says nothing.
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingBagConfig],
        seed: int | None = None,
        sharding: Sharding = "auto",
        overrides: dict[str, str] | None = None,
        lookups: dict[str, float] | None = None,
    ) -> None:
        super().__init__(tables)
        self.seed = torch.initial_seed() if seed is None else seed
        self.options: tuple[Sharding, dict[str, str], dict[str, float]] = (sharding, overrides or {}, lookups or {})
        make_plan(self.tables, 1, *self.options)  # say now what is wrong with the options
        self.layout = stack_layout([(t.num_embeddings, t.feature_names, t.pooling) for t in self.tables])
        self._single = {name: self.layout.only(name) for name in self.feature_names}
        self._routers: dict[str, Router] = {}
        self.plan: ShardingPlan | None = None
        self.rank = 0
        self.row_gradient_factor = 1.0
        """Factor on row gradients: 1/R, as for dense gradients that are averaged over ranks, each from the mean loss of
        its own samples. A strategy that does not average those sets it otherwise."""
        self.batch_share = 1.0
        """R times this rank's share of the samples of the last batch: 1 when all ranks have equally many."""
        self.output_dim = self.one_width()
        self.weight: nn.Parameter = nn.UninitializedParameter()  # type: ignore[assignment]
        rowgrad.row_gradients(self.weight)
        self.register_load_state_dict_pre_hook(_place_first)  # type: ignore[no-untyped-call]

    @classmethod
    def replacing(
        cls, fused: FusedEmbeddingBag, sharding: Sharding, overrides: dict[str, str], lookups: dict[str, float]
    ) -> ShardedEmbeddingBag:
        """Return a collection with the tables and values of `fused`, to be placed."""
        made = cls(fused.tables, 0, sharding, overrides, lookups)
        made.weight = fused.weight
        made.plan = make_plan(fused.tables, 1)
        return made

    @property
    def row_parameter_names(self) -> tuple[str, ...]:
        """The parameters that take row gradients instead of `.grad` (see `recloom.rowgrad`)."""
        return ("weight",)

    @property
    def world_size(self) -> int:
        """Number of ranks that hold the tables."""
        return 1 if self.plan is None else self.plan.world_size

    def place(self, world_size: int | None = None) -> bool:
        """Take this rank's rows: draw them, or keep its part where all were held. All ranks together.

        Args:
            world_size: 1 to hold all rows on every rank; by default they are shared out over all ranks.

        Returns:
            Whether anything was done: False if the rows are placed so already.

        Raises:
            RecloomError: The tables are spread over another number of ranks already.
        """
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        world = world if world_size is None else world_size
        if self.plan is not None and self.world_size == world:
            return False
        if self.world_size > 1:
            raise RecloomError(
                f"tables are sharded over {self.world_size} ranks, and there are {world} now",
                "Write a checkpoint and load it into a new model.",
            )
        plan = make_plan(self.tables, world, *self.options)
        self.rank = dist.get_rank() if world > 1 else 0
        spans = RowSpans(sum(table.num_embeddings for table in self.tables), plan.spans(self.rank))
        if isinstance(self.weight, nn.UninitializedParameter):
            self.weight.materialize((spans.rows, self.output_dim))
            self._draw(plan)
        else:
            self.weight.data = spans.take(self.weight.detach())
        self._routers = {}
        self.row_gradient_factor = 1 / world
        self.plan = plan
        if world > 1:
            mark_sharded(self.weight, spans)
            exchange.groups()
        return True

    def _draw(self, plan: ShardingPlan) -> None:
        rowkernels.advise_huge_pages(self.weight)
        start = 0
        for table in plan.tables:
            first, count = table.rows(self.rank)
            init_rows(self.weight.detach()[start : start + count], table.table, self.seed, first)
            start += count

    def forward(self, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Return the pooled rows, B x F x D; see the base class. All ranks together, with batches of any sizes.

        Raises:
            DataError: An id of this rank is outside its table.
            RecloomError: That happened on another rank; all stop.
        """
        return self.start(values, offsets, weights)()

    def start(
        self, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None
    ) -> Callable[[], Tensor]:
        """Send the ids, pool this rank's rows for the others and send those; return what waits for one's own."""
        if self.layout.weighted and weights is None:
            name = next(table.name for table in self.tables if table.pooling == "weighted")
            raise RecloomError(
                f"table {name!r} has weighted pooling, and the batch has no value weights",
                "Use pooling sum or mean, or data with value weights.",
            )
        return self._start("", self.layout, values, offsets, weights)

    def lookup(self, feature: str, ids: Tensor) -> Tensor:
        """Return the rows of `ids`, ids.shape x D; see the base class. All ranks together."""
        if feature not in self._single:
            raise unknown("feature", feature, self._single)
        rows = self._start(feature, self._single[feature], ids.reshape(-1), None, None)()
        return rows.view(*ids.shape, self.output_dim)

    def _start(
        self, feature: str, layout: RowLayout, ids: Tensor, offsets: Tensor | None, weights: Tensor | None
    ) -> Callable[[], Tensor]:
        if self.plan is None:
            self.place()
        if self.world_size == 1:
            if is_exporting():
                whole = rowgrad.plain(self.weight, ids, offsets, weights, layout)
            else:
                whole = rowgrad.lookup(self.weight, ids, offsets, weights, layout)
            return lambda: whole
        assert self.plan is not None
        if feature not in self._routers:
            self._routers[feature] = Router(self.plan, layout)
        group = exchange.groups()
        try:
            routed = self._routers[feature].route(ids, offsets, weights)
        except Exception:
            exchange.share_failure(group)  # the others are about to wait for this rank's counts
            raise
        _, samples = routed.shape
        counts = exchange.share_counts(group, samples, offsets is not None, routed.values_to, routed.parts_to)
        if not feature:
            self.batch_share = samples * self.world_size / max(1, sum(counts.samples))
        return pooling.start(self.weight, group, routed, counts, self.row_gradient_factor)

    def table_weight(self, name: str) -> Tensor:
        """Return the table's rows, a view; see the base class.

        Raises:
            RecloomError: They are not all on this rank.
        """
        first, rows = self.local_rows(name)
        table = next(table for table in self.tables if table.name == name)
        if first or len(rows) < table.num_embeddings:
            raise RecloomError(
                f"rank {self.rank} holds {len(rows):,} of the {table.num_embeddings:,} rows of table {name!r}",
                "Use local_rows, or a checkpoint.",
            )
        return rows

    def local_rows(self, name: str) -> tuple[int, Tensor]:
        """Return (the first row of a table on this rank, a view of the rows here)."""
        if self.plan is None:
            self.place()
        assert self.plan is not None
        start = 0
        for table in self.plan.tables:
            first, count = table.rows(self.rank)
            if table.table.name == name:
                return first, self.weight.detach()[start : start + count]
            start += count
        raise unknown("table", name, [table.name for table in self.tables])

    def extra_repr(self) -> str:
        """Say how large it is, and where."""
        return f"{len(self.tables)} tables of width {self.output_dim}, rank {self.rank} of {self.world_size}"


def _place_first(module: nn.Module, *_: object) -> None:
    """Take memory before a state dict is loaded into it."""
    assert isinstance(module, ShardedEmbeddingBag)
    if module.plan is None:
        module.place()


def place_tables(module: LightningModule) -> None:
    """Place every ShardedEmbeddingBag in `module`: whole under strategies that would save rank 0's rows only."""
    found = [child for child in module.modules() if isinstance(child, ShardedEmbeddingBag)]
    if not found:
        return
    whole = dist.is_initialized() and not isinstance(module.trainer.strategy, RecloomStrategy)
    for collection in found:
        if not collection.place(1 if whole else None):
            continue
        assert collection.plan is not None
        if collection.world_size > 1:
            rank_zero_info(f"embedding tables over {collection.world_size} ranks:\n{collection.plan.report()}")
        elif whole and dist.get_world_size() > 1:
            rank_zero_warn("every rank holds all embedding tables; --trainer.strategy hybrid shares them out")
