"""Items as the scorer sees them: their scores for some users, so that near items are items scored alike.

Imports no Lightning: an exported index needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from recloom.retrieval.index import Floats, Scorer

WIDTH = 16
SAMPLE = 20_000
BLOCK = 4096


@dataclass(frozen=True)
class Profile:
    """The first principal components of items' scores for M users.

    Args:
        anchors: M x du codes of users.
        mean: M mean scores.
        axes: M x D components.
    """

    anchors: Floats
    mean: Floats
    axes: Floats

    @classmethod
    def fit(cls, score: Scorer, anchors: Floats, codes: Floats, seed: int = 0) -> Self:
        """Return the profile of N x di codes, from a sample of them."""
        chosen = np.random.default_rng(seed).permutation(len(codes))[:SAMPLE]
        scores = _scores(score, anchors, codes[chosen])
        mean = scores.mean(0)
        axes = np.linalg.svd(scores - mean, full_matrices=False)[2][:WIDTH].T
        return cls(anchors, mean, np.ascontiguousarray(axes))

    def vectors(self, score: Scorer, codes: Floats) -> Floats:
        """Return N x D."""
        return np.ascontiguousarray((_scores(score, self.anchors, codes) - self.mean) @ self.axes)

    def tables(self) -> dict[str, NDArray]:
        """Return the arrays by name, for files."""
        return {"profile_anchors": self.anchors, "profile_mean": self.mean, "profile_axes": self.axes}

    @classmethod
    def of(cls, tables: Mapping[str, NDArray]) -> Self:
        """Return the profile of what `tables` returned."""
        return cls(tables["profile_anchors"], tables["profile_mean"], tables["profile_axes"])


@torch.inference_mode()
def _scores(score: Scorer, anchors: Floats, codes: Floats) -> Floats:
    """Return N x M scores."""
    asked, items = torch.from_numpy(anchors), torch.from_numpy(np.ascontiguousarray(codes))
    parts = [score(asked, part.expand(len(asked), -1, -1)).t() for part in items.split(BLOCK // 8)]
    return torch.cat(parts).numpy()
