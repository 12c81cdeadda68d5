"""Items in inverted lists of faiss, one list a leaf node: faiss stores, the model chooses. Imports no Lightning."""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_int64, c_void_p
from itertools import repeat
from pathlib import Path
from typing import Any, Self

import faiss as _faiss
import numpy as np
import torch
from faiss.contrib import ivf_tools as _ivf_tools
from numpy.typing import NDArray

from recloom import native
from recloom.retrieval.index import Floats, Ids

faiss: Any = _faiss  # its wrapper's own types do not know the names that it adds
ivf_tools: Any = _ivf_tools


class NodeLists:
    """Ids with codes in lists that the caller chooses, in an IndexIVFFlat.

    Args:
        lists: Number of lists.
        dim: Width of a code.
    """

    def __init__(self, lists: int, dim: int) -> None:
        quantizer = faiss.IndexFlatL2(dim)  # never asked: lists are given, by whoever adds and searches
        quantizer.add(np.zeros((lists, dim), np.float32))
        self._attach(faiss.IndexIVFFlat(quantizer, dim, lists, faiss.METRIC_L2))
        self.faiss.is_trained = True
        self.faiss.set_direct_map_type(faiss.DirectMap.Hashtable)

    def _attach(self, index: Any) -> None:
        self.faiss, self.dim, self.count = index, index.d, index.nlist
        self.sizes: Ids = np.zeros(self.count, np.int64)
        self._codes: NDArray[np.uintp] = np.zeros(self.count, np.uintp)
        self._ids: NDArray[np.uintp] = np.zeros(self.count, np.uintp)
        self._node: dict[int, int] = {}  # of each id; faiss has such a map too, and no way to ask it

    def __len__(self) -> int:
        return int(self.faiss.ntotal)

    def add(self, ids: Ids, codes: Floats, nodes: Ids) -> None:
        """Add items that are not there to the lists `nodes`."""
        # faiss's wrapper keeps no reference: arrays that it is given must outlive the call
        ids, nodes = np.ascontiguousarray(ids), np.ascontiguousarray(nodes)
        codes = np.ascontiguousarray(codes)
        ivf_tools.add_preassigned(self.faiss, codes, nodes, ids)
        self._node.update(zip(ids.tolist(), nodes.tolist(), strict=True))
        self._renew(np.unique(nodes))

    def remove(self, ids: Ids) -> int:
        """Remove items; return how many were there."""
        nodes = self.nodes_of(ids)
        there = nodes >= 0
        if there.any():
            self.faiss.remove_ids(faiss.IDSelectorArray(np.ascontiguousarray(ids[there])))
            self._renew(np.unique(nodes[there]))
            for gone in ids[there].tolist():
                del self._node[gone]
        return int(there.sum())

    def nodes_of(self, ids: Ids) -> Ids:
        """Return the list of each id, -1 for those that are not there."""
        return np.fromiter(map(self._node.get, ids.tolist(), repeat(-1)), np.int64, len(ids))

    def all(self) -> tuple[Ids, Floats, Ids]:
        """Return all ids, codes and lists, in the order of the lists."""
        used = np.flatnonzero(self.sizes)
        room = int(self.sizes.sum())
        if not room:
            return np.empty(0, np.int64), np.empty((0, self.dim), np.float32), np.empty(0, np.int64)
        codes, ids, lists = self.gather(used[None], room)
        return ids[0], codes[0].numpy(), used[lists[0].numpy()]

    def gather(self, nodes: Ids, room: int) -> tuple[torch.Tensor, Ids, torch.Tensor]:
        """Return the items of U x W lists (-1: none), the first `room` of a user.

        Returns:
            U x room x dim codes, U x room ids (-1 behind the last), and U x room places among the W lists.
        """
        users, wide = nodes.shape
        codes = torch.empty(users, room, self.dim)
        ids = np.empty((users, room), np.int64)
        lists = torch.empty(users, room, dtype=torch.int32)
        library = _library()
        if library is None:
            self._gather_slowly(nodes, codes.numpy(), ids, lists.numpy())
            return codes, ids, lists.long()
        nodes, counts = np.ascontiguousarray(nodes), np.empty(users, np.int64)
        pointers = [a.ctypes.data for a in (self._codes, self._ids, self.sizes, nodes)]
        out = [codes.data_ptr(), ids.ctypes.data, lists.data_ptr(), counts.ctypes.data]
        library.gather_lists(
            *map(c_void_p, pointers), *map(c_int64, (users, wide, room, self.dim)), *map(c_void_p, out)
        )
        return codes, ids, lists.long()

    def rate(
        self, nodes: Ids, bases: torch.Tensor, slopes: torch.Tensor, named: bool
    ) -> tuple[torch.Tensor, Ids | None]:
        """Return base + slope . code of all items of U x W lists, one list after the other, and their ids.

        Args:
            nodes: U x W lists, -1: none.
            bases: U x W numbers.
            slopes: U x W x dim.
            named: Whether ids are wanted.

        Returns:
            U x M rates, -inf behind the last, and U x M ids, -1 there; M is the most items that a user has.
        """
        users, wide = nodes.shape
        room = max(int(np.where(nodes >= 0, self.sizes[nodes], 0).sum(1).max(initial=0)), 1)
        rates, ids = torch.empty(users, room), np.empty((users, room), np.int64) if named else None
        library = _library()
        if library is None:
            codes, found, lists = self.gather(nodes, room)
            near = slopes.gather(1, lists[..., None].expand(-1, -1, self.dim))
            rates = bases.gather(1, lists) + (near * codes).sum(2)
            return rates.masked_fill(torch.from_numpy(found < 0), -torch.inf), found
        nodes, bases, slopes = np.ascontiguousarray(nodes), bases.contiguous(), slopes.contiguous()
        pointers = [a.ctypes.data for a in (self._codes, self._ids, self.sizes, nodes)]
        pointers += [bases.data_ptr(), slopes.data_ptr()]
        numbers = map(c_int64, (users, wide, room, self.dim))
        out = c_void_p(None if ids is None else ids.ctypes.data)
        library.rate_lists(*map(c_void_p, pointers), *numbers, c_void_p(rates.data_ptr()), out)
        return rates, ids

    def best(self, rates: torch.Tensor, count: int) -> Ids:
        """Return the places of the `count` largest of U x M rates, U x count, ascending; -1 where all others are -inf.

        Where some are missing, -1 may stand at either end.
        """
        library = _library()
        if library is None:
            top, places = rates.topk(min(count, rates.shape[1]), dim=1, sorted=False)
            return np.sort(places.masked_fill(torch.isneginf(top), -1).numpy(), axis=1)
        rates = rates.contiguous()
        found = np.empty((len(rates), min(count, rates.shape[1])), np.int64)
        numbers = map(c_int64, (*rates.shape, found.shape[1]))
        library.best_places(c_void_p(rates.data_ptr()), *numbers, c_void_p(found.ctypes.data))
        return found

    def pick(self, nodes: Ids, places: Ids) -> tuple[torch.Tensor, Ids, torch.Tensor]:
        """Return those of the items that `rate` rates at U x P places that `best` found, as `gather` does."""
        users, count = places.shape
        library = _library()
        if library is None:
            codes, ids, lists = self.gather(nodes, max(int(places.max(initial=0)) + 1, 1))
            at = torch.from_numpy(places.clip(min=0))
            found = np.where(places >= 0, np.take_along_axis(ids, places.clip(min=0), 1), -1)
            return codes.gather(1, at[..., None].expand(-1, -1, self.dim)), found, lists.gather(1, at)
        codes, ids = torch.empty(users, count, self.dim), np.empty((users, count), np.int64)
        lists, nodes = torch.empty(users, count, dtype=torch.int32), np.ascontiguousarray(nodes)
        pointers = [a.ctypes.data for a in (self._codes, self._ids, self.sizes, nodes, places)]
        out = [codes.data_ptr(), ids.ctypes.data, lists.data_ptr()]
        library.pick_items(
            *map(c_void_p, pointers), *map(c_int64, (users, nodes.shape[1], count, self.dim)), *map(c_void_p, out)
        )
        return codes, ids, lists.long()

    def imbalance(self) -> float:
        """Return faiss's imbalance factor: lists * sum of squares / square of the sum; 1 for equal lists."""
        total = float(self.sizes.sum())
        return float(self.count * (self.sizes.astype(np.float64) ** 2).sum() / total**2) if total else 1.0

    def save(self, path: Path) -> None:
        """Write faiss's file."""
        faiss.write_index(self.faiss, str(path))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        found = cls.__new__(cls)
        found._attach(faiss.read_index(str(path)))
        found.faiss.set_direct_map_type(faiss.DirectMap.Hashtable)
        found._renew(np.arange(found.count))
        ids, _, nodes = found.all()
        found._node.update(zip(ids.tolist(), nodes.tolist(), strict=True))
        return found

    def _renew(self, nodes: Ids) -> None:
        """Note where the lists `nodes`, which have changed, lie in memory now."""
        lists = self.faiss.invlists
        for node in nodes.tolist():
            self.sizes[node] = lists.list_size(node)
            if self.sizes[node]:  # an empty list lies nowhere
                self._codes[node] = int(lists.get_codes(node))
                self._ids[node] = int(lists.get_ids(node))

    def _gather_slowly(self, nodes: Ids, codes: Floats, ids: Ids, lists: NDArray[np.int32]) -> None:
        """Do what gather_lists of lists.c does, where there is no compiler."""
        ids[:], codes[:], lists[:] = -1, 0, 0
        store, room = self.faiss.invlists, ids.shape[1]
        for user, chosen in enumerate(nodes.tolist()):
            filled = 0
            for place, node in enumerate(chosen):
                take = min(int(self.sizes[node]), room - filled) if node >= 0 else 0
                if take:
                    span = slice(filled, filled + take)
                    ids[user, span] = faiss.rev_swig_ptr(store.get_ids(node), take)
                    raw = faiss.rev_swig_ptr(store.get_codes(node), take * self.dim * 4)
                    codes[user, span] = raw.view(np.float32).reshape(take, self.dim)
                    lists[user, span] = place
                    filled += take


@functools.cache
def _library() -> ctypes.CDLL | None:
    return native.load("lists.c", Path(__file__).parent)
