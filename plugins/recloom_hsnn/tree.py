"""The nodes of a hierarchical index: their vectors level by level, who is whose child, who belongs where.

Imports no Lightning: an exported index needs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import faiss
import numpy as np
from numpy.typing import NDArray

from recloom.errors import DataError, RecloomError
from recloom.retrieval.index import Floats, Ids


@dataclass(frozen=True)
class Tree:
    """1 to 3 levels of nodes, the coarsest first; items belong to the last level's, the leaves.

    Args:
        nodes: Of each level n, K_n x D vectors, in the space of items' codes.
        parents: Of each level but the first, K_n numbers of nodes in the level before.
        column: Column of an item's code that holds the number of its leaf; -1: it belongs to the nearest leaf.
        greedy: Whether an item goes down level by level to the nearest child (residual codes), not to the nearest leaf.
    """

    nodes: tuple[Floats, ...]
    parents: tuple[Ids, ...]
    column: int = -1
    greedy: bool = False

    @property
    def levels(self) -> int:
        """Number of levels, N."""
        return len(self.nodes)

    @property
    def leaves(self) -> int:
        """Number of leaves."""
        return len(self.nodes[-1])

    @property
    def dim(self) -> int:
        """Width of a node's vector, D."""
        return int(self.nodes[0].shape[1])

    def leaf_of(self, codes: Floats) -> Ids:
        """Return the leaf of each of N items from their codes, N x (D or more)."""
        if self.column >= 0:
            leaves = codes[:, self.column].astype(np.int64)
            if len(leaves) and not (leaves.min() >= 0 and leaves.max() < self.leaves):
                wrong = leaves.min() if leaves.min() < 0 else leaves.max()
                raise DataError(f"an item is of leaf {wrong}, and there are {self.leaves}", "Build the index anew.")
            return leaves
        vectors = np.ascontiguousarray(codes[:, : self.dim])
        if not self.greedy:
            return _nearest(self.nodes[-1], vectors)
        chosen = _nearest(self.nodes[0], vectors)
        for level in range(1, self.levels):
            chosen = self._nearest_child(level, vectors, chosen)
        return chosen

    def _nearest_child(self, level: int, vectors: Floats, above: Ids) -> Ids:
        """Return the child of node `above` of each vector that it is nearest to."""
        order, starts = self.children(level)
        found = np.empty(len(vectors), np.int64)
        for parent in np.unique(above).tolist():
            mine = np.flatnonzero(above == parent)
            own = order[starts[parent] : starts[parent + 1]]
            found[mine] = own[_nearest(self.nodes[level][own], vectors[mine])]
        return found

    def children(self, level: int) -> tuple[Ids, Ids]:
        """Return the nodes of `level` (from 1) in the order of their parents, and where each parent's begin."""
        parents = self.parents[level - 1]
        order = np.argsort(parents, kind="stable")
        return order, np.searchsorted(parents[order], np.arange(len(self.nodes[level - 1]) + 1))

    def above(self, level: int) -> Ids:
        """Return the ancestor in `level` (from 0) of each leaf."""
        found = np.arange(self.leaves)
        for upper in range(self.levels - 1, level, -1):
            found = self.parents[upper - 1][found]
        return found

    def tables(self) -> dict[str, NDArray]:
        """Return the arrays by name, for files."""
        found: dict[str, NDArray] = {f"nodes{n + 1}": array for n, array in enumerate(self.nodes)}
        found |= {f"parents{n + 2}": array for n, array in enumerate(self.parents)}
        return found | {"kind": np.array([self.column, int(self.greedy)])}

    @classmethod
    def of(cls, tables: Mapping[str, NDArray]) -> Self:
        """Return the tree of what `tables` returned."""
        levels = sum(name.startswith("nodes") for name in tables)
        nodes = tuple(np.ascontiguousarray(tables[f"nodes{n + 1}"], np.float32) for n in range(levels))
        parents = tuple(np.asarray(tables[f"parents{n + 1}"], np.int64) for n in range(1, levels))
        column, greedy = tables["kind"].tolist()
        return cls(nodes, parents, int(column), bool(greedy))


def kmeans_tree(vectors: Floats, sizes: Sequence[int], seed: int = 0, iterations: int = 12) -> Tree:
    """Return a tree by k-means: leaves of the vectors, then each level of the nodes of the one below (SIL).

    Args:
        vectors: N x D vectors of items.
        sizes: Nodes of each level, the coarsest first; fewer where there are fewer vectors.
        seed: Seed of k-means.
        iterations: Iterations of k-means.
    """
    if not sizes or list(sizes) != sorted(sizes) or sizes[0] < 1:
        raise RecloomError(f"nodes is {list(sizes)}", "Give 1 to 3 growing numbers, the coarsest level's first.")
    levels = [kmeans(vectors, sizes[-1], seed, iterations)]
    parents: list[Ids] = []
    for size in reversed(sizes[:-1]):
        levels.insert(0, kmeans(levels[0], size, seed, iterations))
        parents.insert(0, _nearest(levels[0], levels[1]))
    return Tree(tuple(levels), tuple(parents))


def kmeans(vectors: Floats, count: int, seed: int = 0, iterations: int = 12) -> Floats:
    """Return `count` centres of the vectors by k-means; the distinct vectors themselves if they are no more."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    distinct = np.unique(vectors, axis=0) if len(vectors) <= 4 * count else vectors
    if len(distinct) <= count:
        return distinct if len(distinct) else np.zeros((1, vectors.shape[1]), np.float32)
    made = faiss.Kmeans(
        vectors.shape[1],
        count,
        niter=iterations,
        seed=seed + 1,
        min_points_per_centroid=1,
        max_points_per_centroid=128,
    )
    made.train(vectors)
    return np.asarray(made.centroids, np.float32).reshape(count, -1).copy()


def _nearest(nodes: Floats, vectors: Floats) -> Ids:
    """Return the nearest node of each vector, by squared distance."""
    index = faiss.IndexFlatL2(nodes.shape[1])
    index.add(np.ascontiguousarray(nodes))
    return index.search(np.ascontiguousarray(vectors), 1)[1][:, 0]
