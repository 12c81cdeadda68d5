"""Inner products in inverted lists, by faiss (IVF)."""

from __future__ import annotations

from typing import Any

import numpy as np

from recloom.errors import RecloomError
from recloom.retrieval.index import Filter, Ids, Parts
from recloom.retrieval.vectors import VectorIndex, faiss, selector


class IVF(VectorIndex):
    """Inverted lists around k-means centres; the lists nearest to a user are searched.

    Args:
        parts: What the model gives.
        lists: Number of lists; 0: four times the root of the number of items.
        probes: Lists searched for a user; more where a filter leaves too few.
        seed: Seed of k-means.
    """

    def __init__(self, parts: Parts, lists: int = 0, probes: int = 16, seed: int = 0) -> None:
        super().__init__(parts)
        if lists < 0 or probes < 1:
            raise RecloomError(f"IVF: lists is {lists}, probes is {probes}", "Give at least 0 and 1.")
        self.lists, self.probes, self.seed = lists, probes, seed

    def stats(self) -> dict[str, Any]:
        """Return the numbers of items and lists."""
        return {**super().stats(), "lists": int(self.faiss.nlist)}

    def _make(self) -> None:
        count = len(self.store)
        lists = min(self.lists or int(4 * count**0.5), max(count, 1))
        quantizer = faiss.IndexFlatIP(self.parts.item_dim)
        self.faiss = faiss.IndexIVFFlat(quantizer, self.parts.item_dim, lists, faiss.METRIC_INNER_PRODUCT)
        self.faiss.cp.seed, self.faiss.cp.min_points_per_centroid = self.seed + 1, 1
        if count:
            self.faiss.train(self.store.codes)
        else:  # nothing to learn from: one list at the origin
            quantizer.add(np.zeros((1, self.parts.item_dim), np.float32))
            self.faiss.is_trained = True
        self._keep_map()
        self._add(self.store.ids, self.store.codes)

    def _restore(self, state: dict[str, Any]) -> None:
        self._keep_map()

    def _keep_map(self) -> None:
        self.faiss.set_direct_map_type(faiss.DirectMap.Hashtable)

    def _remove(self, ids: Ids) -> None:
        self.faiss.remove_ids(faiss.IDSelectorArray(ids))  # by the map of ids: no scan of all lists

    def _effort(self, step: int, common: Filter | None) -> tuple[bool, Any]:
        probes = min(self.probes << step, self.faiss.nlist)
        return probes == self.faiss.nlist, faiss.SearchParametersIVF(sel=selector(common), nprobe=probes)
