"""Jensen-Shannon divergence by entropies of weighted points (Hino and Murata 2013), as in the authors' skl-groups."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recloom.errors import RecloomError
from recloom_distkernels.divergence import Directed, NeighbourDivergence, Part


class JensenShannon(NeighbourDivergence):
    """Entropy of the equal mixture less the mean of the entropies, between 0 and log 2.

    The entropy of the mixture is estimated by the largest ball around each point that holds at most M/(n+m-1) of the
    weight, where a point of the own set weighs 1/(2n-1), one of the other n/(m(2n-1)), and M is k. For sets of
    different sizes that takes more than k neighbours.

    Args:
        clamp: Keep estimates in [0, log 2].
    """

    symmetric = True

    def __init__(self, clamp: bool = True) -> None:
        self.clamp = clamp

    def ranks(self, k: int, n: Tensor, m: Tensor) -> tuple[int, int]:
        """Return the most neighbours that a ball can hold, and one more of each."""
        sizes = [(a, b) for a in _ends(n) for b in _ends(m)]
        least, a, b = max((_least(a, b), a, b) for a, b in sizes)
        if k < least:
            raise RecloomError(
                f"Jensen-Shannon with k = {k} cannot compare sets of {a} and {b} points",
                f"Take k of at least {least}, or sets of more similar sizes.",
            )
        own, other = 0, 0
        for a, b in sizes:
            share = k / (a + b - 1) * (2 * a - 1)  # of the weight of a point of the own set
            own, other = max(own, int(share) + 1), max(other, int(share * b / a) + 1)
        return max(own, k), max(other, k)

    def own(self, part: Part) -> Tensor:
        """Return S values of log(n-1) + d mean(log rho)."""
        return (part.n.double() - 1).log() + part.dim * part.mean(part.log_rho)[0]

    def statistic(self, part: Part) -> Tensor:
        """Return T x S means of d log r - psi(i), for the ball of radius r around a point, which holds i points."""
        nu = part.nu.all()  # T x K x N
        rho = part.rho.all()  # 1 x J x N
        n = torch.repeat_interleave(part.n, part.n).to(nu.device).double()  # N
        m = part.m.to(nu.device).double()[:, None, None]  # T x 1 x 1
        distances, order = torch.cat([rho.expand(len(nu), -1, -1), nu], dim=1).sort(dim=1, stable=True)
        weight = torch.where(order < rho.shape[1], 1.0, n / m)  # T x (J + K) x N, times 2n - 1
        room = part.k / (n + m - 1) * (2 * n - 1) * (1 + 1e-12)  # a ball that is exactly full counts
        count = (weight.cumsum(1) <= room).sum(dim=1, keepdim=True)  # T x 1 x N
        radius = distances.gather(1, count - 1)
        return part.mean((part.dim * radius - torch.digamma(count.double())).squeeze(1))

    def values(self, there: Directed, back: Directed) -> Tensor:
        """Return S x T divergences."""
        sizes = (there.n[:, None] + there.m - 1.0).log() + torch.digamma(torch.tensor(float(there.k)).double())
        cores = (there.cross + back.cross.t()) / 2
        found = sizes + cores - (there.own_x[:, None] + there.own_y) / 2
        found = found.clamp(0.0, math.log(2)) if self.clamp else found
        return there.with_diagonal(found, 0.0)


def _least(a: int, b: int) -> int:
    """Return the least k with which a ball around a point of a set of `a` may hold a point of either set."""
    return math.ceil((a + b - 1) / ((2 * a - 1) * min(1.0, b / a)) - 1e-9)


def _ends(sizes: Tensor) -> set[int]:
    return {int(sizes.min()), int(sizes.max())}
