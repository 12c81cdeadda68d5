"""Kernels on divergences and similarities of sets: what turns them into a Gram matrix."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from recloom.errors import RecloomError


class Kernel(ABC):
    """Maps divergences (or similarities) to kernel values, elementwise.

    `symmetrized` follows the authors: kernelise, then K := (K + K') / 2, as a divergence need not be symmetric.
    """

    def fit(self, values: Tensor) -> Kernel:
        """Return the kernel with what it takes from the training sets' S x S values (a bandwidth) settled."""
        return self

    @abstractmethod
    def __call__(self, values: Tensor) -> Tensor:
        """Return kernel values of the same shape."""

    def symmetrized(self, there: Tensor, back: Tensor) -> Tensor:
        """Return the S x T kernel values of S x T divergences and the T x S ones of the other direction."""
        return (self(there) + self(back).t()) / 2


class LinearKernel(Kernel):
    """The similarity itself."""

    def __call__(self, values: Tensor) -> Tensor:
        """Return `values`."""
        return values


class PolynomialKernel(Kernel):
    """(similarity + c)^s.

    Args:
        degree: The degree s.
        offset: The offset c.
    """

    def __init__(self, degree: int = 3, offset: float = 1.0) -> None:
        self.degree, self.offset = degree, offset

    def __call__(self, values: Tensor) -> Tensor:
        """Return kernel values."""
        return (values + self.offset) ** self.degree


class GaussianKernel(Kernel):
    """exp(-D² / (2 σ²)), σ = `scale` times the median of the training sets' positive divergences.

    Args:
        scale: Factor of the median.
        sigma: The bandwidth itself, instead of the median rule.
    """

    def __init__(self, scale: float = 1.0, sigma: float = 0.0) -> None:
        if scale <= 0 or sigma < 0:
            raise RecloomError(f"a Gaussian kernel with scale {scale} and sigma {sigma}", "Both are positive.")
        self.scale, self.sigma = scale, sigma

    def fit(self, values: Tensor) -> GaussianKernel:
        """Return a copy with the bandwidth settled."""
        fitted = copy.copy(self)
        if not self.sigma:
            fitted.sigma = self.scale * median_positive(values)
        return fitted

    def __call__(self, values: Tensor) -> Tensor:
        """Return kernel values."""
        if not self.sigma:
            raise RecloomError("the Gaussian kernel has no bandwidth yet", "Call fit first, or give sigma.")
        return torch.exp(-values.square() / (2 * self.sigma**2))


def median_positive(values: Tensor) -> float:
    """Return the median of the positive values, 1 if there is none (all sets alike, or a single one)."""
    positive = values[values > 0]
    return float(positive.median()) if len(positive) else 1.0
