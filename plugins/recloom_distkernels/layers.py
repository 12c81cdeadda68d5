"""Divergences of sets as a layer: differentiable in the points, for training what comes before."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from recloom.errors import RecloomError
from recloom_distkernels.divergence import Directed, Divergence, NeighbourDivergence, Part
from recloom_distkernels.jensen_shannon import JensenShannon
from recloom_distkernels.registry import parse


class DivergenceLayer(nn.Module):
    """k-NN divergences of sets x from sets y, with gradients in all points.

    Which point is whose k-th neighbour is found without gradients; the distances to these are then computed anew,
    with them. The values are those of `pairwise_divergences`. Everything is in memory at once: N x M distances.

    Args:
        divergence: Name of a k-NN divergence: "kl", "renyi:0.8", "hellinger", "l2", ...; not Jensen-Shannon.
        k: The neighbour.
        floor: Distance below which points count as one.
    """

    def __init__(self, divergence: str = "kl", k: int = 3, floor: float = 1e-6) -> None:
        super().__init__()
        parsed = parse(divergence, Divergence)
        if not isinstance(parsed, NeighbourDivergence) or isinstance(parsed, JensenShannon):
            raise RecloomError(
                f"{divergence!r} is no layer", "Use kl, renyi, tsallis, hellinger, linear, l2, or MMDLayer."
            )
        self.divergence = parsed
        self.k = k
        self.floor = floor

    def forward(self, x: Tensor, x_lengths: Tensor, y: Tensor | None = None, y_lengths: Tensor | None = None) -> Tensor:
        """Return S x T divergences of the sets x from the sets y, or from one another.

        Args:
            x: N x d points of S sets.
            x_lengths: S sizes.
            y: M x d points of T sets; None: those of x.
            y_lengths: T sizes.
        """
        same = y is None
        if y is None or y_lengths is None:
            y, y_lengths = x, x_lengths
        there = self._directed(x, x_lengths, y, y_lengths, same)
        one_sided = same or not self.divergence.two_sided
        back = there if one_sided else self._directed(y, y_lengths, x, x_lengths, same)
        return self.divergence.values(there, back)

    def _directed(self, x: Tensor, n: Tensor, y: Tensor, m: Tensor, same: bool) -> Directed:
        rho = self._own(x, n)
        cross = self._log_distances(x, y, self._nearest(x, y, m, same))  # T x N
        part = _Part(x.shape[1], self.k, n, m, rho, cross)
        own_y = self.divergence.own(_Part(y.shape[1], self.k, m, m, self._own(y, m), cross))
        statistic = self.divergence.statistic(part).t()
        return Directed(statistic, self.divergence.own(part), own_y, n.double(), m.double(), x.shape[1], self.k, same)

    def _own(self, x: Tensor, n: Tensor) -> Tensor:
        """Return 1 x N log distances to the k-th neighbours in the own sets."""
        sets = torch.repeat_interleave(torch.arange(len(n), device=x.device), n)
        rows, there = _places(n)
        with torch.no_grad():
            rows, there = rows[sets], there[sets]  # N x longest
            distances = (x[:, None] - x[rows]).square().sum(dim=2).masked_fill_(~there, torch.inf)
            distances.masked_fill_(rows == torch.arange(len(x), device=x.device)[:, None], torch.inf)
            nearest = rows.gather(1, distances.kthvalue(self.k, dim=1, keepdim=True).indices)
        return self._log_distances(x, x, nearest.t())

    @torch.no_grad()
    def _nearest(self, x: Tensor, y: Tensor, m: Tensor, same: bool) -> Tensor:
        """Return T x N: the row in y of the k-th neighbour of each point of x in each set of y."""
        if int(m.min()) < self.k + same:
            raise RecloomError(
                f"a set of {int(m.min())} points has no neighbour {self.k}", "Take larger sets, or a smaller k."
            )
        distances = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # N x M
        if same:
            distances.fill_diagonal_(torch.inf)
        rows, there = _places(m)
        distances = distances[:, rows].masked_fill_(~there, torch.inf)  # N x T x longest
        chosen = distances.kthvalue(self.k, dim=2).indices.t()  # T x N
        return rows.gather(1, chosen)

    def _log_distances(self, x: Tensor, y: Tensor, nearest: Tensor) -> Tensor:
        squared = (x - y[nearest]).double().square().sum(dim=-1)  # T x N
        return 0.5 * squared.clamp(min=self.floor**2).log()


def _places(m: Tensor) -> tuple[Tensor, Tensor]:
    """Return (T x longest rows of the points of each set, and which of them there are)."""
    places = torch.arange(int(m.max()), device=m.device)
    rows = (m.cumsum(0) - m)[:, None] + places
    return rows.clamp(max=int(m.sum()) - 1), places < m[:, None]


class _Part(Part):
    """The averages of a Part, with gradients."""

    def __init__(self, dim: int, k: int, n: Tensor, m: Tensor, rho: Tensor, nu: Tensor) -> None:
        self.dim, self.k, self.n, self.m = dim, k, n, m
        self._rho, self._nu = rho, nu
        self._set = torch.repeat_interleave(torch.arange(len(n), device=rho.device), n)

    @property
    def log_rho(self) -> Tensor:
        return self._rho

    @property
    def log_nu(self) -> Tensor:
        return self._nu

    def mean(self, terms: Tensor) -> Tensor:
        return terms.new_zeros(len(terms), len(self.n)).index_add(1, self._set, terms) / self.n

    def log_mean_exp(self, terms: Tensor) -> Tensor:
        lowest = torch.full((len(terms), len(self.n)), -math.inf, dtype=terms.dtype, device=terms.device)
        index = self._set.expand_as(terms)
        most = lowest.scatter_reduce(1, index, terms.detach(), "amax")
        return most + self.mean((terms - most.gather(1, index)).exp()).log()


class MMDLayer(nn.Module):
    """Squared MMD of sets x from sets y (V-statistic) with an RBF kernel, whose bandwidth is learned; differentiable.

    Args:
        sigma: Bandwidth at the start.
    """

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        self.log_sigma = nn.Parameter(torch.tensor(math.log(sigma)))

    def forward(self, x: Tensor, x_lengths: Tensor, y: Tensor | None = None, y_lengths: Tensor | None = None) -> Tensor:
        """Return S x T squared distances; the arguments are those of DivergenceLayer."""
        if y is None or y_lengths is None:
            y, y_lengths = x, x_lengths
        own_x = self._own(x, x_lengths)
        return own_x[:, None] + self._own(y, y_lengths) - 2 * self._means(x, x_lengths, y, y_lengths)

    def _own(self, x: Tensor, n: Tensor) -> Tensor:
        """Return S means over the pairs of points of each set."""
        rows, there = _places(n)
        points = x[rows]  # S x longest x d
        values = self._kernel(points[:, :, None], points[:, None]) * (there[:, :, None] & there[:, None])
        return values.sum(dim=(1, 2)) / n.square()

    def _kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """Return exp(-|x-y|² / 2σ²); the gradient of the distance is 0 at 0, not NaN."""
        return torch.exp(-(x - y).square().sum(dim=-1) / (2 * torch.exp(2 * self.log_sigma)))

    def _means(self, x: Tensor, n: Tensor, y: Tensor, m: Tensor) -> Tensor:
        """Return S x T means over pairs of points."""
        values = self._kernel(x[:, None], y)  # N x M
        return _averaging(n, values.dtype) @ values @ _averaging(m, values.dtype).t()


def _averaging(lengths: Tensor, dtype: torch.dtype) -> Tensor:
    """Return S x N: what averages over the points of each set."""
    sets = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    return (torch.arange(len(lengths), device=lengths.device)[:, None] == sets) / lengths[:, None].to(dtype)
