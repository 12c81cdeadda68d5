"""The backend on TorchRec: its collections, its sharding and exchange over ranks, its fused optimizers.

TorchRec updates rows inside its own backward pass, at once. Here its lookups run twice: once in the forward pass,
without a graph, and once in the optimizer's step, forward and backward, on the gradients of the bags gathered until
then. So learning-rate policies, accumulation and checkpoints work as they do for the default backend.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recloom import rowcheck, rowgrad
from recloom.embedding import EmbeddingBagConfig
from recloom.errors import DataError, RecloomError
from recloom.rowlayout import RowLayout
from recloom.tracing import is_exporting
from recloom_dlrm import exchange
from recloom_dlrm.planner import Sharding, ShardingPlan
from recloom_dlrm.sharding import ShardedEmbeddingBag
from recloom_dlrm.torchrec_lookup import TorchRecLookup, jagged, scaled

if importlib.util.find_spec("torchrec") is None:  # torchrec itself, slow to import, is imported where it is used
    raise ModuleNotFoundError("torchrec is missing; it needs, too: pip install --no-deps 'torchrec>=1.8,<1.9'")


class TorchRecEmbeddingBag(ShardedEmbeddingBag):
    """Embedding tables in TorchRec: FusedEmbeddingBagCollection on one rank, ShardedEmbeddingBagCollection on several.

    The rows are one weight of ours, laid out, drawn and saved as ShardedEmbeddingBag's: a checkpoint is plain tensors
    (or recloom's shards) that need no TorchRec to be read, on any number of ranks. TorchRec's kernels are given views
    of it. On several ranks, under the strategies ddp and hybrid, our plan says which rank holds which rows and
    TorchRec moves ids and pooled rows; its planner is not asked, for it offers no row-wise tables on CPU. Column-wise
    and data-parallel tables are not offered either: FusedEmbeddingBag under ddp is the latter.

    Recloom's own kernels do what TorchRec's collections cannot: `lookup`, export, and all of a step's update if that
    step has gradients from `lookup`. Building the collection takes the tables' memory twice, for a moment.

    Args:
        tables: The tables, all of one width, a multiple of 4.
        seed: Seed of the initial values; by default the global seed (`seed_everything`).
        sharding: table_wise, row_wise, or auto: by size and lookups, as in ShardedEmbeddingBag.
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
        super().__init__(tables, seed, sharding, overrides, lookups)
        if self.output_dim % 4:
            raise RecloomError(
                f"TorchRec's kernels take rows of a width that is a multiple of 4, not {self.output_dim}",
                "Change embedding_dim, or use ShardedEmbeddingBag.",
            )
        self.backend = _Backend(self.tables, self.layout)

    def place(self, world_size: int | None = None) -> bool:
        """Take this rank's rows; see the base class.

        Raises:
            RecloomError: A table is split into more parts than FBGEMM's kernels can have: none of them may be empty.
        """
        placed = super().place(world_size)
        assert self.plan is not None
        for table in self.plan.tables:
            if not all(table.rows(rank)[1] for rank in table.ranks):
                raise RecloomError(
                    f"TorchRec cannot split the {table.table.num_embeddings} rows of table {table.table.name!r} "
                    f"over {len(table.ranks)} ranks: one would have none",
                    f"Keep it whole, overrides: {{{table.table.name}: table_wise}}, or use ShardedEmbeddingBag.",
                )
        return placed

    def _start(
        self, feature: str, layout: RowLayout, ids: Tensor, offsets: Tensor | None, weights: Tensor | None
    ) -> Callable[[], Tensor]:
        if self.plan is None:
            self.place()
        assert self.plan is not None
        if feature or is_exporting():
            return super()._start(feature, layout, ids, offsets, weights)
        if self.world_size == 1:
            self._check(ids, offsets, weights)
            engine = self.backend.get(self.weight, self.plan)
            pooled = rowgrad.lookup(self.weight, ids, offsets, weights, layout, engine)
            return lambda: pooled
        return self._exchange(ids, offsets, weights)

    @torch.compiler.disable(reason="collectives of TorchRec")  # type: ignore[untyped-decorator]
    def _exchange(self, ids: Tensor, offsets: Tensor | None, weights: Tensor | None) -> Callable[[], Tensor]:
        """Start TorchRec's exchange of ids and rows; return what waits for this rank's rows."""
        from torchrec.distributed.comm_ops import get_gradient_division

        assert self.plan is not None
        group, ranks = exchange.groups(), self.world_size
        try:
            if self.layout.weighted and weights is not None and weights.requires_grad and torch.is_grad_enabled():
                raise RecloomError(
                    "TorchRec gives no gradients to value weights on several ranks",
                    "Use ShardedEmbeddingBag, or weights that are not learned.",
                )
            self._check(ids, offsets, weights)
        except Exception:
            exchange.share_failure(group)  # the others are about to wait for this rank
            raise
        features = len(self.feature_names)
        samples = (len(ids) if offsets is None else len(offsets) - 1) // features
        counts = exchange.share_counts(group, samples, offsets is not None, [0] * ranks, [0] * ranks)
        self.batch_share = samples * ranks / max(1, sum(counts.samples))
        sharded = self.backend.get(self.weight, self.plan)
        # gloo's reduce-scatter and its backward need equally many samples on all ranks: the last ones have empty bags
        keyed = jagged(self.layout, ids, offsets, weights, max(counts.samples))
        context = sharded.create_context()
        received = sharded.input_dist(context, keyed).wait().wait()
        awaitable = sharded.compute_and_output_dist(context, received)
        # TorchRec divides the gradients by the number of ranks, unless its global switch is off
        factor = self.row_gradient_factor * (ranks if get_gradient_division() else 1)

        def finish() -> Tensor:
            out = awaitable.wait()
            pooled = out.values().view(-1, features, self.output_dim)[:samples]
            if factor != 1 and pooled.requires_grad:
                pooled.register_hook(lambda gradient: gradient * factor)
            order = [out.keys().index(name) for name in self.feature_names]
            return pooled if order == sorted(order) else pooled[:, order]

        return finish

    def _check(self, ids: Tensor, offsets: Tensor | None, weights: Tensor | None) -> None:
        rowcheck.check_lengths(ids, offsets, weights if self.layout.weighted else None, self.layout)
        if offsets is not None and offsets.device.type == "cpu":
            ends = F.pad(offsets, (1, 1))
            ends[-1] = len(ids)
            steps = ends.diff()
            if int(steps.min()) < 0 or int(steps[0]) or int(steps[-1]):
                raise DataError(
                    f"the offsets of {len(ids)} ids do not rise from 0 to {len(ids)}", "Check the bags' lengths."
                )
        rowcheck.check(ids, offsets, self.layout)


class _Backend:
    """TorchRec's modules, made when the plan and the device are known; a copy of a collection makes its own."""

    def __init__(self, tables: list[EmbeddingBagConfig], layout: RowLayout) -> None:
        self.tables, self.layout = tables, layout
        self.made: tuple[ShardingPlan, Tensor, torch.device, Any] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Backend:
        return _Backend(self.tables, self.layout)

    def __getstate__(self) -> dict[str, Any]:
        return {"tables": self.tables, "layout": self.layout, "made": None}

    @torch.compiler.disable(reason="modules are made in the first call")  # type: ignore[untyped-decorator]
    def get(self, weight: Tensor, plan: ShardingPlan) -> Any:
        """Return the lookup of one rank that holds all rows, or TorchRec's sharded collection: all ranks together."""
        made = self.made
        if made is None or made[0] is not plan or made[1] is not weight or made[2] != weight.device:
            module = self._whole(weight) if plan.world_size == 1 else self._sharded(weight, plan)
            self.made = made = (plan, weight, weight.device, module)
        return made[3]

    def _whole(self, weight: Tensor) -> TorchRecLookup:
        from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
        from torchrec.optim import RowWiseAdagrad

        fused = FusedEmbeddingBagCollection(
            self._configs(), RowWiseAdagrad, {}, is_weighted=scaled(self.layout), device=weight.device
        )
        return TorchRecLookup(fused, weight, self.layout)

    def _sharded(self, weight: Tensor, plan: ShardingPlan) -> Any:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
        from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise, table_wise
        from torchrec.distributed.types import ShardingEnv
        from torchrec.modules.embedding_modules import EmbeddingBagCollection

        group, device = exchange.groups(), weight.device
        collection = EmbeddingBagCollection(
            self._configs(), device=torch.device("meta"), is_weighted=scaled(self.layout)
        )
        sharder = EmbeddingBagCollectionSharder(fused_params={"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD})
        kinds = {
            table.table.name: row_wise(compute_kernel="fused")
            if table.kind == "row_wise"
            else table_wise(table.ranks[0], compute_kernel="fused")
            for table in plan.tables
        }
        where = construct_module_sharding_plan(
            collection, kinds, sharder, world_size=plan.world_size, device_type=device.type
        )
        sharded = sharder.shard(collection, where, ShardingEnv.from_process_group(group.payload), device)
        for i, lookup in enumerate(sharded._lookups):
            sharded._lookups[i] = TorchRecLookup(lookup, weight, self._layout(lookup, plan, group.rank))
        return sharded

    def _layout(self, lookup: Any, plan: ShardingPlan, rank: int) -> RowLayout:
        """Return where the rows of the features of TorchRec's lookup are in this rank's weight."""
        counts = [table.rows(rank)[1] for table in plan.tables]
        starts = list(accumulate(counts, initial=0))
        names = [table.table.name for table in plan.tables]
        held = [table for config in lookup.grouped_configs for table in config.embedding_tables]
        features = {name: names.index(table.name) for table in held for name in table.feature_names}
        return RowLayout(
            tuple(features),
            tuple(starts[i] for i in features.values()),
            tuple(counts[i] for i in features.values()),
            ("weighted" if scaled(self.layout) else "sum",) * len(features),
            tuple(features.values()),
        )

    def _configs(self) -> list[Any]:
        from torchrec.modules.embedding_configs import EmbeddingBagConfig as Config

        return [
            Config(
                name=t.name,
                embedding_dim=t.embedding_dim,
                num_embeddings=t.num_embeddings,
                feature_names=list(t.feature_names),
            )
            for t in self.tables
        ]
