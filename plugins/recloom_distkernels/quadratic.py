"""Inner products of densities by k-NN: ∫ p q and the L2 distance, as in the authors' skl-groups."""

from __future__ import annotations

import math

from torch import Tensor

from recloom.errors import RecloomError
from recloom_distkernels.divergence import Directed, NeighbourDivergence, Part, log_ball_volume, safe_sqrt


class Linear(NeighbourDivergence):
    """Inner product ∫ p q, a similarity: (k-1)/(c_d m) mean(nu^-d); ∫ p² of itself: (k-1)/(c_d (n-1)) mean(rho^-d).

    It needs k of at least 2, and has a finite variance from 3 on.
    """

    similarity = True
    two_sided = False

    def own(self, part: Part) -> Tensor:
        """Return S logarithms of mean(rho^-d)."""
        return part.log_mean_exp(-part.dim * part.log_rho)[0]

    def statistic(self, part: Part) -> Tensor:
        """Return T x S logarithms of mean(nu^-d)."""
        return part.log_mean_exp(-part.dim * part.log_nu)

    def values(self, there: Directed, back: Directed) -> Tensor:
        """Return S x T inner products."""
        return there.with_diagonal(self._product(there), self._square(there, there.own_x, there.n))

    def _product(self, there: Directed) -> Tensor:
        return (self._log_factor(there) - there.m.double().log() + there.cross).exp()

    def _square(self, there: Directed, own: Tensor, sizes: Tensor) -> Tensor:
        return (self._log_factor(there) - (sizes - 1.0).log() + own).exp()

    def _log_factor(self, there: Directed) -> float:
        if there.k < 2:
            raise RecloomError(f"∫ p q cannot be estimated with k = {there.k}", "Take k of at least 2; 3 is better.")
        return math.log(there.k - 1) - log_ball_volume(there.dim)


class L2(Linear):
    """L2 distance of the densities: sqrt(∫p² + ∫q² - ∫pq (x to y) - ∫pq (y to x)), 0 where that is negative."""

    similarity = False
    symmetric = True
    two_sided = True

    def values(self, there: Directed, back: Directed) -> Tensor:
        """Return S x T distances."""
        squares = self._square(there, there.own_x, there.n)[:, None] + self._square(there, there.own_y, there.m)
        found = squares - self._product(there) - self._product(back).t()
        return there.with_diagonal(safe_sqrt(found), 0.0)
