"""Row gradients: what a lookup's backward leaves on an embedding weight instead of a dense or COO gradient.

A batch touches few rows of a table. The lookup's backward keeps the gradient of the pooled bags, B x F x D, with
the ids that made them; `recloom.rowupdate` applies it to the touched rows. Neither a gradient of the table's size
nor one row a value is ever allocated. Several backward passes accumulate in a list, `parameter.row_gradients`.

Letters: B samples, F features, D embedding width, N values (ids), R rows of the weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recloom import rowkernels
from recloom.errors import DataError
from recloom.rowcheck import check as check  # part of this module's interface
from recloom.rowcheck import check_lengths, outside
from recloom.rowlayout import RowLayout
from recloom.tracing import is_exporting


class RowEngine(Protocol):
    """Another library's kernels, for a backend that has some; recloom's own are used where a backend has none."""

    def pool(
        self, weight: Tensor, ids: Tensor, offsets: Tensor | None, weights: Tensor | None, layout: RowLayout
    ) -> Tensor:
        """Return the pooled rows, B x F x D, without a gradient."""

    def update(
        self,
        weight: Tensor,
        state: dict[str, Tensor],
        gradients: Sequence[RowGradient],
        rule: str,
        lr: float,
        eps: float,
    ) -> None:
        """Apply row gradients in place; see `rowupdate.apply`."""


@dataclass
class RowGradient:
    """The gradient of one lookup.

    Args:
        layout: Where the rows of each feature are in the weight.
        ids: N ids, key-major, each within its feature's table.
        offsets: F*B+1 bounds of the bags, or None for one id a bag.
        weights: N value weights, or None.
        bags: B x F x D gradients of the pooled bags, float32; the last dimension contiguous.
        engine: Whose kernels apply it; None: recloom's.
    """

    layout: RowLayout
    ids: Tensor
    offsets: Tensor | None
    weights: Tensor | None
    bags: Tensor
    engine: RowEngine | None = None

    def expand(self) -> tuple[Tensor, Tensor]:
        """Return (N rows of the weight, N x D gradients), for updates in plain torch operations."""
        rows, bag = self.layout.rows_and_bags(self.ids, self.offsets)
        flat = self.bags.transpose(0, 1).reshape(-1, self.bags.shape[-1])  # F*B x D
        gradients = flat if bag is None else flat.index_select(0, bag)
        scale = self.layout.coefficients(self.ids, self.offsets, self.weights)
        return rows, gradients if scale is None else gradients * scale[:, None]


class RowLookup(torch.autograd.Function):
    """Pooled lookup whose backward stashes a RowGradient on the weight; the weight never gets a `.grad`."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        ids: Tensor,
        offsets: Tensor | None,
        weights: Tensor | None,
        layout: RowLayout,
        engine: RowEngine | None,
    ) -> Tensor:
        """Return B x F x D pooled rows."""
        ctx.layout, ctx.weight, ctx.engine = layout, weight, engine
        ctx.save_for_backward(ids, offsets, weights)
        return (engine.pool if engine else pool)(weight, ids, offsets, weights, layout)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bags: Tensor) -> tuple[None, None, None, Tensor | None, None, None]:
        """Stash the gradient of the bags; return that of the value weights where it is wanted."""
        ids, offsets, weights = ctx.saved_tensors
        bags = bags.float() if bags.stride(-1) == 1 else bags.float().contiguous()
        if ctx.needs_input_grad[0]:
            row_gradients(ctx.weight).append(RowGradient(ctx.layout, ids, offsets, weights, bags, ctx.engine))
        of_weights = weight_gradient(ctx.weight, ids, offsets, bags, ctx.layout) if ctx.needs_input_grad[3] else None
        return None, None, None, of_weights, None, None


@torch.compiler.disable(reason="native kernels read memory a compiled graph may have moved")  # type: ignore[untyped-decorator]
def lookup(
    weight: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    layout: RowLayout,
    engine: RowEngine | None = None,
) -> Tensor:
    """Return the pooled rows, B x F x D, with a row gradient for `weight` when it requires one.

    Args:
        weight: R x D, float32.
        ids: N ids, key-major; int64.
        offsets: F*B+1 bounds, or None for exactly one id a bag.
        weights: N value weights for the features with weighted pooling, or None.
        layout: Where the rows of each feature are.
        engine: Another library's kernels.

    Raises:
        DataError: An id is outside its table (on CUDA: a device-side assertion, without waiting for the device).
    """
    weights = weights if layout.weighted else None
    if torch.is_grad_enabled() and (weight.requires_grad or (weights is not None and weights.requires_grad)):
        return RowLookup.apply(weight, ids, offsets, weights, layout, engine)  # type: ignore[no-untyped-call]
    return (engine.pool if engine else pool)(weight, ids, offsets, weights, layout)


def pool(weight: Tensor, ids: Tensor, offsets: Tensor | None, weights: Tensor | None, layout: RowLayout) -> Tensor:
    """Return the pooled rows without a gradient: the native kernel on CPU, plain torch operations elsewhere."""
    if kernels := rowkernels.available(weight, ids):
        check_lengths(ids, offsets, weights, layout)
        out, bad = kernels.pool(weight, ids, offsets, weights, layout)
        if bad == rowkernels.BAD_OFFSETS:
            raise DataError(
                f"the offsets of {len(ids)} ids do not rise from 0 to {len(ids)}", "Check the bags' lengths."
            )
        if bad >= 0:
            raise outside(layout, ids, offsets, bad)
        return out
    check(ids, offsets, layout)
    return plain(weight.detach(), ids, offsets, weights, layout)


def plain(
    weight: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    layout: RowLayout,
    sparse: bool = False,
) -> Tensor:
    """Return the pooled rows, B x F x D, by torch's own operations: exportable, differentiable the usual way.

    Args:
        weight: As in `lookup`, and so are `ids`, `offsets`, `weights`, `layout`.
        sparse: Whether the weight's gradient is a sparse COO tensor.
    """
    rows, _ = layout.rows_and_bags(ids, offsets, bags=False)
    scale = layout.coefficients(ids, offsets, weights)
    if offsets is None:
        index = rows.view(layout.num_features, -1).t()  # B x F
        out = F.embedding(index, weight, sparse=sparse)
        return out if scale is None else out * scale.view(layout.num_features, -1).t()[..., None]
    if is_exporting():
        return _scatter(weight, ids, offsets, scale, layout)
    pooled = F.embedding_bag(
        rows, weight, offsets, mode="sum", sparse=sparse, per_sample_weights=scale, include_last_offset=True
    )
    return pooled.view(layout.num_features, -1, weight.shape[1]).transpose(0, 1)


def _scatter(weight: Tensor, ids: Tensor, offsets: Tensor, scale: Tensor | None, layout: RowLayout) -> Tensor:
    """Return the pooled rows by adding each value's row to its bag: in ONNX, embedding_bag is a loop over bags."""
    rows, bag = layout.rows_and_bags(ids, offsets)
    assert bag is not None
    values = F.embedding(rows, weight) if scale is None else F.embedding(rows, weight) * scale[:, None]
    batch = (offsets.shape[0] - 1) // layout.num_features
    feature = bag // batch
    out = torch.zeros(batch, layout.num_features, weight.shape[1], dtype=weight.dtype, device=weight.device)
    return out.index_put((bag - feature * batch, feature), values, accumulate=True)


def weight_gradient(weight: Tensor, ids: Tensor, offsets: Tensor | None, bags: Tensor, layout: RowLayout) -> Tensor:
    """Return the gradient of the value weights: N inner products <bag's gradient, row>; 0 for unweighted features."""
    if kernels := rowkernels.available(weight, ids):
        return kernels.weight_gradient(weight, ids, offsets, bags, layout)
    rows, bag = layout.rows_and_bags(ids, offsets)
    flat = bags.transpose(0, 1).reshape(-1, bags.shape[-1])
    gradients = flat if bag is None else flat.index_select(0, bag)
    products = (gradients * weight.detach().index_select(0, rows)).sum(1)
    return torch.where(layout.per_value("weighted_mask", ids, offsets), products, 0.0)


# The parameters that have row gradients


def row_gradients(parameter: Tensor) -> list[RowGradient]:
    """Return the list of row gradients that `parameter` holds, giving it an empty one the first time."""
    return parameter.__dict__.setdefault("row_gradients", [])


def is_row_parameter(parameter: Tensor) -> bool:
    """Whether `parameter` takes row gradients instead of `.grad`."""
    return "row_gradients" in parameter.__dict__


def row_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (name, parameter) for each parameter in `module` that takes row gradients.

    A submodule declares them by an attribute `row_parameter_names`. DistributedDataParallel must ignore them:

        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(m, [n for n, _ in row_parameters(m)])
    """
    seen: set[nn.Parameter] = set()
    for prefix, child in module.named_modules():
        names: Sequence[str] = getattr(child, "row_parameter_names", ())
        for name in names:
            parameter = child.get_parameter(name)
            if parameter not in seen:
                seen.add(parameter)
                row_gradients(parameter)
                yield f"{prefix}.{name}" if prefix else name, parameter
