"""The contract of k-NN engines: exact distances from points to their k nearest in each of several sets."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class KnnEngine(ABC):
    """Finds the distances to the k nearest neighbours, exactly: by direct differences, never |x|^2 + |y|^2 - 2xy.

    All engines give the same numbers, to the rounding of a sum of d squares in the points' own precision.
    """

    @abstractmethod
    def search(self, queries: Tensor, targets: Tensor, bounds: Tensor, k: int, first: int | None = None) -> Tensor:
        """Return T x k x N squared distances, ascending; infinite where a set has fewer than k neighbours to offer.

        Args:
            queries: N x d.
            targets: M x d, the points of T sets one after the other; same type and device.
            bounds: T+1 bounds of the sets in `targets`, int64 on the CPU.
            k: Number of neighbours.
            first: Query q is target first + q, and is not its own neighbour (first may be negative); None: they are
                different points.
        """

    def own(self, values: Tensor, offsets: Tensor, k: int) -> Tensor:
        """Return k x N squared distances from each point to its neighbours in its own set, without itself.

        Args:
            values: N x d, the points of S sets.
            offsets: S+1 bounds of the sets.
            k: Number of neighbours.
        """
        bounds = offsets.tolist()
        found = [
            self.search(values[lo:hi], values[lo:hi], torch.tensor([0, hi - lo]), k, 0)[0]
            for lo, hi in itertools.pairwise(bounds)
        ]
        return torch.cat(found, dim=1)

    def halves(self, dim: int, k: int, sizes: Tensor) -> bool:
        """Return whether `both` takes less time than two searches among sets of these sizes."""
        return False

    def both(self, x: Tensor, x_bounds: Tensor, y: Tensor, y_bounds: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the squared distances from x to y, T x k x N, and from y to x, S x k x M.

        Args:
            x: N x d, the points of S sets.
            x_bounds: S+1 bounds of the sets in x.
            y: M x d, the points of T other sets.
            y_bounds: T+1 bounds of the sets in y.
            k: Number of neighbours.
        """
        return self.search(x, y, y_bounds, k), self.search(y, x, x_bounds, k)


def choose_engine(values: Tensor, largest: int) -> KnnEngine:
    """Return the engine that is fastest for such points (measured, see docs/papers/distkernels.md).

    Args:
        values: Points; their device and dimension matter.
        largest: Size of the largest set.
    """
    from recloom_distkernels.knn_native import NativeKnn
    from recloom_distkernels.knn_torch import TorchKnn
    from recloom_distkernels.knn_tree import TreeKnn

    if values.device.type != "cpu":
        return TorchKnn()
    dim = values.shape[1]
    if (dim <= 3 and largest > 10_000) or (dim <= 5 and largest > 25_000):
        return TreeKnn()
    return NativeKnn() if NativeKnn.available() else TorchKnn()
