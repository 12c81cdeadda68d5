"""Sliced Wasserstein distance by quantiles of random projections (Bonneel et al. 2015)."""

from __future__ import annotations

import torch
from torch import Tensor

from recloom_distkernels.divergence import Progress, SetDivergence
from recloom_distkernels.samplesets import SampleSets


class SlicedWasserstein(SetDivergence):
    """Sliced 2-Wasserstein distance: root mean square, over random directions, of the 1-d distances.

    The 1-d distance is taken between quantile functions at evenly spaced levels. The distance is Euclidean between
    vectors of quantiles (`embed`), so that a Gaussian kernel on it needs no repair. Cost grows with N log n, not N².

    Args:
        projections: Number of directions.
        quantiles: Number of levels.
        seed: Seed of the directions.
    """

    symmetric = True

    def __init__(self, projections: int = 64, quantiles: int = 100, seed: int = 0) -> None:
        self.projections, self.quantiles, self.seed = projections, quantiles, seed

    def embed(self, sets: SampleSets, progress: Progress | None = None) -> Tensor:
        """Return S x (projections * quantiles) vectors, whose Euclidean distances are the sliced distances; float64."""
        generator = torch.Generator().manual_seed(self.seed)
        directions = torch.randn(sets.dim, self.projections, generator=generator, dtype=torch.float64)
        directions = (directions / directions.norm(dim=0)).to(sets.values)
        levels = (torch.arange(self.quantiles, dtype=torch.float64) + 0.5) / self.quantiles
        found = torch.empty(len(sets), self.projections * self.quantiles, dtype=torch.float64)
        for index, points in enumerate(sets):
            ordered = (points.detach() @ directions).sort(dim=0).values  # n x P
            places = (levels * len(points)).long().clamp(max=len(points) - 1)  # F^-1(u) = the ceil(n u)-th value
            found[index] = ordered[places.to(ordered.device)].t().flatten().double().cpu()
            if progress:
                progress((index + 1) / len(sets))
        return found / (self.projections * self.quantiles) ** 0.5

    def matrix(self, x: SampleSets, y: SampleSets, progress: Progress | None = None) -> Tensor:
        """Return S x T distances, float64."""
        a = self.embed(x, progress)
        b = a if x is y else self.embed(y)
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
