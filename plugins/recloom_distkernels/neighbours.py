"""Divergences of the alpha family by k-NN: estimators of ∫ p^α q^(1-α) and of KL, all in log space.

The estimator is that of Poczos and Schneider (AISTATS 2011), in the form of the authors' skl-groups and of ITE:
∫ p^α q^(1-α) ~ B ((n-1)/m)^(1-α) mean((rho/nu)^(d(1-α))), B = Γ(k)² / (Γ(k+1-α) Γ(k-1+α)).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recloom.errors import RecloomError
from recloom_distkernels.divergence import Directed, NeighbourDivergence, Part, safe_sqrt

_LEAST = math.log(2.0**-52)  # of the integral, which can be estimated as 0: the floor of skl-groups


class KL(NeighbourDivergence):
    """Kullback-Leibler divergence ∫ p log(p/q): d mean(log nu - log rho) + log(m/(n-1)).

    Wang, Kulkarni and Verdu 2009, eq. (5).

    Args:
        clamp: Raise negative estimates to 0.
    """

    two_sided = False

    def __init__(self, clamp: bool = True) -> None:
        self.clamp = clamp

    def statistic(self, part: Part) -> Tensor:
        """Return T x S means of log nu - log rho."""
        return part.mean(part.log_nu - part.log_rho)

    def values(self, there: Directed, back: Directed) -> Tensor:
        """Return S x T divergences."""
        found = there.dim * there.cross + (there.m / (there.n[:, None] - 1.0)).log()
        found = found.clamp(min=0) if self.clamp else found
        return there.with_diagonal(found, 0.0)


class AlphaDivergence(NeighbourDivergence):
    """What divergences made of ∫ p^α q^(1-α) have in common.

    Args:
        alpha: The exponent α; not 1.
        clamp: Keep estimates in the divergence's range.
    """

    two_sided = False

    def __init__(self, alpha: float = 0.8, clamp: bool = True) -> None:
        if alpha == 1:
            raise RecloomError("alpha 1 is the limit, KL", "Use kl.")
        self.alpha = alpha
        self.clamp = clamp

    def statistic(self, part: Part) -> Tensor:
        """Return T x S logarithms of mean((rho/nu)^(d(1-α)))."""
        return part.log_mean_exp((part.log_rho - part.log_nu).mul_(part.dim * (1 - self.alpha)))

    def log_integral(self, there: Directed) -> Tensor:
        """Return S x T estimates of log ∫ p^α q^(1-α); 0 for a set against itself."""
        a, k = self.alpha, there.k
        if k <= max(a - 1, 1 - a):
            raise RecloomError(f"alpha {a} needs more than {k} neighbours", f"Take k > {abs(1 - a)}.")
        log_b = 2 * math.lgamma(k) - math.lgamma(k + 1 - a) - math.lgamma(k - 1 + a)
        sizes = ((there.n[:, None] - 1.0) / there.m).log()
        return there.with_diagonal(log_b + (1 - a) * sizes + there.cross, 0.0)


class Renyi(AlphaDivergence):
    """Rényi-α divergence: log ∫ p^α q^(1-α) / (α - 1).

    Args:
        alpha: The exponent α; not 1, whose limit is KL.
        clamp: Raise negative estimates to 0.
    """

    def values(self, there: Directed, back: Directed) -> Tensor:
        """Return S x T divergences."""
        found = self.log_integral(there).clamp(min=_LEAST) / (self.alpha - 1) + 0.0  # no -0
        return found.clamp(min=0) if self.clamp else found


class Tsallis(AlphaDivergence):
    """Tsallis-α divergence: (∫ p^α q^(1-α) - 1) / (α - 1).

    Args:
        alpha: The exponent α; not 1.
        clamp: Raise negative estimates to 0.
    """

    def values(self, there: Directed, back: Directed) -> Tensor:
        """Return S x T divergences."""
        found = torch.expm1(self.log_integral(there)) / (self.alpha - 1) + 0.0
        return found.clamp(min=0) if self.clamp else found


class Bhattacharyya(AlphaDivergence):
    """Bhattacharyya coefficient ∫ sqrt(p q), a similarity of at most 1.

    Args:
        clamp: Lower estimates above 1 to 1.
    """

    similarity = True

    def __init__(self, clamp: bool = True) -> None:
        super().__init__(0.5, clamp)

    def values(self, there: Directed, back: Directed) -> Tensor:
        """Return S x T coefficients."""
        found = self.log_integral(there).exp()
        return found.clamp(max=1) if self.clamp else found


class Hellinger(Bhattacharyya):
    """Hellinger distance: sqrt(1 - ∫ sqrt(p q)), 0 where the integral is estimated above 1."""

    similarity = False

    def __init__(self) -> None:
        super().__init__(True)

    def values(self, there: Directed, back: Directed) -> Tensor:
        """Return S x T distances."""
        return safe_sqrt(1 - super().values(there, back))
