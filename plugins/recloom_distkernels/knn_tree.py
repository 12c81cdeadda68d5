"""The k-d tree engine: for sets of tens of thousands of points in few dimensions."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from recloom_distkernels.knn import KnnEngine
from recloom_distkernels.knn_faiss import drop_own


class TreeKnn(KnnEngine):
    """SciPy's cKDTree, a tree a target set; exact, in float64."""

    def search(self, queries: Tensor, targets: Tensor, bounds: Tensor, k: int, first: int | None = None) -> Tensor:
        """Return T x k x N squared distances; see KnnEngine."""
        from scipy.spatial import cKDTree

        x, y = (t.detach().cpu().double().numpy() for t in (queries, targets))
        out = np.full((len(bounds) - 1, k, len(x)), np.inf)
        for index, (lo, hi) in enumerate(itertools.pairwise(bounds.tolist())):
            ranks = np.arange(1, (k if first is None else k + 1) + 1)
            found, places = cKDTree(y[lo:hi]).query(x, ranks, workers=torch.get_num_threads())
            if first is not None:
                found = drop_own(found, places == np.arange(first - lo, first - lo + len(x))[:, None], k)
            out[index] = found.T
        return torch.from_numpy(out**2).to(queries.dtype).to(queries.device)
