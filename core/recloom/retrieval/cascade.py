"""Two steps: the best candidates by inner product, then the ranker's scores of these."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch

from recloom.errors import RecloomError
from recloom.retrieval.hnsw import HNSW
from recloom.retrieval.index import Filter, Floats, Found, Ids, Parts, best
from recloom.retrieval.ivf import IVF
from recloom.retrieval.stored import StoredIndex
from recloom.retrieval.vectors import FlatIP, VectorIndex


class Cascade(StoredIndex):
    """A two tower model finds candidates, the ranker orders them. Codes are the two models' side by side.

    Args:
        parts: Those of `combine(first, ranker)`.
        candidates: Candidates of a user.
        first: How candidates are found: FlatIP, IVF or HNSW.
    """

    def __init__(
        self, parts: Parts, candidates: int = 1000, first: Literal["FlatIP", "IVF", "HNSW"] = "FlatIP"
    ) -> None:
        super().__init__(parts)
        if "first_dim" not in parts.facts:
            raise RecloomError("Cascade needs two models", "Give a two tower run too: --first RUN.")
        if candidates < 1:
            raise RecloomError(f"Cascade: candidates is {candidates}", "Give one at least.")
        self.candidates, self.width = candidates, int(parts.facts["first_dim"])
        narrow = dataclasses.replace(parts, user_dim=self.width, item_dim=self.width, inner_product=True)
        kinds: dict[str, type[VectorIndex]] = {"FlatIP": FlatIP, "IVF": IVF, "HNSW": HNSW}
        self.first = kinds[first](narrow)

    def delete(self, ids: Ids) -> int:
        """Remove items; return how many were there."""
        self.first.delete(ids)
        return super().delete(ids)

    def save(self, folder: Path) -> None:
        """Write the codes, and the first index into a folder of its own."""
        super().save(folder)
        (folder / "first").mkdir()
        self.first.save(folder / "first")

    def load(self, folder: Path) -> Self:
        """Read what `save` wrote."""
        super().load(folder)
        self.first.load(folder / "first")
        return self

    def stats(self) -> dict[str, Any]:
        """Return the number of items and what the first index says."""
        return {**super().stats(), "candidates": self.candidates, "first": self.first.stats()}

    def _build(self, ids: Ids, codes: Floats) -> None:
        super()._build(ids, codes)
        self.first.build(ids, codes[:, : self.width])

    def _upsert(self, ids: Ids, codes: Floats) -> None:
        super()._upsert(ids, codes)
        self.first.upsert(ids, codes[:, : self.width])

    def _search(self, users: Floats, k: int, filter: Filter) -> Found:
        if not len(self):
            nothing = np.full((len(users), k), -1, np.int64)
            return Found(nothing, np.full(nothing.shape, -np.inf, np.float32), np.zeros(len(users), np.int64))
        near = self.first.search(users[:, : self.width], max(self.candidates, k), filter).ids
        there = near >= 0
        places = self.store.places(np.where(there, near, self.store.ids[0]))
        asked = torch.from_numpy(np.ascontiguousarray(users))
        scores = np.empty((len(users), k), np.float32)
        ids = np.empty((len(users), k), np.int64)
        step = max(1, 32_768 // near.shape[1])
        for start in range(0, len(users), step):
            part = slice(start, start + step)
            items = torch.from_numpy(self.store.codes[places[part]])
            found = self.parts.scorers["score"](asked[part], items)
            found[~torch.from_numpy(there[part])] = -torch.inf
            scores[part], ids[part] = best(found, torch.from_numpy(near[part]), k)
        return Found(ids, scores, there.sum(1))


def combine(first: Parts, ranker: Parts) -> Parts:
    """Return the parts of a cascade: both models' codes side by side, scored by the ranker.

    Raises:
        RecloomError: The first model's score is no inner product.
    """
    if not first.inner_product:
        raise RecloomError("the first model of a cascade must score by inner products", "Train a TwoTower.")
    user, item = first.user_dim, first.item_dim
    score = ranker.scorers["score"]
    return Parts(
        user + ranker.user_dim,
        item + ranker.item_dim,
        False,
        {"score": lambda users, items: score(users[:, user:], items[..., item:])},
        facts={"first_dim": item},
    )
