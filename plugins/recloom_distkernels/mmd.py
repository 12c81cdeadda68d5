"""Maximum mean discrepancy and its mean map, with an RBF kernel on points (Gretton et al. 2012)."""

from __future__ import annotations

import copy
import math
from typing import Self

import numpy as np
import torch
from torch import Tensor

from recloom.errors import RecloomError
from recloom_distkernels.divergence import Progress, SetDivergence
from recloom_distkernels.samplesets import SampleSets

_SAMPLE = 1000


def median_distance(sets: SampleSets, seed: int = 0) -> float:
    """Return the median distance between points of all sets, from at most 1,000 of them."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(sets.points, generator=generator)[:_SAMPLE].to(sets.values.device)
    points = sets.values[rows].detach().double()
    distances = torch.nn.functional.pdist(points - points.mean(0))
    found = float(distances.median()) if len(distances) else 0.0
    return found if found > 0 else float(distances.mean()) if len(distances) and distances.mean() > 0 else 1.0


class MeanMap(SetDivergence):
    """Inner product of the sets' RBF mean embeddings, a similarity: mean over pairs of exp(-|x-y|² / 2σ²).

    Args:
        sigma: The bandwidth σ; 0: the median distance between points of the training sets.
    """

    similarity = True
    symmetric = True

    def __init__(self, sigma: float = 0.0) -> None:
        if sigma < 0:
            raise RecloomError(f"sigma {sigma} is negative", "Give a positive one, or 0 for the median rule.")
        self.sigma = sigma

    def fit(self, sets: SampleSets) -> Self:
        """Return a copy with the bandwidth settled."""
        fitted = copy.copy(self)
        fitted.sigma = self.sigma or median_distance(sets)
        return fitted

    def matrix(self, x: SampleSets, y: SampleSets, progress: Progress | None = None) -> Tensor:
        """Return S x T means, float64."""
        return self._sums(x, y, progress) / (x.sizes[:, None] * y.sizes)

    def _sums(self, x: SampleSets, y: SampleSets, progress: Progress | None = None) -> Tensor:
        """Return S x T sums over all pairs of points; half of them are computed if x is y."""
        if not self.sigma:
            return self.fit(x)._sums(x, y, progress)
        found = torch.zeros(len(x), len(y), dtype=torch.float64)
        a, b = self._scaled(x), self._scaled(y)
        bounds = x.offsets.tolist()
        for i in range(len(x)):
            first = i if x is y else 0
            start = int(y.offsets[first])
            sums = _column_sums(a[bounds[i] : bounds[i + 1]], b[start:]).cpu().numpy()
            found[i, first:] = torch.from_numpy(np.add.reduceat(sums, (y.offsets[first:-1] - start).numpy()))
            if progress:
                progress((i + 1) / len(x))
        return torch.triu(found) + torch.triu(found, 1).t() if x is y else found

    def _own(self, sets: SampleSets) -> Tensor:
        """Return the S sums over the pairs of points of each set."""
        each = self._scaled(sets).split(sets.sizes.tolist())
        return torch.stack([_column_sums(points, points).sum() for points in each]).cpu()

    def _scaled(self, sets: SampleSets) -> Tensor:
        return sets.values.detach() / (math.sqrt(2) * self.sigma)


def _column_sums(a: Tensor, b: Tensor) -> Tensor:
    """Return the M sums over N points a of exp(-|a-b|²), float64."""
    distances = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.square_().neg_().exp_().sum(dim=0, dtype=torch.float64)


class MMD(MeanMap):
    """Maximum mean discrepancy: the distance of RBF mean embeddings; 0 where its square is estimated below.

    Args:
        sigma: The bandwidth σ of exp(-|x-y|² / 2σ²); 0: the median distance between points of the training sets.
        unbiased: Leave a point's pair with itself out (the U-statistic); else the V-statistic, which is a metric.
    """

    similarity = False

    def __init__(self, sigma: float = 0.0, unbiased: bool = False) -> None:
        super().__init__(sigma)
        self.unbiased = unbiased

    def matrix(self, x: SampleSets, y: SampleSets, progress: Progress | None = None) -> Tensor:
        """Return S x T distances, float64."""
        return self.squared(x, y, progress).clamp(min=0).sqrt()

    def squared(self, x: SampleSets, y: SampleSets, progress: Progress | None = None) -> Tensor:
        """Return S x T estimates of the squared MMD (the whole of it, not half), float64."""
        if not self.sigma:
            return self.fit(x).squared(x, y, progress)
        sums = self._sums(x, y, progress)
        cross = sums / (x.sizes[:, None] * y.sizes)
        own_x = self._square(sums.diagonal() if x is y else self._own(x), x)
        own_y = own_x if x is y else self._square(self._own(y), y)
        found = own_x[:, None] + own_y - 2 * cross
        return found.fill_diagonal_(0.0) if x is y else found

    def _square(self, sums: Tensor, sets: SampleSets) -> Tensor:
        n = sets.sizes.double()
        if not self.unbiased:
            return sums / n.square()
        sets.check_neighbours(1, own=True)
        return (sums - n) / (n * (n - 1))
