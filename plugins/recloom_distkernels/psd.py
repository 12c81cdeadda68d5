"""Repairs of indefinite Gram matrices, with what is to be done to rows of further sets (Chen et al. 2009)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import numpy as np


class PSDRepair(ABC):
    """Makes a symmetric matrix positive semidefinite through its eigenvalues.

    Rows of further sets get the linear transform that gives the training matrix itself its repair: K_test P.

    After `fit`: `eigenvalues_` of the S x S training matrix, ascending.
    """

    @abstractmethod
    def repaired(self, values: np.ndarray) -> np.ndarray:
        """Return the eigenvalues to have, for S ascending ones."""

    @abstractmethod
    def factors(self, values: np.ndarray) -> np.ndarray:
        """Return the eigenvalues of the linear transform P of further rows."""

    def fit(self, gram: np.ndarray) -> Self:
        """Decompose the S x S training matrix; what is not symmetric in it is averaged away."""
        self.eigenvalues_, self.vectors_ = np.linalg.eigh((gram + gram.T) / 2)
        return self

    def matrix(self) -> np.ndarray:
        """Return the repaired training matrix."""
        return (self.vectors_ * self.repaired(self.eigenvalues_)) @ self.vectors_.T

    def transform(self, rows: np.ndarray) -> np.ndarray:
        """Return R x S kernel values of further sets with the training sets, repaired."""
        return ((rows @ self.vectors_) * self.factors(self.eigenvalues_)) @ self.vectors_.T

    @property
    def negative_share(self) -> float:
        """Share of the training matrix's eigenvalues that are negative, beyond rounding."""
        least = -1e-12 * float(np.abs(self.eigenvalues_).max(initial=1e-300)) * len(self.eigenvalues_)
        return float((self.eigenvalues_ < least).mean())


class ClipPSD(PSDRepair):
    """Negative eigenvalues become 0: the nearest positive semidefinite matrix."""

    def repaired(self, values: np.ndarray) -> np.ndarray:
        """Return max(λ, 0)."""
        return np.maximum(values, 0)

    def factors(self, values: np.ndarray) -> np.ndarray:
        """Return 1 for positive eigenvalues, 0 for the others."""
        return (values > 0).astype(float)


class FlipPSD(PSDRepair):
    """Negative eigenvalues change sign."""

    def repaired(self, values: np.ndarray) -> np.ndarray:
        """Return |λ|."""
        return np.abs(values)

    def factors(self, values: np.ndarray) -> np.ndarray:
        """Return the signs."""
        return np.sign(values)


class ShiftPSD(PSDRepair):
    """All eigenvalues rise by as much as makes the least 0, if it is negative; further rows stay as they are."""

    def repaired(self, values: np.ndarray) -> np.ndarray:
        """Return λ - min(λ_1, 0)."""
        return values - min(values[0], 0.0)

    def factors(self, values: np.ndarray) -> np.ndarray:
        """Return ones."""
        return np.ones_like(values)


class SquarePSD(PSDRepair):
    """The matrix times itself: rows of the matrix are taken for features."""

    def repaired(self, values: np.ndarray) -> np.ndarray:
        """Return λ²."""
        return np.square(values)

    def factors(self, values: np.ndarray) -> np.ndarray:
        """Return λ."""
        return values


class NoPSD(PSDRepair):
    """The matrix as it is, for comparison; a support vector machine takes it without a word and is not convex then."""

    def repaired(self, values: np.ndarray) -> np.ndarray:
        """Return λ."""
        return values

    def factors(self, values: np.ndarray) -> np.ndarray:
        """Return ones."""
        return np.ones_like(values)
