"""The faiss engine."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recloom.errors import RecloomError
from recloom_distkernels.knn import KnnEngine

_NEVER = 1 << 30


class FaissKnn(KnnEngine):
    """faiss.knn on its path of direct differences; float32 on the CPU."""

    def search(self, queries: Tensor, targets: Tensor, bounds: Tensor, k: int, first: int | None = None) -> Tensor:
        """Return T x k x N squared distances; see KnnEngine."""
        import faiss

        if queries.dtype != torch.float32 or queries.device.type != "cpu":
            raise RecloomError(
                f"faiss searches float32 points on the CPU, these are {queries.dtype} on {queries.device}",
                "Use --engine native or torch, or SampleSets.to(torch.float32) if that precision is enough.",
            )
        x, y = (np.ascontiguousarray(t.detach().numpy()) for t in (queries, targets))
        out = np.full((len(bounds) - 1, k, len(x)), np.inf, dtype=np.float32)
        # above this number of queries faiss would take the products that cancel
        before, faiss.cvar.distance_compute_blas_threshold = faiss.cvar.distance_compute_blas_threshold, _NEVER
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(torch.get_num_threads())
        try:
            for index, (lo, hi) in enumerate(itertools.pairwise(bounds.tolist())):
                own = None if first is None else np.arange(first - lo, first - lo + len(x))
                found = _neighbours(faiss, x, y[lo:hi], k, own)
                out[index, : found.shape[1]] = found.T
        finally:
            faiss.cvar.distance_compute_blas_threshold = before
            faiss.omp_set_num_threads(threads)
        return torch.from_numpy(out)


def _neighbours(faiss: Any, x: np.ndarray, y: np.ndarray, k: int, own: np.ndarray | None) -> np.ndarray:
    """Return N x min(k, M) squared distances; a point's own row, wherever it is found, is dropped."""
    if own is None:
        return faiss.knn(x, y, min(k, len(y)))[0]
    distances, places = faiss.knn(x, y, min(k + 1, len(y)))
    return drop_own(distances, places == own[:, None], k)


def drop_own(distances: np.ndarray, mine: np.ndarray, k: int) -> np.ndarray:
    """Return the first k distances of each row that are not the row's `mine`, infinite where there are fewer."""
    distances = np.where(mine, np.inf, distances)
    return np.sort(distances, axis=1)[:, :k]
