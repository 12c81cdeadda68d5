"""Updates of the touched rows of a weight from its row gradients: SGD, Adagrad by row, Adagrad by element.

Adagrad adds up a row's gradients over all its occurrences first, as the reference's RWSAdagrad and FBGEMM's
"exact" optimizers do: g = sum of the row's gradients, s += mean_d(g^2) (by row) or g^2 (by element),
w -= lr g / (sqrt(s) + eps). On CPU the native kernels do it, the same bits for any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from recloom import rowkernels
from recloom.rowgrad import RowGradient


def new_state(weight: Tensor, rule: str) -> dict[str, Tensor]:
    """Return the optimizer state of `weight`: {} for sgd, {"sum": R zeros} by row, {"sum": R x D zeros} by element."""
    if rule == "sgd":
        return {}
    state = torch.empty(weight.shape[: 1 if rule == "rowwise_adagrad" else 2], device=weight.device)
    rowkernels.advise_huge_pages(state)
    return {"sum": state.zero_()}


@torch.no_grad()
def apply(
    weight: Tensor, state: dict[str, Tensor], gradients: Sequence[RowGradient], rule: str, lr: float, eps: float
) -> None:
    """Apply `gradients` to `weight`, R x D, and to `state`, in place.

    Args:
        weight: The rows.
        state: As `new_state` returned it.
        gradients: All gradients since the last update; their sum counts.
        rule: "sgd", "rowwise_adagrad" or "adagrad".
        lr: Learning rate.
        eps: Added to the root of Adagrad's state.
    """
    gradients = [g for g in gradients if len(g.ids)]
    if not gradients:
        return
    if engine := gradients[0].engine:
        engine.update(weight, state, gradients, rule, lr, eps)
        return
    if kernels := rowkernels.available(weight, gradients[0].ids):
        kernels.update(weight, state.get("sum"), gradients, rule, lr, eps)
        return
    expanded = [g.expand() for g in gradients]
    rows, values = torch.cat([e[0] for e in expanded]), torch.cat([e[1] for e in expanded])
    if rule == "sgd":
        weight.index_add_(0, rows, values, alpha=-lr)
        return
    touched, inverse = rows.unique(return_inverse=True)
    gradient = torch.zeros(len(touched), weight.shape[1], device=weight.device).index_add_(0, inverse, values)
    square = gradient.square()
    sums = state["sum"]
    sums[touched] += square.mean(1) if rule == "rowwise_adagrad" else square
    scale = lr / (sums[touched].sqrt() + eps)
    weight[touched] -= gradient * (scale[:, None] if rule == "rowwise_adagrad" else scale)


def gather_over_ranks(gradients: Sequence[RowGradient]) -> list[RowGradient]:
    """Return the gradients of all ranks, divided by their number: what each replica of a weight must apply.

    Every rank must call it with the same number of gradients (they have made the same number of backward passes);
    batch sizes may differ.
    """
    return [part for gradient in gradients for part in _gather(gradient)]


def _gather(gradient: RowGradient) -> list[RowGradient]:
    world, device = dist.get_world_size(), gradient.ids.device
    sizes = torch.tensor([len(gradient.ids), gradient.bags.shape[0]], device=device)
    counts = _all_gather(sizes, 2).tolist()
    values, rows = max(c[0] for c in counts), max(c[1] for c in counts)
    features = gradient.layout.num_features
    ids = _all_gather(gradient.ids, values)
    bags = _all_gather(gradient.bags / world, rows)
    offsets = None if gradient.offsets is None else _all_gather(gradient.offsets, features * rows + 1)
    weights = None if gradient.weights is None else _all_gather(gradient.weights.detach(), values)
    return [
        RowGradient(
            gradient.layout,
            ids[rank, :n],
            None if offsets is None else offsets[rank, : features * b + 1],
            None if weights is None else weights[rank, :n],
            bags[rank, :b],
            gradient.engine,
        )
        for rank, (n, b) in enumerate(counts)
    ]


def _all_gather(tensor: Tensor, length: int) -> Tensor:
    """Return world x length x ...: every rank's tensor, padded at the end to `length`."""
    padded = tensor.new_zeros(length, *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    out = padded.new_empty(dist.get_world_size(), *padded.shape)
    dist.all_gather(list(out.unbind(0)), padded)
    return out
