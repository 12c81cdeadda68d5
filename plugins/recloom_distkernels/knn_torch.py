"""The torch engine, for CPUs without a compiler and for GPUs."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from recloom_distkernels.knn import KnnEngine


class TorchKnn(KnnEngine):
    """Distances by torch.cdist without matrix products, then the k least; in blocks of bounded memory.

    Args:
        block: Distances held at a time.
    """

    def __init__(self, block: int = 1 << 24) -> None:
        self.block = block

    @torch.no_grad()
    def search(self, queries: Tensor, targets: Tensor, bounds: Tensor, k: int, first: int | None = None) -> Tensor:
        """Return T x k x N squared distances; see KnnEngine."""
        out = queries.new_full((len(bounds) - 1, k, len(queries)), torch.inf)
        for index, (lo, hi) in enumerate(itertools.pairwise(bounds.tolist())):
            rows = max(1, self.block // max(hi - lo, 1))
            for start in range(0, len(queries), rows):
                part = queries[start : start + rows]
                distances = torch.cdist(part, targets[lo:hi], compute_mode="donot_use_mm_for_euclid_dist")
                if first is not None:
                    exclude_own(distances, first + start - lo)
                found = distances.topk(min(k, hi - lo), dim=1, largest=False).values
                out[index, : found.shape[1], start : start + rows] = found.square().t()
        return out


def exclude_own(distances: Tensor, column: int) -> None:
    """Set the distance of row q to column `column` + q, its own place, to infinity, where there is such a column."""
    start, end = max(0, -column), min(len(distances), distances.shape[1] - column)
    rows = torch.arange(start, max(start, end), device=distances.device)
    distances[rows, rows + column] = torch.inf
