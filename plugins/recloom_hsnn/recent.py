"""What an HSNN remembers of the items that came by: their last vectors, and which natural node is below which."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from recloom.errors import RecloomError
from recloom_hsnn.nodes import Assigned


class RecentVectors(nn.Module):
    """The vectors of the last items, from which nodes begin.

    Args:
        room: How many.
        dim: Width of a vector.
    """

    def __init__(self, room: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(room, dim))
        self.register_buffer("rows", torch.tensor(0))

    @torch.no_grad()
    def add(self, vectors: Tensor) -> None:
        """Keep B x D vectors in the place of the oldest."""
        kept, rows = self.get_buffer("vectors"), self.get_buffer("rows")
        vectors = vectors[: len(kept)].to(kept.dtype)
        kept[(int(rows) + torch.arange(len(vectors), device=kept.device)) % len(kept)] = vectors
        rows.add_(len(vectors))

    def known(self) -> Tensor:
        """Return those that there are."""
        return self.get_buffer("vectors")[: int(self.get_buffer("rows"))]


class NaturalNodes(nn.Module):
    """Nodes given by ids in the last columns of items' codes, one column a level.

    Args:
        sizes: Nodes of each level.
        features: The features whose ids these are.
        column: Column of the first level's ids.
    """

    def __init__(self, sizes: Sequence[int], features: Sequence[str], column: int) -> None:
        super().__init__()
        self.features, self.column = list(features), column
        for level, size in enumerate(sizes):
            self.register_buffer(f"parent{level}", torch.zeros(size, dtype=torch.int64))

    def assign(self, items: Tensor, levels: Sequence[Tensor]) -> list[Assigned]:
        """Return where items (B x di codes) are; `levels` are each level's K x D node vectors.

        Raises:
            RecloomError: An id is beyond the level's number of nodes.
        """
        found = []
        for level, words in enumerate(levels):
            node = items[:, self.column + level].detach().long()
            if int(node.max()) >= len(words):
                raise RecloomError(
                    f"feature {self.features[level]!r} has the id {int(node.max())}, and the level has "
                    f"{len(words)} nodes",
                    "Give nodes.sizes the feature's number of ids.",
                )
            found.append(Assigned(words[node], words[node], node, F.one_hot(node, len(words)).to(words.dtype)))
        return found

    @torch.no_grad()
    def note(self, assigned: Sequence[Assigned]) -> None:
        """Note which nodes the items' nodes are below."""
        for level, (above, one) in enumerate(pairwise(assigned), start=1):
            self.get_buffer(f"parent{level}")[one.node] = above.node

    def parents(self) -> dict[str, NDArray]:
        """Return each level's parents, named as in `Tree.tables`."""
        count = sum(1 for _ in self.buffers())
        return {f"parents{n + 1}": self.get_buffer(f"parent{n}").cpu().numpy() for n in range(1, count)}
