"""Every item scored: exact, for any scorer; what all other indexes are measured against."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recloom.errors import RecloomError
from recloom.retrieval.index import Filter, Floats, Found, Parts, best
from recloom.retrieval.stored import StoredIndex


class Exhaustive(StoredIndex):
    """Scores all items with the model's own scorer, a block of items at a time.

    Args:
        parts: What the model gives.
        block: Items of a block, for one user; a block of several users has as many pairs.
    """

    def __init__(self, parts: Parts, block: int = 4096) -> None:
        super().__init__(parts)
        if block < 1:
            raise RecloomError(f"block is {block}", "A block has one item at least.")
        self.block = block

    def scores(self, users: Floats) -> Tensor:
        """Return the scores of all items, U x N, in the order of `store.ids`."""
        scorer, items = self.parts.scorers["score"], torch.from_numpy(self.store.codes)
        asked = torch.from_numpy(users)
        out = torch.empty(len(users), len(items))
        for start in range(0, len(items), self.block):
            part = items[start : start + self.block]
            out[:, start : start + self.block] = scorer(asked, part.expand(len(users), -1, -1))
        return out

    def _search(self, users: Floats, k: int, filter: Filter) -> Found:
        ids = np.empty((len(users), k), np.int64)
        scores = np.empty((len(users), k), np.float32)
        for start in range(0, len(users), 8):  # users of a block share its items while these are in cache
            part = slice(start, min(start + 8, len(users)))
            found = self.scores(users[part])
            if not filter.empty:
                whose = np.arange(part.start, part.stop)
                kept = filter.keep(np.broadcast_to(self.store.ids, found.shape), whose)
                found[~torch.from_numpy(kept)] = -torch.inf
            scores[part], ids[part] = best(found, torch.from_numpy(self.store.ids)[None], k)
        return Found(ids, scores, np.full(len(users), len(self.store), np.int64))
