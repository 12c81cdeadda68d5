"""The backend on FBGEMM's table-batched embeddings (TBE): the same contract and the same weight, FBGEMM's kernels.

TBE updates rows in its own backward, at once. Here its backward runs in the optimizer's step, on the row gradients
that were gathered until then: learning rates, accumulation, several ranks and checkpoints work as for the default.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recloom import rowcheck, rowgrad
from recloom.embedding import EmbeddingBagConfig, FusedEmbeddingBag
from recloom.errors import ComponentImportError, RecloomError
from recloom.rowgrad import RowGradient
from recloom.rowlayout import RowLayout


class FbgemmEmbeddingBag(FusedEmbeddingBag):
    """Embedding tables on FBGEMM's kernels; row updates by sgd or rowwise_adagrad.

    Args:
        tables: The tables, all of one width.
        seed: Seed of the initial values; by default the global seed (`seed_everything`).
    """

    def __init__(self, tables: Sequence[EmbeddingBagConfig], seed: int | None = None) -> None:
        super().__init__(tables, seed)
        self.engine = _TableBatched(self.layout)


class _TableBatched:
    """The kernels: TBE modules, made for a device when they are needed, that work on the collection's own weight."""

    def __init__(self, layout: RowLayout) -> None:
        self.layout = layout
        self.modules: dict[torch.device, Any] = {}
        try:
            importlib.import_module("fbgemm_gpu")
        except (ImportError, OSError) as error:
            raise ComponentImportError(
                f"FbgemmEmbeddingBag needs fbgemm_gpu, which cannot be imported: {error}",
                "Try: pip install 'recloom[fbgemm]', or use FusedEmbeddingBag.",
            ) from error

    def pool(
        self, weight: Tensor, ids: Tensor, offsets: Tensor | None, weights: Tensor | None, layout: RowLayout
    ) -> Tensor:
        """Return the pooled rows, B x F x D."""
        if layout is not self.layout:  # rows of one feature, un-pooled: nothing to batch
            return rowgrad.pool(weight, ids, offsets, weights, layout)
        rowcheck.check_lengths(ids, offsets, weights, layout)
        rowcheck.check(ids, offsets, layout)
        scale = layout.coefficients(ids, offsets, weights)
        with torch.no_grad():
            return self._run(self._module(weight), ids, offsets, scale)

    def update(
        self,
        weight: Tensor,
        state: dict[str, Tensor],
        gradients: Sequence[RowGradient],
        rule: str,
        lr: float,
        eps: float,
    ) -> None:
        """Apply the gradients by one forward and one backward pass of TBE."""
        from fbgemm_gpu.split_embedding_configs import EmbOptimType

        rules = {"sgd": EmbOptimType.EXACT_SGD, "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD}
        if rule not in rules:
            raise RecloomError(
                f"FbgemmEmbeddingBag has no update {rule!r}", f"Set optimizer.sparse to one of: {', '.join(rules)}."
            )
        module = self._module(weight)
        module.optimizer = rules[rule]
        module.update_hyper_parameters({"lr": lr, "eps": eps})
        if rule != "sgd":
            (module.momentum1_host if module.use_cpu else module.momentum1_dev).data = state["sum"]
        ids, offsets, scale, bags = merge(self.layout, gradients)
        with torch.enable_grad():
            self._run(module, ids, offsets, scale).backward(bags)

    def _run(self, module: Any, ids: Tensor, offsets: Tensor | None, scale: Tensor | None) -> Tensor:
        if offsets is None:
            offsets = torch.arange(len(ids) + 1, device=ids.device)
        pooled = module(ids.contiguous(), offsets.contiguous(), per_sample_weights=scale)
        return pooled.view(-1, self.layout.num_features, pooled.shape[1] // self.layout.num_features)

    def _module(self, weight: Tensor) -> Any:
        """Return the TBE of the weight's device, tied to the weight (a copy or a loaded one has other memory)."""
        module = self.modules.get(weight.device)
        if module is None:
            self.modules = {weight.device: (module := self._build(weight))}
        (module.weights_host if module.use_cpu else module.weights_dev).data = weight.detach().view(-1)
        return module

    def _build(self, weight: Tensor) -> Any:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        on_cpu = weight.device.type == "cpu"
        place = (
            (EmbeddingLocation.HOST, ComputeDevice.CPU) if on_cpu else (EmbeddingLocation.DEVICE, ComputeDevice.CUDA)
        )
        rows = dict(zip(self.layout.table, self.layout.rows, strict=True))
        return SplitTableBatchedEmbeddingBagsCodegen(
            [(rows[table], weight.shape[1], *place) for table in sorted(rows)],
            feature_table_map=list(self.layout.table),
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,  # with room for its state; `update` sets the rule in use
            stochastic_rounding=False,
            bounds_check_mode=BoundsCheckMode.NONE,
            device=weight.device,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> _TableBatched:
        return _TableBatched(self.layout)

    def __getstate__(self) -> dict[str, Any]:
        return {"layout": self.layout, "modules": {}}


def merge(layout: RowLayout, gradients: Sequence[RowGradient]) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Return (ids, offsets, factors of the values, B x F x D gradients) of all gradients as one batch."""
    if len(gradients) == 1 and gradients[0].layout is layout:
        (g,) = gradients
        return g.ids, g.offsets, layout.coefficients(g.ids, g.offsets, g.weights), g.bags.contiguous()
    ids: list[list[Tensor]] = [[] for _ in layout.features]
    factors: list[list[Tensor]] = [[] for _ in layout.features]
    lengths, bags = [], []
    for g in gradients:
        samples, mine = g.bags.shape[0], [layout.features.index(name) for name in g.layout.features]
        counts = torch.ones_like(g.ids) if g.offsets is None else g.offsets.diff()
        scale = g.layout.coefficients(g.ids, g.offsets, g.weights)
        scale = torch.ones(len(g.ids), device=g.ids.device) if scale is None else scale
        sizes = counts.view(len(mine), samples).sum(1).tolist()
        for feature, part, factor in zip(mine, g.ids.split(sizes), scale.split(sizes), strict=True):
            ids[feature].append(part)
            factors[feature].append(factor)
        whole_counts = counts.new_zeros(layout.num_features, samples)
        whole_counts[mine] = counts.view(len(mine), samples)
        whole_bags = g.bags.new_zeros(samples, layout.num_features, g.bags.shape[2])
        whole_bags[:, mine] = g.bags
        lengths.append(whole_counts)
        bags.append(whole_bags)
    flat = torch.cat(lengths, 1).view(-1)
    offsets = torch.cat([flat.new_zeros(1), flat.cumsum(0)])
    return (
        torch.cat([part for parts in ids for part in parts]),
        offsets,
        torch.cat([part for parts in factors for part in parts]),
        torch.cat(bags),
    )
