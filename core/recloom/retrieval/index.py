"""The contract of retrieval indexes: what they are made of, what a search returns, filters. Imports no Lightning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recloom.errors import RecloomError

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
Scorer = Callable[[Tensor, Tensor], Tensor]
"""Scores U users' codes (U x du) and U lists of item codes (U x L x di): U x L logits."""


@dataclass(frozen=True)
class Parts:
    """What a model gives to indexes: how wide its codes are, its scorers, its tables.

    Args:
        user_dim: Width of a user's code.
        item_dim: Width of an item's code.
        inner_product: Whether the score is the inner product of the codes, plus what is the same for all items.
        scorers: Scorers by name; "score" is the model's own.
        tables: Arrays that an index of the model's kind needs, such as nodes.
        facts: Further numbers and names, JSON values.
    """

    user_dim: int
    item_dim: int
    inner_product: bool
    scorers: Mapping[str, Scorer]
    tables: Mapping[str, NDArray] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What a search found, best first.

    Args:
        ids: U x k item ids; -1 where there are fewer than k.
        scores: U x k scores; -inf there.
        scored: U numbers of scorer evaluations that it took, of items and of nodes.
    """

    ids: Ids
    scores: Floats
    scored: Ids


@dataclass(frozen=True)
class Filter:
    """Which items a search may return.

    Args:
        allowed: Only these ids; None: all.
        banned: None of these ids.
        seen: For each query the ids that it must not return; None: none.
    """

    allowed: Ids | None = None
    banned: Ids | None = None
    seen: Sequence[Ids] | None = None

    def __post_init__(self) -> None:
        for name in ("allowed", "banned"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, np.unique(np.asarray(value, np.int64)))
        if self.seen is not None:
            lengths = np.array([len(ids) for ids in self.seen], np.int64)
            ids = np.concatenate([np.asarray(ids, np.int64) for ids in self.seen]) if len(self.seen) else lengths
            known = np.unique(ids)
            pairs = np.searchsorted(known, ids) * len(self.seen) + np.repeat(np.arange(len(self.seen)), lengths)
            object.__setattr__(self, "_known", known)
            object.__setattr__(self, "_pairs", np.unique(pairs))
            object.__setattr__(self, "most_seen", int(lengths.max(initial=0)))

    @property
    def empty(self) -> bool:
        """Whether everything may be returned."""
        return self.allowed is None and self.banned is None and self.seen is None

    @property
    def same_for_all(self) -> Filter | None:
        """What of it holds for every query alike, or None."""
        return None if self.allowed is None and self.banned is None else Filter(self.allowed, self.banned)

    def keep(self, ids: Ids, queries: Ids | None = None) -> NDArray[np.bool_]:
        """Return which of U x L `ids` may be returned; `queries` are the U places of these queries (default: all)."""
        kept = ids >= 0
        if self.allowed is not None:
            kept &= _member(self.allowed, ids)
        if self.banned is not None:
            kept &= ~_member(self.banned, ids)
        if self.seen is not None:
            known: Ids = self._known  # type: ignore[attr-defined]
            queries = np.arange(len(ids)) if queries is None else queries
            place = np.searchsorted(known, ids).clip(max=max(len(known) - 1, 0))
            hit = known[place] == ids if len(known) else np.zeros(ids.shape, bool)
            pairs = place * len(self.seen) + queries[:, None]
            kept &= ~(hit & _member(self._pairs, pairs))  # type: ignore[attr-defined]
        return kept


class RetrievalIndex(ABC):
    """Finds the best items for users among those that it holds; items come and go.

    Codes are what a model's encoders return. The constructors of subclasses take `parts` and then options; `build`
    comes before anything else, or `load`. Not safe for threads that write while others read: swap snapshots instead
    (`recloom.retrieval.snapshot`).

    Args:
        parts: What the model gives.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def build(self, ids: Ids, codes: Floats) -> None:
        """Hold N items and nothing else: ids (distinct, not negative) and N x item_dim codes."""
        ids, codes = self._checked(ids, codes)
        self._build(ids, codes)

    def upsert(self, ids: Ids, codes: Floats) -> None:
        """Add items, or replace those that are there. The next search sees them."""
        ids, codes = self._checked(ids, codes)
        if len(ids):
            self._upsert(ids, codes)

    def search(self, users: Floats, k: int, filter: Filter | None = None) -> Found:
        """Return the best `k` items for each of U users, of those that `filter` lets through.

        Args:
            users: U x user_dim codes.
            k: Number of items.
            filter: Which items may be returned.
        """
        if k < 1:
            raise RecloomError(f"k is {k}", "Ask for one item at least.")
        users = np.ascontiguousarray(users, np.float32)
        if users.ndim != 2 or users.shape[1] != self.parts.user_dim:
            raise RecloomError(f"users' codes are {users.shape}, and U x {self.parts.user_dim} is expected")
        filter = filter or Filter()
        if filter.seen is not None and len(filter.seen) != len(users):
            raise RecloomError(f"{len(filter.seen)} lists of seen items for {len(users)} users", "Give one a user.")
        with torch.inference_mode():
            return self._search(users, k, filter)

    @abstractmethod
    def delete(self, ids: Ids) -> int:
        """Remove items; return how many of them were there. No later search returns them."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of items."""

    @abstractmethod
    def ids(self) -> Ids:
        """Return the ids of all items, in ascending order."""

    @abstractmethod
    def codes(self, ids: Ids) -> Floats:
        """Return the codes of `ids`, which are all there."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write everything into an empty folder."""

    @abstractmethod
    def load(self, folder: Path) -> Self:
        """Read what `save` wrote; return self."""

    def stats(self) -> dict[str, Any]:
        """Return facts for people: JSON values."""
        return {"items": len(self)}

    @abstractmethod
    def _build(self, ids: Ids, codes: Floats) -> None: ...

    @abstractmethod
    def _upsert(self, ids: Ids, codes: Floats) -> None: ...

    @abstractmethod
    def _search(self, users: Floats, k: int, filter: Filter) -> Found: ...

    def _checked(self, ids: Ids, codes: Floats) -> tuple[Ids, Floats]:
        ids, codes = np.ascontiguousarray(ids, np.int64), np.ascontiguousarray(codes, np.float32)
        if codes.shape != (len(ids), self.parts.item_dim):
            raise RecloomError(f"{len(ids)} items have codes of shape {codes.shape}", "Give one code an item.")
        if len(ids) and ids.min() < 0:
            raise RecloomError(f"an item has the id {ids.min()}", "Ids are not negative.")
        if len(np.unique(ids)) != len(ids):
            values, counts = np.unique(ids, return_counts=True)
            raise RecloomError(f"id {values[counts > 1][0]} is given twice", "Ids must differ.")
        if not np.isfinite(codes).all():
            raise RecloomError("codes are not all finite", "Look at the model's weights and the features.")
        return ids, codes


def best(scores: Tensor, ids: Tensor, k: int) -> tuple[Floats, Ids]:
    """Return the k best scores of each row with their ids; -inf and -1 where there are fewer. Ties: the lower place."""
    k_there = min(k, scores.shape[1])
    top, place = scores.topk(k_there, dim=1)
    found = ids.expand(scores.shape).gather(1, place)
    found = torch.where(torch.isneginf(top), -1, found)
    if k_there < k:
        pad = (0, k - k_there)
        top = torch.nn.functional.pad(top, pad, value=-torch.inf)
        found = torch.nn.functional.pad(found, pad, value=-1)
    return top.numpy(), found.numpy()


def _member(sorted_ids: Ids, ids: Ids) -> NDArray[np.bool_]:
    if not len(sorted_ids):
        return np.zeros(ids.shape, bool)
    place = np.searchsorted(sorted_ids, ids).clip(max=len(sorted_ids) - 1)
    return sorted_ids[place] == ids
