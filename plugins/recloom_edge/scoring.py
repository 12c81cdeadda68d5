"""Scores of all candidates for each event of a window, with the candidates' states as they are at that event."""

from __future__ import annotations

from ctypes import c_int64
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recloom_edge.kernels import address, library
from recloom_edge.plain import newest_versions


class VersionScores(torch.autograd.Function):
    """out[e, j] = base[e, j] + scores[e, k], where k is the newest version of candidate j before event e.

    Of M candidates' versions, the first M are those of the window's start; then come those that events make, C each.
    """

    @staticmethod
    def forward(ctx: Any, base: Tensor, scores: Tensor, changed: Tensor) -> Tensor:
        """Return E x M sums.

        Args:
            ctx: Autograd's.
            base: E x M.
            scores: E x (M + E C).
            changed: E x C, int32: the candidate of which an event makes a version; -1: none.
        """
        ctx.save_for_backward(changed)
        ctx.shape = base.shape
        changed_cpu = changed.cpu()
        if base.device.type != "cpu" or library("events") is None:
            versions = newest_versions(changed_cpu, base.shape[1]).to(base.device)
            return base + scores.gather(1, versions)
        out = base.clone(memory_format=torch.contiguous_format)
        _call("edge_versions", changed, scores.contiguous(), out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of base and scores."""
        (changed,) = ctx.saved_tensors
        events, candidates = ctx.shape
        into = gradient.new_zeros(events, candidates + changed.numel())
        if gradient.device.type != "cpu" or library("events") is None:
            versions = newest_versions(changed.cpu(), candidates).to(gradient.device)
            return gradient, into.scatter_add_(1, versions, gradient), None
        _call("edge_versions_backward", changed, gradient.contiguous(), into)
        return gradient, into, None


def _call(name: str, changed: Tensor, given: Tensor, result: Tensor) -> None:
    columns = min(given.shape[1], result.shape[1])
    sizes = (len(changed), columns, changed.shape[1])
    newest = torch.empty(columns, dtype=torch.int32)
    compiled = library("events")
    assert compiled is not None
    getattr(compiled, name)(*map(c_int64, sizes), *map(address, (changed.contiguous(), newest, given, result)))


def time_features(gaps: Tensor, ticks: int) -> Tensor:
    """Return features of spans of time: ... x 7, for spans in ticks; -1 stands for "never" and gives zeros but one.

    The logarithm, and 1 / (1 + t / T) for T of a minute, an hour, a day, a week and a month; whether there is one.
    Spans are divided as 64-bit numbers: only the result is single precision.
    """
    known = gaps >= 0
    seconds = gaps.clamp(min=0).double() / ticks
    scales = torch.tensor([60.0, 3600.0, 86_400.0, 604_800.0, 2_592_000.0], dtype=torch.float64, device=gaps.device)
    parts = [torch.log1p(seconds)[..., None] / 10, 1 / (1 + seconds[..., None] / scales)]
    values = torch.cat(parts, dim=-1).masked_fill(~known[..., None], 0)
    return torch.cat([values, known[..., None].double()], dim=-1).float()


TIME_FEATURES = 7
