"""Inner products along a graph, by faiss (HNSW)."""

from __future__ import annotations

from typing import Any

import numpy as np

from recloom.errors import RecloomError
from recloom.retrieval.index import Filter, Floats, Found, Ids, Parts
from recloom.retrieval.vectors import VectorIndex, faiss


class HNSW(VectorIndex):
    """A navigable graph. Inner products are searched as distances, by a further coordinate that evens out the lengths.

    A graph cannot forget: removed vectors stay as waypoints that are never returned, and the graph is made anew when
    they are more than `dead` of all, or when a new vector is longer than the further coordinate allows for.

    Args:
        parts: What the model gives.
        neighbours: Neighbours of a node, M.
        ef_construction: Candidates while the graph is built.
        ef_search: Candidates of a search; more where a filter leaves too few.
        dead: Largest share of removed vectors.
    """

    def __init__(
        self,
        parts: Parts,
        neighbours: int = 32,
        ef_construction: int = 100,
        ef_search: int = 200,
        dead: float = 0.2,
    ) -> None:
        super().__init__(parts)
        if min(neighbours, ef_construction, ef_search) < 1 or not 0 <= dead < 1:
            raise RecloomError("HNSW: sizes must be at least 1, and dead between 0 and 1")
        self.neighbours, self.ef_construction, self.ef_search, self.dead = neighbours, ef_construction, ef_search, dead
        self._nodes: Ids = np.empty(0, np.int64)  # id of each node of the graph, -1 for removed ones
        self._longest = 0.0

    def stats(self) -> dict[str, Any]:
        """Return the numbers of items and of removed vectors."""
        return {**super().stats(), "removed": len(self._nodes) - len(self)}

    def _make(self) -> None:
        self.faiss = faiss.IndexHNSWFlat(self.parts.item_dim + 1, self.neighbours)
        self.faiss.hnsw.efConstruction = self.ef_construction
        lengths = np.linalg.norm(self.store.codes, axis=1)
        self._longest = 1.1 * float(lengths.max(initial=0.0)) + 1e-6
        self._nodes = np.empty(0, np.int64)
        self._append(self.store.ids, self.store.codes)

    def _append(self, ids: Ids, codes: Floats) -> None:
        rest = np.sqrt(np.maximum(self._longest**2 - (codes**2).sum(1, keepdims=True), 0))
        self.faiss.add(np.ascontiguousarray(np.concatenate([codes, rest], axis=1), np.float32))
        self._nodes = np.concatenate([self._nodes, ids])

    def _add(self, ids: Ids, codes: Floats) -> None:
        if float(np.linalg.norm(codes, axis=1).max()) > self._longest:
            self._make()  # of the store, which has them already
        else:
            self._append(ids, codes)
            self._compact()

    def _remove(self, ids: Ids) -> None:
        self._nodes[np.isin(self._nodes, ids)] = -1

    def delete(self, ids: Ids) -> int:
        """Remove items; return how many were there."""
        count = super().delete(ids)
        self._compact()
        return count

    def _compact(self) -> None:
        if len(self._nodes) - len(self.store) > self.dead * len(self._nodes):
            self._make()

    def _state(self) -> dict[str, Any]:
        return {"nodes": self._nodes.tolist(), "longest": self._longest}

    def _restore(self, state: dict[str, Any]) -> None:
        self._nodes, self._longest = np.asarray(state["nodes"], np.int64), state["longest"]

    def _queries(self, users: Floats) -> Floats:
        return np.concatenate([users, np.zeros((len(users), 1), np.float32)], axis=1)

    def _external(self, ids: Ids, scores: Floats) -> tuple[Ids, Floats]:
        # |q - x|^2 = |q|^2 + M^2 - 2 <q, x>: the order is that of inner products
        found = np.where(ids >= 0, self._nodes[ids], -1) if len(self._nodes) else ids
        return found, -scores

    def _search(self, users: Floats, k: int, filter: Filter) -> Found:
        found = super()._search(users, k, filter)
        lengths = (users.astype(np.float64) ** 2).sum(1, keepdims=True)
        products = (lengths + self._longest**2 + found.scores) / 2
        return Found(found.ids, np.where(found.ids >= 0, products, -np.inf).astype(np.float32), found.scored)

    def _effort(self, step: int, common: Filter | None) -> tuple[bool, Any]:
        ef = min(self.ef_search << (2 * step), max(len(self._nodes), 1))
        alive = self._nodes >= 0
        if common is not None:
            alive &= common.keep(self._nodes[None])[0]
        chosen = None if alive.all() else faiss.IDSelectorBatch(np.flatnonzero(alive))
        return ef == len(self._nodes), faiss.SearchParametersHNSW(sel=chosen, efSearch=ef)
