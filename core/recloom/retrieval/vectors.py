"""Indexes of inner products, by faiss: what they have in common, and the one of all vectors (flat)."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, Self

import faiss as _faiss
import numpy as np

from recloom.errors import RecloomError
from recloom.retrieval.index import Filter, Floats, Found, Ids, Parts
from recloom.retrieval.stored import StoredIndex

faiss: Any = _faiss  # its wrapper's own types do not know the names that it adds


class VectorIndex(StoredIndex):
    """What flat, IVF and HNSW have in common: only for models whose score is an inner product, filters, widening.

    Args:
        parts: What the model gives.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        if not parts.inner_product:
            raise RecloomError(
                f"{type(self).__name__} searches inner products, and the model's score is none",
                "Use Exhaustive, Cascade with a two tower first, or the index of the model's own plugin.",
            )

    def delete(self, ids: Ids) -> int:
        """Remove items; return how many were there."""
        ids = np.unique(np.asarray(ids, np.int64))
        there = ids[self.store.places(ids) >= 0]
        if len(there):
            self._remove(there)
            super().delete(there)
        return len(there)

    def save(self, folder: Path) -> None:
        """Write the codes and faiss's file."""
        super().save(folder)
        faiss.write_index(self.faiss, str(folder / "faiss.index"))
        (folder / "state.json").write_text(json.dumps(self._state()))

    def load(self, folder: Path) -> Self:
        """Read what `save` wrote."""
        super().load(folder)
        self.faiss = faiss.read_index(str(folder / "faiss.index"))
        self._restore(json.loads((folder / "state.json").read_text()))
        return self

    faiss: Any
    """The index of faiss that holds the vectors."""

    def _build(self, ids: Ids, codes: Floats) -> None:
        super()._build(ids, codes)
        self._make()

    def _upsert(self, ids: Ids, codes: Floats) -> None:
        old = ids[self.store.places(ids) >= 0]
        if len(old):
            self._remove(old)
        super()._upsert(ids, codes)
        self._add(ids, codes)

    def _search(self, users: Floats, k: int, filter: Filter) -> Found:
        """Search, and again with more effort for those users who got fewer than there are."""
        common = filter.same_for_all
        exists = len(self) if common is None else int(common.keep(self.store.ids[None]).sum())
        extra = filter.most_seen if filter.seen is not None else 0  # type: ignore[attr-defined]
        ids = np.full((len(users), k), -1, np.int64)
        scores = np.full((len(users), k), -np.inf, np.float32)
        left, effort = np.arange(len(users)), 0
        asked = min(k + extra, max(exists, 1))
        while len(left) and exists:
            final, parameters = self._effort(effort, common)
            found_scores, found = self.faiss.search(self._queries(users[left]), asked, params=parameters)
            found, found_scores = self._external(found, found_scores)
            kept = filter.keep(found, left)
            order = np.argsort(~kept, axis=1, kind="stable")[:, :k]
            width = order.shape[1]
            got = np.take_along_axis(kept, order, 1)
            ids[left, :width] = np.where(got, np.take_along_axis(found, order, 1), -1)
            scores[left, :width] = np.where(got, np.take_along_axis(found_scores, order, 1), -np.inf)
            enough = (got.sum(1) == k) | ((found >= 0).sum(1) == exists)
            left = left[~enough] if not final else left[:0]
            effort += 1
        return Found(ids, scores, np.zeros(len(users), np.int64))

    def _queries(self, users: Floats) -> Floats:
        return users

    def _external(self, ids: Ids, scores: Floats) -> tuple[Ids, Floats]:
        return ids, scores

    def _state(self) -> dict[str, Any]:
        return {}

    def _restore(self, state: dict[str, Any]) -> None:
        pass

    def _remove(self, ids: Ids) -> None:
        self.faiss.remove_ids(faiss.IDSelectorBatch(ids))

    def _add(self, ids: Ids, codes: Floats) -> None:
        self.faiss.add_with_ids(codes, ids)

    @abstractmethod
    def _make(self) -> None:
        """Make the index of faiss of what `store` holds."""

    @abstractmethod
    def _effort(self, step: int, common: Filter | None) -> tuple[bool, Any]:
        """Return whether more effort is of no use, and faiss's search parameters."""


class FlatIP(VectorIndex):
    """All inner products: exact.

    Args:
        parts: What the model gives.
    """

    def _make(self) -> None:
        self.faiss = faiss.IndexIDMap2(faiss.IndexFlatIP(self.parts.item_dim))
        self._add(self.store.ids, self.store.codes)

    def _effort(self, step: int, common: Filter | None) -> tuple[bool, Any]:
        return True, faiss.SearchParameters(sel=selector(common))


def selector(filter: Filter | None) -> Any:
    """Return the filter as faiss takes it; None for none."""
    if filter is None:
        return None
    if filter.allowed is not None:
        allowed = filter.allowed if filter.banned is None else np.setdiff1d(filter.allowed, filter.banned)
        return faiss.IDSelectorBatch(allowed)
    assert filter.banned is not None
    return faiss.IDSelectorNot(faiss.IDSelectorBatch(filter.banned))
