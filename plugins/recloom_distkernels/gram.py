"""Gram matrices of sets: divergence, kernel and PSD repair put together, for training sets and for further ones."""

from __future__ import annotations

import warnings
from typing import Self

import numpy as np
import torch
from torch import Tensor

from recloom.errors import RecloomError
from recloom_distkernels.divergence import Divergence, Progress
from recloom_distkernels.kernels import GaussianKernel, Kernel
from recloom_distkernels.knn import KnnEngine
from recloom_distkernels.pairwise import pairwise_divergences
from recloom_distkernels.psd import PSDRepair
from recloom_distkernels.registry import parse
from recloom_distkernels.samplesets import SampleSets

DUPLICATES = 0.01  # share of clamped distances from which on to warn


class DuplicateWarning(UserWarning):
    """Many points coincide, where k-NN divergences assume densities."""


class SetGram:
    """The kernel matrix of training sets, and rows of further sets against them.

    After `fit`: `sets_`, `values_` (their S x S divergences, float64), `clamped_` (share of neighbour distances raised
    to the least one told apart from 0).

    Args:
        divergence: A divergence or similarity, or its name ("renyi:0.8").
        kernel: A kernel, or its name ("gaussian", "polynomial:3:1", "linear").
        psd: A PSD repair, or its name ("clip", "flip", "shift", "square", "no").
        k: The neighbour of k-NN divergences.
        engine: A k-NN engine, its name, or "auto".
    """

    def __init__(
        self,
        divergence: str | Divergence = "renyi:0.8",
        kernel: str | Kernel = "gaussian",
        psd: str | PSDRepair = "clip",
        k: int = 3,
        engine: str | KnnEngine = "auto",
    ) -> None:
        if k < 1:
            raise RecloomError(f"there is no neighbour {k}", "Take k of at least 1; 3 is usual.")
        self.divergence = parse(divergence, Divergence)
        self.kernel = parse(kernel, Kernel)
        self.psd = parse(psd, PSDRepair)
        self.k = k
        self.engine = None if engine == "auto" else parse(engine, KnnEngine)
        check_match(self.divergence, self.kernel)

    def fit(self, sets: SampleSets, progress: Progress | None = None) -> Self:
        """Compute the divergences of the training sets, and make and repair their kernel matrix."""
        return self.fit_values(self.measure(sets, progress))

    def measure(self, sets: SampleSets, progress: Progress | None = None) -> Tensor:
        """Return the S x S divergences of the training sets, which are kept for `rows`; no kernel is made of them."""
        divergence = self.divergence.fit(sets)
        found = pairwise_divergences(sets, None, [divergence], [self.k], self.engine, progress=progress)
        self.fitted_, self.sets_, self.floor_, self.clamped_ = divergence, sets, found.floor, found.clamped
        if self.clamped_ > DUPLICATES:
            warnings.warn(
                f"{self.clamped_:.1%} of the neighbours coincide with their point, where {type(divergence).__name__} "
                "assumes densities: take a larger k, add noise to rounded coordinates, or use MMD",
                DuplicateWarning,
                stacklevel=2,
            )
        (values,) = found.there.values()
        return values

    def fit_values(self, values: Tensor) -> Self:
        """Make and repair the kernel matrix of S x S divergences (S x S of x_i from x_j) that are there already."""
        self.values_ = values
        self.kernel_ = self.kernel.fit(values)
        self.psd.fit(self.kernel_.symmetrized(values, values).numpy())
        return self

    def matrix(self) -> np.ndarray:
        """Return the S x S repaired kernel matrix of the training sets."""
        return self.psd.matrix()

    def rows(self, sets: SampleSets, progress: Progress | None = None) -> np.ndarray:
        """Return R x S kernel values of further sets with the training sets, repaired as these were."""
        found = pairwise_divergences(
            sets, self.sets_, [self.fitted_], [self.k], self.engine, self.floor_, progress=progress
        )
        (there,), (back,) = found.there.values(), found.back.values()
        return self.rows_of_values(there, back)

    def rows_of_values(self, there: Tensor, back: Tensor) -> np.ndarray:
        """Return R x S kernel values, given divergences of the further sets from the training sets, and back.

        Args:
            there: R x S divergences.
            back: S x R divergences.
        """
        return self.psd.transform(self.kernel_.symmetrized(there, back).numpy())


def check_match(divergence: Divergence, kernel: Kernel) -> None:
    """Raise RecloomError if a Gaussian kernel gets a similarity, or another kernel a divergence."""
    name, kind = type(divergence).__name__, type(kernel).__name__
    if isinstance(kernel, GaussianKernel) and divergence.similarity:
        raise RecloomError(f"{kind} takes distances, and {name} is a similarity", "Use linear or polynomial.")
    if kind in ("LinearKernel", "PolynomialKernel") and not divergence.similarity:
        raise RecloomError(f"{kind} takes similarities, and {name} is a distance", "Use gaussian.")


def stack(train: SampleSets, test: SampleSets) -> SampleSets:
    """Return the sets of both, for a transductive Gram matrix: kernelised and repaired together."""
    offsets = torch.cat([train.offsets, test.offsets[1:] + train.points])
    return SampleSets(torch.cat([train.values, test.values]), offsets, [*train.names, *test.names])
