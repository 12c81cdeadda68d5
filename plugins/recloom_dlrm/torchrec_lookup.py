"""One lookup of TorchRec's on rows of ours: the kernels behind `recloom_dlrm.torchrec_backend`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom import rowgrad, rowupdate
from recloom.embedding_fbgemm import merge
from recloom.rowgrad import RowGradient
from recloom.rowlayout import RowLayout


class TorchRecLookup(nn.Module):
    """A lookup of TorchRec's, made to read and update our weight: a row engine, and a lookup for TorchRec to call.

    Args:
        module: TorchRec's lookup, from a KeyedJaggedTensor to B x F*D.
        weight: The weight.
        layout: Where the rows of its features are in the weight.
    """

    def __init__(self, module: nn.Module, weight: Tensor, layout: RowLayout) -> None:
        super().__init__()
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen

        self.module, self.layout, self.width = module, layout, weight.shape[1]
        self.held = [weight]  # a list: no parameter of this module
        lookups = getattr(module, "_emb_modules", [])  # of FusedEmbeddingBagCollection a plain list, not modules
        kernels = [child for lookup in lookups for child in lookup.modules()]
        self.kernels: list[Any] = [k for k in kernels if isinstance(k, SplitTableBatchedEmbeddingBagsCodegen)]
        start = 0
        for kernel in self.kernels:
            end = start + len(kernel.feature_table_map)
            kernel.first_rows = torch.tensor(layout.base[start:end], device=weight.device)
            kernel.weights_offsets = kernel.first_rows * self.width
            for name in ("weights", "momentum1"):  # memory that is not used; TorchRec holds views of it
                _buffer(kernel, name).untyped_storage().resize_(0)
            start = end

    def forward(self, features: Any) -> Tensor:
        """Return what TorchRec's lookup does, B x F*D, with row gradients for our weight."""
        if not self.kernels:  # no rows on this rank
            return self.module(features)
        weights = features.weights_or_none()
        args = (self.held[0], features.values(), features.offsets(), weights, self.layout, self)
        return rowgrad.lookup(*args).flatten(1)

    def pool(
        self, weight: Tensor, ids: Tensor, offsets: Tensor | None, weights: Tensor | None, layout: RowLayout
    ) -> Tensor:
        """Return the pooled rows, B x F x D."""
        with torch.no_grad():
            return self._run(weight, jagged(layout, ids, offsets, weights)).view(-1, layout.num_features, self.width)

    def update(
        self,
        weight: Tensor,
        state: dict[str, Tensor],
        gradients: Sequence[RowGradient],
        rule: str,
        lr: float,
        eps: float,
    ) -> None:
        """Apply the gradients, those of other lookups too."""
        engines = {g.engine: g.engine for g in gradients}
        if not all(isinstance(engine, TorchRecLookup) for engine in engines):
            plain = [replace(g, engine=None) for g in gradients]
            rowupdate.apply(weight, state, plain, rule, lr, eps)
            return
        for engine in engines:
            assert isinstance(engine, TorchRecLookup)
            engine.fused_step(weight, state, [g for g in gradients if g.engine is engine], rule, lr, eps)

    def fused_step(
        self, weight: Tensor, state: dict[str, Tensor], gradients: list[RowGradient], rule: str, lr: float, eps: float
    ) -> None:
        """Apply this lookup's gradients by one forward and one backward pass with TorchRec's fused optimizer."""
        from fbgemm_gpu.split_embedding_configs import EmbOptimType

        rules = {
            "sgd": EmbOptimType.EXACT_SGD,
            "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            "adagrad": EmbOptimType.EXACT_ADAGRAD,
        }
        for kernel in self.kernels:
            kernel.optimizer = rules[rule]
            kernel.update_hyper_parameters({"lr": lr, "eps": eps})
            if rule != "sgd":
                _buffer(kernel, "momentum1").data = state["sum"].view(-1)
                kernel.momentum1_offsets = kernel.first_rows * (self.width if rule == "adagrad" else 1)
        ids, offsets, scale, bags = merge(self.layout, gradients)
        with torch.enable_grad():
            self._run(weight, _keyed(self.layout, ids, offsets, scale)).backward(bags.flatten(1))

    def _run(self, weight: Tensor, features: Any) -> Tensor:
        for kernel in self.kernels:
            _buffer(kernel, "weights").data = weight.detach().view(-1)  # a loaded weight may have other memory
        out = self.module(features)
        return out if isinstance(out, Tensor) else out.values()


def scaled(layout: RowLayout) -> bool:
    """Whether values have factors: mean pooling is a sum with the factors 1/length."""
    return layout.weighted or layout.mean


def _buffer(kernel: Any, name: str) -> Any:
    """Return the memory of a kernel of FBGEMM, on CPU or on a device."""
    return getattr(kernel, f"{name}_host" if kernel.use_cpu else f"{name}_dev")


def jagged(
    layout: RowLayout, ids: Tensor, offsets: Tensor | None, weights: Tensor | None, samples: int | None = None
) -> Any:
    """Return a lookup's arguments as a KeyedJaggedTensor, of `samples` samples where that is more."""
    with torch.no_grad():
        return _keyed(layout, ids, offsets, layout.coefficients(ids, offsets, weights), samples)


def _keyed(
    layout: RowLayout, ids: Tensor, offsets: Tensor | None, scale: Tensor | None, samples: int | None = None
) -> Any:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    if scale is None and scaled(layout):
        scale = torch.ones(len(ids), device=ids.device)
    lengths = (torch.ones_like(ids) if offsets is None else offsets.diff()).view(layout.num_features, -1)
    if samples is not None:
        lengths = F.pad(lengths, (0, samples - lengths.shape[1]))
    return KeyedJaggedTensor(list(layout.features), ids, scale, lengths.reshape(-1), stride=lengths.shape[1])
