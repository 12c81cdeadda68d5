"""Indexes of inner products, by faiss: all vectors (flat), inverted lists (IVF), a graph (HNSW)."""

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
    """What the three have in common: only for models whose score is an inner product, filters, widening.

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
        return True, faiss.SearchParameters(sel=_selector(common))


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
        return probes == self.faiss.nlist, faiss.SearchParametersIVF(sel=_selector(common), nprobe=probes)


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


def _selector(filter: Filter | None) -> Any:
    if filter is None:
        return None
    if filter.allowed is not None:
        allowed = filter.allowed if filter.banned is None else np.setdiff1d(filter.allowed, filter.banned)
        return faiss.IDSelectorBatch(allowed)
    assert filter.banned is not None
    return faiss.IDSelectorNot(faiss.IDSelectorBatch(filter.banned))
