"""TGN's decoder of every event with every destination: two linear layers and a ReLU; the first one is shared."""

from __future__ import annotations

from ctypes import c_int, c_int64
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from recloom_edge.kernels import address, library

LANES = 16


def pair_scores(left: Tensor, right: Tensor, weight: Tensor) -> Tensor:
    """Return n x M values Σ_k weight[k] relu(left[i, k] + right[j, k]), from n x d and M x d."""
    if left.device.type == "cpu" and left.dtype == torch.float32 and library("pairs") is not None:
        return _Pairs.apply(left, right, weight)  # type: ignore[no-any-return, no-untyped-call]
    return torch.cat([torch.relu(part[:, None] + right) @ weight for part in left.split(20)])


class _Pairs(torch.autograd.Function):
    """What pairs.c does; nothing of the size n x M x d is kept."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, weight: Tensor) -> Tensor:
        """Return n x M."""
        left, turned = left.contiguous(), F.pad(right.t(), (0, -len(right) % LANES)).contiguous()
        out = left.new_empty(len(left), turned.shape[1])
        _call("edge_pairs", left, turned, weight.contiguous(), out)
        ctx.save_for_backward(left, turned, weight)
        ctx.count = len(right)
        return out[:, : len(right)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of left, right and weight."""
        left, turned, weight = ctx.saved_tensors
        given = F.pad(gradient, (0, turned.shape[1] - ctx.count)).contiguous()
        by_left, by_right = torch.empty_like(left), torch.zeros_like(turned)
        _call("edge_pairs_backward", left, turned, given, by_left, by_right)
        d_weight = (left * by_left).sum(0) + (turned * by_right).sum(1)
        return by_left * weight, (by_right.t() * weight)[: ctx.count], d_weight


def _call(name: str, left: Tensor, turned: Tensor, *others: Tensor) -> None:
    compiled = library("pairs")
    assert compiled is not None
    sizes = map(c_int64, (len(left), turned.shape[1], left.shape[1]))
    getattr(compiled, name)(*sizes, *map(address, (left, turned, *others)), c_int(torch.get_num_threads()))
