"""The contracts of divergences between sets of points, and what k-NN estimators are given.

Letters: S sets (of N points together) are held against T target sets; X_i is one of n points of a set, Y a target set
of m points; rho is the distance from X_i to its k-th neighbour in its own set without itself, nu to its k-th in Y.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recloom_distkernels.samplesets import SampleSets

Progress = Callable[[float], None]
"""Called with the share that is done."""


class Divergence(ABC):  # noqa: B024
    """How far apart the distributions of two sets of points are, or how near.

    Another plugin adds its own by `catalog.kernels.add("Mine", "package.module:Mine")` and a subclass of SetDivergence
    or NeighbourDivergence; it is then used by name, as in `--div mine:0.5`.
    """

    similarity: bool = False
    """Whether larger values mean nearer sets."""
    symmetric: bool = False
    """Whether the values of (x, y) and (y, x) are equal by construction."""

    def fit(self, sets: SampleSets) -> Divergence:
        """Return the divergence with what it takes from the training sets (a bandwidth) settled."""
        return self


class SetDivergence(Divergence):
    """A divergence that is computed from whole sets, without neighbours."""

    @abstractmethod
    def matrix(self, x: SampleSets, y: SampleSets, progress: Progress | None = None) -> Tensor:
        """Return S x T values, float64."""


@dataclass(frozen=True)
class Directed:
    """What a NeighbourDivergence finds from S sets x towards T sets y.

    Args:
        cross: S x T statistics.
        own_x: S statistics of the sets x alone.
        own_y: T statistics of the sets y alone.
        n: S sizes of the sets x, float64.
        m: T sizes of the sets y, float64.
        dim: Dimension of the points.
        k: The neighbour.
        same: Whether x and y are the same sets, in the same order: the diagonal holds each set against itself.
    """

    cross: Tensor
    own_x: Tensor
    own_y: Tensor
    n: Tensor
    m: Tensor
    dim: int
    k: int
    same: bool

    def with_diagonal(self, values: Tensor, of_itself: Tensor | float) -> Tensor:
        """Return `values`, with what a set has against itself on the diagonal if x and y are the same."""
        if self.same:
            values = values.clone()
            values.diagonal().copy_(torch.as_tensor(of_itself, dtype=values.dtype).expand(len(values)))
        return values


class NeighbourDivergence(Divergence):
    """A divergence that is estimated from distances to k-th neighbours.

    `statistic` is called for every part of a run, and averages over the points of each set; `values` makes the
    divergences of all pairs of those averages at the end. One search serves all divergences and all k.
    """

    two_sided: bool = True
    """Whether `values` needs the statistics from y towards x."""

    def ranks(self, k: int, n: Tensor, m: Tensor) -> tuple[int, int]:
        """Return how many neighbours are needed in a point's own set and in target sets, for sizes n and m."""
        return k, k

    def own(self, part: Part) -> Tensor:
        """Return S statistics of the sets alone, of part.log_rho."""
        return torch.zeros(len(part.n), dtype=torch.float64)

    @abstractmethod
    def statistic(self, part: Part) -> Tensor:
        """Return T x S statistics of the sets against the target sets, of part.log_nu and part.log_rho."""

    @abstractmethod
    def values(self, there: Directed, back: Directed) -> Tensor:
        """Return S x T divergences of x from y, given the statistics from x towards y and from y towards x."""


class LogDistances:
    """Logarithms of distances to neighbours, made of squared distances rank by rank as they are asked for.

    Args:
        squared: T x K x N squared distances, ascending along K.
        floor: Logarithm of the least distance told apart from 0; smaller ones are raised to it.
    """

    def __init__(self, squared: Tensor, floor: float) -> None:
        self.squared, self.floor = squared, floor
        self._known: dict[int, Tensor] = {}

    def rank(self, k: int) -> Tensor:
        """Return T x N log distances to the k-th neighbour, float64."""
        if k not in self._known:
            self._known[k] = self._log(self.squared[:, k - 1])
        return self._known[k]

    def all(self) -> Tensor:
        """Return T x K x N log distances, float64."""
        return self._log(self.squared)

    def _log(self, squared: Tensor) -> Tensor:
        return torch.log(squared.double()).mul_(0.5).clamp_(min=self.floor)


class Part:
    """Distances of some sets against some target sets, and averages over the points of each set.

    Args:
        dim: Dimension of the points.
        k: The neighbour asked for.
        n: S sizes of the sets, int64.
        m: T sizes of the target sets, int64.
        rho: 1 x K x N distances in the own sets.
        nu: T x K x N distances in the target sets.
    """

    def __init__(self, dim: int, k: int, n: Tensor, m: Tensor, rho: LogDistances, nu: LogDistances) -> None:
        self.dim, self.k, self.n, self.m = dim, k, n, m
        self.rho, self.nu = rho, nu
        self._starts = (n.cumsum(0) - n).numpy()

    @property
    def log_rho(self) -> Tensor:
        """1 x N log distances to the k-th neighbour in the own set, float64."""
        return self.rho.rank(self.k)

    @property
    def log_nu(self) -> Tensor:
        """T x N log distances to the k-th neighbour in the target sets, float64."""
        return self.nu.rank(self.k)

    def mean(self, terms: Tensor) -> Tensor:
        """Map T x N terms to their T x S means over the points of each set."""
        return self._sums(terms) / self.n

    def log_mean_exp(self, terms: Tensor) -> Tensor:
        """Map T x N terms to the logarithms of the T x S means of their exponentials, without overflow."""
        if terms.device.type == "cpu":
            most = torch.from_numpy(np.maximum.reduceat(terms.numpy(), self._starts, axis=1))
        else:
            lengths = self.n.to(terms.device)
            most = torch.segment_reduce(terms.t().contiguous(), "max", lengths=lengths).t()
        spread = torch.repeat_interleave(most, self.n.to(terms.device), dim=1, output_size=terms.shape[1])
        return most.cpu() + (self._sums((terms - spread).exp_()) / self.n).log()

    def _sums(self, terms: Tensor) -> Tensor:
        if terms.device.type == "cpu":
            return torch.from_numpy(np.add.reduceat(terms.numpy(), self._starts, axis=1))
        return torch.segment_reduce(terms.t().contiguous(), "sum", lengths=self.n.to(terms.device)).t().cpu()


def safe_sqrt(values: Tensor) -> Tensor:
    """Return square roots, 0 of what is not positive, with the gradient 0 there."""
    positive = values > 0
    return torch.where(positive, values, 1.0).sqrt() * positive


def log_ball_volume(dim: int) -> float:
    """Return log c_d, the logarithm of the volume of the unit ball in d dimensions."""
    return dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1)
