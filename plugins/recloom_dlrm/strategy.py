"""The paper's hybrid parallelism as a Lightning strategy: tables sharded over ranks, everything else replicated."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from recloom.embedding import FusedEmbeddingBag
from recloom.errors import RecloomError
from recloom.features import FeatureSchema
from recloom.strategy import RecloomStrategy
from recloom_dlrm.planner import Sharding
from recloom_dlrm.sharding import ShardedEmbeddingBag, place_tables


class HybridParallelStrategy(RecloomStrategy):
    """Embedding tables model-parallel, dense layers data-parallel (DLRM, section 3), for any model of recloom.

    Every FusedEmbeddingBag in the model is replaced by a ShardedEmbeddingBag with the same tables, which then hold
    the same values; ids and pooled rows travel by all-to-all while the dense arch runs. Where tables are too large
    for each process to hold them even once, at the start, give the model `embedding: ShardedEmbeddingBag`.

    With equal samples overall, R ranks give the weights that one rank gives, up to the order of float sums: dense
    gradients are averaged and row gradients divided by R, and a rank's loss counts by its number of samples. (With
    sample weights, each rank normalises by its own samples' weights, as in any data-parallel training.)

    Args:
        sharding: table_wise, row_wise, or auto: chosen for each table from its size and lookups; see the log.
        overrides: table_wise or row_wise by table name, whatever `sharding` says: {c3: row_wise}.
        lookups: Expected ids a sample by feature name, for the balance; by default the schema's longest bag, or 1.
        process_group_backend: gloo, nccl, ...; by default what suits the accelerator.
        timeout: How long a collective waits for the other ranks.
        find_unused_parameters: As in DistributedDataParallel: for models whose loss leaves parameters out.
    """

    def __init__(
        self,
        sharding: Sharding = "auto",
        overrides: dict[str, str] | None = None,
        lookups: dict[str, float] | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=30),
        find_unused_parameters: bool = False,
    ) -> None:
        super().__init__(process_group_backend, timeout, find_unused_parameters)
        self.sharding: Sharding = sharding
        self.overrides = overrides or {}
        self.lookups = lookups
        self._collections: list[ShardedEmbeddingBag] = []

    def partition_parameters(self, module: pl.LightningModule) -> None:
        """Replace and place the model's embedding collections, and log the plan."""
        if dist.get_world_size() > 1:
            _replace(module, self._sharded_copy, {})
        self._collections = [child for child in module.modules() if isinstance(child, ShardedEmbeddingBag)]
        names = {table.name for collection in self._collections for table in collection.tables}
        if unknown := sorted(self.overrides.keys() - names):
            raise RecloomError(
                f"strategy.overrides names table {unknown[0]!r}, which is in no sharded collection",
                f"Tables: {', '.join(sorted(names)) or 'none'}.",
            )
        place_tables(module)

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Go backward from the loss times R times this rank's share of the samples: 1 when all have equally many."""
        share = self._collections[0].batch_share if self._collections else 1.0
        scaled = closure_loss if share == 1.0 else closure_loss * share
        return super().backward(scaled, optimizer, *args, **kwargs)

    def _sharded_copy(self, fused: FusedEmbeddingBag) -> ShardedEmbeddingBag:
        names = {table.name for table in fused.tables}
        overrides = {name: kind for name, kind in self.overrides.items() if name in names}
        lookups = self.lookups
        if lookups is None:
            schema = FeatureSchema.from_dict(getattr(self.lightning_module, "schema", None))
            lookups = {feature.name: float(max(1, feature.max_length)) for feature in schema.sparse}
        return ShardedEmbeddingBag.replacing(fused, self.sharding, overrides, lookups)


def _replace(module: nn.Module, copy: Any, made: dict[nn.Module, nn.Module]) -> None:
    """Replace each FusedEmbeddingBag with row gradients below `module`, one that is used twice by one copy."""
    for name, child in module.named_children():
        if type(child) is FusedEmbeddingBag and child.gradient == "fused":
            if child not in made:
                made[child] = copy(child)
            setattr(module, name, made[child])
        else:
            _replace(child, copy, made)
