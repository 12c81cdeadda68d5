"""The index of HSNN: the model scores nodes level by level, then items of the best leaves (the paper's algorithm 2).

Beyond the paper, items of the best leaves are rated first, by the scorer's tangent at their leaf: the score of the
leaf's vector plus its gradient times what the item differs by. Only the best of them are scored.

Imports no Lightning: an exported index needs it.

Letters in shapes: U users, W leaves, M items of the leaves that are rated, D width of a code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from recloom import archives
from recloom.errors import RecloomError
from recloom.retrieval.index import Filter, Floats, Found, Ids, Parts, RetrievalIndex, best
from recloom_hsnn.levels import Effort, Levels
from recloom_hsnn.lists import NodeLists
from recloom_hsnn.tree import Tree, kmeans_tree

PAIRS = 1 << 16  # pairs scored at once
ROUNDS = 24  # widenings at most: each one doubles


class HSNNIndex(RetrievalIndex):
    """Leaves hold items; the model's own scorers choose leaves and order items.

    Args:
        parts: What the model gives.
        share: Evaluations for a user, nodes and items together, as a share of the number of items; for a filter that
            leaves too few there are more. A gradient counts as two.
        rated: Leaves whose items are rated by a tangent, as a share of the leaves; at least twice `share`, and at most
            a half of the evaluations go there. 0, or a scorer without gradients: items of the best leaves are scored,
            leaf by leaf, as in the paper.
        beam: Nodes kept at each level but the last, as a share of the level's nodes.
        nodes: Nodes of each level, made by k-means on the items when the index is built; unset: the model's own.
        representatives: Whether a node is scored as the item nearest to it, as in the paper, not as its own vector.
        seed: Seed of k-means.
    """

    def __init__(
        self,
        parts: Parts,
        share: float = 0.02,
        rated: float = 0.05,
        beam: float = 0.15,
        nodes: Sequence[int] | None = None,
        representatives: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(parts)
        if not 0 < share <= 1 or not 0 < beam <= 1 or not 0 <= rated <= 1:
            raise RecloomError(
                f"HSNN: share is {share}, beam is {beam}, rated is {rated}",
                "They are at most 1; share and beam lie above 0.",
            )
        if "node1" not in parts.scorers:
            raise RecloomError("the index HSNN needs a model that scores nodes", "Train an HSNN.")
        if not parts.facts.get("begun", True) and not nodes:
            raise RecloomError("the model's nodes have not begun", "Use a later checkpoint, or give the index nodes.")
        self.share, self.rated, self.beam, self.sizes = share, rated, beam, list(nodes) if nodes else None
        self.representatives, self.seed = representatives, seed
        self._set_tree(Tree.of(parts.tables))

    def delete(self, ids: Ids) -> int:
        """Remove items; return how many were there."""
        ids = np.unique(np.asarray(ids, np.int64))
        nodes = self.lists.nodes_of(ids)
        self.levels.count(nodes[nodes >= 0], -1)
        return self.lists.remove(ids)

    def __len__(self) -> int:
        return len(self.lists)

    def ids(self) -> Ids:
        """Return all ids, ascending."""
        return np.sort(self.lists.all()[0])

    def codes(self, ids: Ids) -> Floats:
        """Return the codes of `ids`."""
        found, codes, _ = self.lists.all()
        order = np.argsort(found)
        return codes[order[np.searchsorted(found, ids, sorter=order)]]

    def save(self, folder: Path) -> None:
        """Write faiss's lists and the node tables."""
        self.lists.save(folder / "lists.faiss")
        tables: dict[str, Any] = self.tree.tables()
        tables |= {f"scored{level}": vectors for level, vectors in enumerate(self.levels.scored_as)}
        np.savez(folder / "nodes.npz", **tables)

    def load(self, folder: Path) -> Self:
        """Read what `save` wrote."""
        tables = archives.read_arrays(folder / "nodes.npz", "Build the index anew.")
        scored = [tables.pop(f"scored{level}") for level in range(sum(name.startswith("scored") for name in tables))]
        self._set_tree(Tree.of(tables))
        self.lists = NodeLists.load(folder / "lists.faiss")
        self.levels.score_as(scored)
        self.levels.count(np.repeat(np.arange(self.tree.leaves), self.lists.sizes), 1)
        return self

    def refresh(self, parts: Parts, ids: Ids, codes: Floats) -> float:
        """Take over a later state of the model; return the share of the items here whose leaf is another one now.

        Args:
            parts: The model's.
            ids: All items, whether they are here or not.
            codes: Their codes by that model.
        """
        before = self.lists.nodes_of(np.asarray(ids, np.int64))
        self.parts = parts
        self._set_tree(Tree.of(parts.tables))
        self.build(ids, codes)
        known = before >= 0
        return float((self.lists.nodes_of(np.asarray(ids, np.int64))[known] != before[known]).mean())

    def stats(self) -> dict[str, Any]:
        """Return the numbers of items and nodes, and how evenly leaves are used."""
        sizes = self.lists.sizes
        used = sizes / max(sizes.sum(), 1)
        positive = used[used > 0]
        return {
            **super().stats(),
            "nodes": [len(level) for level in self.tree.nodes],
            "used": float((sizes > 0).mean()),
            "perplexity": float(np.exp(-(positive * np.log(positive)).sum())) if len(positive) else 0.0,
            "largest": float(used.max()),
            "imbalance": self.lists.imbalance(),
        }

    @property
    def tree(self) -> Tree:
        """The nodes."""
        return self.levels.tree

    def _set_tree(self, tree: Tree) -> None:
        self.levels = Levels(tree, self.parts.item_dim, self.parts.facts.get("ensemble", []))
        self.lists = NodeLists(tree.leaves, self.parts.item_dim)

    def _build(self, ids: Ids, codes: Floats) -> None:
        tree = self.tree
        if self.sizes is not None and tree.column < 0 and len(ids):
            tree = kmeans_tree(codes[:, : tree.dim], self.sizes, self.seed)
        self._set_tree(tree)
        self._add(ids, codes)
        if self.representatives and len(ids):
            self.levels.score_as([*self.levels.scored_as[:-1], self._representatives(codes)])

    def _representatives(self, codes: Floats) -> Floats:
        """Return for each leaf the code of the item nearest to it (algorithm 1, lines 10 to 15)."""
        corpus = Tree((np.ascontiguousarray(codes[:, : self.tree.dim]),), ())
        return np.ascontiguousarray(codes[corpus.leaf_of(self.tree.nodes[-1])])

    def _upsert(self, ids: Ids, codes: Floats) -> None:
        self.delete(ids)
        self._add(ids, codes)

    def _add(self, ids: Ids, codes: Floats) -> None:
        """Add items that are not there."""
        if len(ids):
            leaves = self.tree.leaf_of(codes)
            self.lists.add(ids, codes, leaves)
            self.levels.count(leaves, 1)

    def _search(self, users: Floats, k: int, filter: Filter) -> Found:
        ids = np.full((len(users), k), -1, np.int64)
        scores = np.full((len(users), k), -np.inf, np.float32)
        scored = np.zeros(len(users), np.int64)
        effort = Effort(
            max(int(self.share * len(self)), 1), self.beam, self.rated if "slope" in self.parts.scorers else 0
        )
        most = len(self) + 3 * sum(len(level) for level in self.tree.nodes)  # a gradient counts as two
        left = np.arange(len(users))
        for _ in range(ROUNDS):
            step = max(1, PAIRS // effort.room)
            for start in range(0, len(left), step):
                part = left[start : start + step]
                found = self._round(users[part], k, filter, part, effort)
                ids[part], scores[part] = found.ids, found.scores
                scored[part] += found.scored
            left = left[(ids[left] < 0).any(1)]
            if not len(left) or effort.room >= most:
                break
            effort = Effort(effort.room * 4, 1.0, 0.0)
        return Found(ids, scores, scored)

    def _round(self, users: Floats, k: int, filter: Filter, whose: Ids, effort: Effort) -> Found:
        """Search once, with a given number of evaluations for each user."""
        asked = torch.from_numpy(users)
        alive = self.levels.with_items()
        if filter.allowed is not None:
            leaves = self.lists.nodes_of(filter.allowed)
            alive = self.levels.over(leaves[leaves >= 0])
        leaves, logits, seen = self.levels.choose(asked, self.parts.scorers, alive, effort.beam)
        rated = self._leaves_rated(effort, min(leaves.shape[1], max(effort.room - seen, 0) // 4))
        free = min(max(effort.room - seen - 2 * rated, k), max(len(self), 1))
        if rated:
            codes, ids, places = self._best_rated(asked, leaves[:, :rated], logits[:, :rated], free, filter, whose)
        else:
            codes, ids, places = self.lists.gather(leaves, free)
        found = self._combined(self.parts.scorers["score"](asked, codes), logits, places)
        kept = ids >= 0
        taken = kept.sum(1) + seen + 2 * rated
        if not filter.empty:
            kept = filter.keep(ids, whose)
        found = found.masked_fill(~torch.from_numpy(kept), -torch.inf)
        scores, found_ids = best(found, torch.from_numpy(ids), k)
        return Found(found_ids, scores, taken)

    def _leaves_rated(self, effort: Effort, most: int) -> int:
        """Return of how many leaves, at most `most`, items are rated: about twice as many items as are scored."""
        share = max(effort.rated, 2 * effort.room / max(len(self), 1)) if effort.rated else 0.0
        return min(int(np.ceil(share * self.tree.leaves)), most)

    def _best_rated(
        self, users: Tensor, leaves: Ids, logits: Tensor, count: int, filter: Filter, whose: Ids
    ) -> tuple[Tensor, Ids, Tensor]:
        """Return of the items of U x W leaves the `count` best by their leaf's tangent, as `NodeLists.gather` does."""
        vectors = self.levels.vectors[-1][torch.from_numpy(leaves.clip(min=0))]
        found = self.parts.scorers["slope"](users, vectors)
        slopes = found[..., 1:]
        bases = found[..., 0] - (slopes * vectors).sum(2)  # U x W
        own, above, bias = self.levels.combination(self.tree.levels)
        bases = own * bases + above * logits.masked_fill(torch.isneginf(logits), 0.0) + bias
        rates, ids = self.lists.rate(leaves, bases, own * slopes, not filter.empty)
        if not filter.empty:
            assert ids is not None
            rates = rates.masked_fill(~torch.from_numpy(filter.keep(ids, whose)), -torch.inf)
        return self.lists.pick(leaves, self.lists.best(rates, count))

    def _combined(self, scores: Tensor, logits: Tensor, places: Tensor) -> Tensor:
        """Return the ensemble of U x L items' scores and the logits of their leaves, which are at `places`."""
        own, above, bias = self.levels.combination(self.tree.levels)
        if (own, above, bias) == (1.0, 0.0, 0.0):
            return scores
        return own * scores + above * logits.gather(1, places) + bias
