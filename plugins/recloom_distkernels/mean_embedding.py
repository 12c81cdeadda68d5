"""Random Fourier mean embeddings (Rahimi and Recht 2007; Muandet et al. 2012): a vector a set, in linear time."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from recloom.errors import RecloomError
from recloom_distkernels.inputs import as_sets
from recloom_distkernels.mmd import median_distance
from recloom_distkernels.samplesets import SampleSets

_BLOCK = 1 << 22  # values of features held at a time


class MeanEmbedding(TransformerMixin, BaseEstimator):
    """Maps each set to the mean of its points' random Fourier features.

    Inner products of the vectors approximate those of the sets' RBF mean embeddings, with an error of order
    1/sqrt(features); a linear model on them is a kernel machine that scales to any number of sets. It takes sets of any
    size, and duplicates.

    Args:
        features: Width of the vectors; rounded up to an even number (a sine and a cosine each).
        sigma: Bandwidth of the RBF kernel on points; 0: `scale` times the median distance between training points.
        scale: Factor of the median.
        random_state: Seed of the frequencies.
    """

    def __init__(
        self, features: int = 500, sigma: float = 0.0, scale: float = 1.0, random_state: int | None = 0
    ) -> None:
        self.features = features
        self.sigma = sigma
        self.scale = scale
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Draw the frequencies and, if `sigma` is 0, settle the bandwidth by the sets X."""
        if self.features < 1 or self.sigma < 0 or self.scale <= 0:
            raise RecloomError(
                f"{self.features} features with sigma {self.sigma} and scale {self.scale}", "They are positive."
            )
        sets = as_sets(self, X, reset=True)
        self.sigma_ = self.sigma or self.scale * median_distance(sets)
        random = check_random_state(self.random_state)
        self.frequencies_ = random.standard_normal((sets.dim, -(-self.features // 2))) / self.sigma_
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return S x features vectors."""
        check_is_fitted(self)
        sets = as_sets(self, X, reset=False)
        return fourier_means(sets, torch.from_numpy(self.frequencies_).to(sets.values)).numpy()

    @property
    def _n_features_out(self) -> int:
        return 2 * self.frequencies_.shape[1]


def fourier_means(sets: SampleSets, frequencies: Tensor) -> Tensor:
    """Return S x 2F means of [cos(x W), sin(x W)] / sqrt(F), whose inner products approximate the mean map's.

    Args:
        sets: S sets of d-dimensional points.
        frequencies: W, d x F.
    """
    count = frequencies.shape[1]
    found = torch.empty(len(sets), 2 * count, dtype=frequencies.dtype)
    bounds = sets.offsets.tolist()
    rows = max(1, _BLOCK // count)
    start = 0
    while start < len(sets):
        end = start + 1
        while end < len(sets) and bounds[end + 1] - bounds[start] <= rows:
            end += 1
        points = sets.values[bounds[start] : bounds[end]].detach()
        sums = torch.zeros(end - start, 2 * count, dtype=found.dtype)
        for lo in range(0, len(points), rows):  # a set may be larger than a block
            lengths = (sets.offsets[start : end + 1] - bounds[start]).clamp(lo, lo + rows).diff()
            angles = points[lo : lo + rows] @ frequencies
            for half, wave in enumerate((angles.cos(), angles.sin())):
                part = torch.segment_reduce(wave, "sum", lengths=lengths.to(wave.device), axis=0, unsafe=True)
                sums[:, half * count : (half + 1) * count] += part.cpu()
        found[start:end] = sums / sets.sizes[start:end, None].to(sums)
        start = end
    return found / count**0.5
