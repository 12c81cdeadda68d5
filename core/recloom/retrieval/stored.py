"""What indexes that keep all codes in a `CodeStore` have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np

from recloom.retrieval.index import Floats, Ids, Parts, RetrievalIndex
from recloom.retrieval.store import CodeStore


class StoredIndex(RetrievalIndex):
    """Keeps ids and codes in `store`; what finds items beside it, a class adds by extending these methods.

    Args:
        parts: What the model gives.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.store = CodeStore(parts.item_dim)

    def delete(self, ids: Ids) -> int:
        """Remove items; return how many were there."""
        return self.store.remove(np.asarray(ids, np.int64))

    def __len__(self) -> int:
        return len(self.store)

    def ids(self) -> Ids:
        """Return all ids, ascending."""
        return np.sort(self.store.ids)

    def codes(self, ids: Ids) -> Floats:
        """Return the codes of `ids`."""
        return self.store.codes[self.store.places(ids)]

    def save(self, folder: Path) -> None:
        """Write the ids and codes."""
        self.store.save(folder / "items.npz")

    def load(self, folder: Path) -> Self:
        """Read what `save` wrote."""
        self.store.load(folder / "items.npz")
        return self

    def _build(self, ids: Ids, codes: Floats) -> None:
        self.store.replace(ids, codes)

    def _upsert(self, ids: Ids, codes: Floats) -> None:
        self.store.put(ids, codes)
