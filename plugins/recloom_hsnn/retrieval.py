"""The index of HSNN: the model scores nodes level by level, then items of the best leaves (the paper's algorithm 2).

Imports no Lightning: an exported index needs it.

Letters in shapes: U users, W nodes in question, K nodes kept, L items of a user, D width of a code.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from recloom.errors import RecloomError
from recloom.retrieval.index import Filter, Floats, Found, Ids, Parts, RetrievalIndex, best
from recloom_hsnn.lists import NodeLists
from recloom_hsnn.profile import Profile
from recloom_hsnn.tree import Tree, kmeans_tree

PAIRS = 1 << 16  # pairs scored at once
ROUNDS = 24  # widenings at most: each one doubles


class HSNNIndex(RetrievalIndex):
    """Leaves hold items; the model's own scorers choose leaves and order items.

    Args:
        parts: What the model gives.
        share: Evaluations for a user, nodes and items together, as a share of the number of items; for a filter that
            leaves too few there are more.
        beam: Nodes kept at each level but the last, as a share of the level's nodes.
        nodes: Nodes of each level, made by k-means on the items when the index is built; unset: the model's own.
        space: Where these are near: "codes": in the space of codes. "scores": items are near that the model scores
            alike, for the last users it was trained on.
        representatives: Whether a node is scored as the item nearest to it, as in the paper, not as its own vector.
        seed: Seed of k-means.
    """

    def __init__(
        self,
        parts: Parts,
        share: float = 0.04,
        beam: float = 0.25,
        nodes: Sequence[int] | None = None,
        space: Literal["codes", "scores"] = "codes",
        representatives: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(parts)
        if not 0 < share <= 1 or not 0 < beam <= 1:
            raise RecloomError(f"HSNN: share is {share}, beam is {beam}", "Both lie above 0 and are at most 1.")
        if "node1" not in parts.scorers:
            raise RecloomError("the index HSNN needs a model that scores nodes", "Train an HSNN.")
        if not parts.facts.get("begun", True) and not nodes:
            raise RecloomError("the model's nodes have not begun", "Use a later checkpoint, or give the index nodes.")
        self.share, self.beam, self.sizes = share, beam, list(nodes) if nodes else None
        if space not in ("codes", "scores") or (space == "scores" and (not nodes or "anchors" not in parts.tables)):
            raise RecloomError(f"HSNN: space is {space!r}", "It is codes or scores; scores needs nodes, and an HSNN.")
        self.representatives, self.seed, self.space = representatives, seed, space
        self.profile: Profile | None = None
        self._set_tree(Tree.of(parts.tables))

    def delete(self, ids: Ids) -> int:
        """Remove items; return how many were there."""
        ids = np.unique(np.asarray(ids, np.int64))
        nodes = self.lists.nodes_of(ids)
        self._count(nodes[nodes >= 0], -1)
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
        tables: dict[str, Any] = {**self.tree.tables(), **(self.profile.tables() if self.profile else {})}
        tables |= {f"scored{level}": vectors for level, vectors in enumerate(self.scored_as)}
        np.savez(folder / "nodes.npz", **tables)
        (folder / "settings.json").write_text(json.dumps({"share": self.share, "beam": self.beam}))

    def load(self, folder: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(folder / "nodes.npz", allow_pickle=False) as found:
            tables = dict(found)
        scored = [tables.pop(f"scored{level}") for level in range(sum(name.startswith("scored") for name in tables))]
        self.profile = Profile.of(tables) if "profile_mean" in tables else None
        self._set_tree(Tree.of(tables))
        self.lists = NodeLists.load(folder / "lists.faiss")
        self._set_scored(scored)
        self._recount()
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

    def _set_tree(self, tree: Tree) -> None:
        self.tree = tree
        self.lists = NodeLists(tree.leaves, self.parts.item_dim)
        self._above = [tree.above(level) for level in range(tree.levels)]
        self._children = [tree.children(level) for level in range(1, tree.levels)]
        self._set_scored(list(tree.nodes) if self.profile is None else [])
        self._recount()

    def _set_scored(self, levels: list[Floats]) -> None:
        """Set the vectors that nodes are scored as, level by level."""
        self.scored_as = levels
        wide = self.parts.item_dim
        self._vectors = []
        for level in levels:
            padded = np.zeros((len(level), wide), np.float32)
            padded[:, : level.shape[1]] = level
            self._vectors.append(torch.from_numpy(padded))

    def _recount(self) -> None:
        self._items_below = [np.zeros(len(level), np.int64) for level in self.tree.nodes]
        self._count(np.repeat(np.arange(self.tree.leaves), self.lists.sizes), 1)

    def _count(self, leaves: Ids, sign: int) -> None:
        for below, above in zip(self._items_below, self._above, strict=True):
            below += sign * np.bincount(above[leaves], minlength=len(below))

    def _build(self, ids: Ids, codes: Floats) -> None:
        tree = self.tree
        if self.sizes is not None and tree.column < 0 and len(ids):
            if self.space == "scores":
                anchors = np.asarray(self.parts.tables["anchors"], np.float32)
                self.profile = Profile.fit(self.parts.scorers["score"], anchors, codes, self.seed)
            tree = kmeans_tree(self._vectors_of(codes, tree.dim), self.sizes, self.seed)
        self._set_tree(tree)
        leaves = self._add(ids, codes)
        if self.profile is not None:
            self._set_scored(self._means(codes, leaves))
        if self.representatives and len(ids):
            self._set_scored([*self.scored_as[:-1], self._representatives(codes)])

    def _vectors_of(self, codes: Floats, dim: int) -> Floats:
        """Return items' vectors in the nodes' space."""
        if self.profile is None:
            return codes if self.tree.column >= 0 else codes[:, :dim]
        return self.profile.vectors(self.parts.scorers["score"], codes)

    def _means(self, codes: Floats, leaves: Ids) -> list[Floats]:
        """Return each level's mean codes of the items below a node."""
        found: list[Floats] = []
        for above, level in zip(self._above, self.tree.nodes, strict=True):
            sums, nodes = np.zeros((len(level), codes.shape[1]), np.float32), above[leaves]
            np.add.at(sums, nodes, codes)
            counts = np.maximum(np.bincount(nodes, minlength=len(level)), 1).astype(np.float32)
            found.append(np.asarray(sums / counts[:, None], np.float32))
        return found

    def _representatives(self, codes: Floats) -> Floats:
        """Return for each leaf the code of the item nearest to it (algorithm 1, lines 10 to 15)."""
        corpus = Tree((np.ascontiguousarray(self._vectors_of(codes, self.tree.dim)),), ())
        return np.ascontiguousarray(codes[corpus.leaf_of(self.tree.nodes[-1])])

    def _upsert(self, ids: Ids, codes: Floats) -> None:
        self.delete(ids)
        self._add(ids, codes)

    def _add(self, ids: Ids, codes: Floats) -> Ids:
        """Add items that are not there; return their leaves."""
        if not len(ids):
            return np.empty(0, np.int64)
        leaves = self.tree.leaf_of(self._vectors_of(codes, self.tree.dim))
        self.lists.add(ids, codes, leaves)
        self._count(leaves, 1)
        return leaves

    def _search(self, users: Floats, k: int, filter: Filter) -> Found:
        ids = np.full((len(users), k), -1, np.int64)
        scores = np.full((len(users), k), -np.inf, np.float32)
        scored = np.zeros(len(users), np.int64)
        room = max(int(self.share * len(self)), 1)
        left, beam = np.arange(len(users)), self.beam
        for _ in range(ROUNDS):
            step = max(1, PAIRS // room)
            for start in range(0, len(left), step):
                part = left[start : start + step]
                found = self._round(users[part], k, filter, part, room, beam)
                ids[part], scores[part] = found.ids, found.scores
                scored[part] += found.scored
            left = left[(ids[left] < 0).any(1)]
            if not len(left) or room >= self._most():
                break
            room, beam = room * 4, 1.0
        return Found(ids, scores, scored)

    def _most(self) -> int:
        """Return the room in which everything has a place."""
        return len(self) + sum(len(level) for level in self.tree.nodes)

    def _round(self, users: Floats, k: int, filter: Filter, whose: Ids, room: int, beam: float) -> Found:
        """Search once, with a given number of evaluations for each user."""
        asked = torch.from_numpy(users)
        leaves, logits, seen = self._choose(asked, filter, beam)
        free = min(max(room - seen, k), max(len(self), 1))
        codes, ids, places = self.lists.gather(leaves, free)
        found = self.parts.scorers["score"](asked, codes)
        own, above, bias = self._ensemble(self.tree.levels)
        if (own, above, bias) != (1.0, 0.0, 0.0):
            found = own * found + above * logits.gather(1, places) + bias
        kept = ids >= 0
        taken = kept.sum(1) + seen
        if not filter.empty:
            kept = filter.keep(ids, whose)
        found = found.masked_fill(~torch.from_numpy(kept), -torch.inf)
        scores, found_ids = best(found, torch.from_numpy(ids), k)
        return Found(found_ids, scores, taken)

    def _choose(self, users: Tensor, filter: Filter, beam: float) -> tuple[Ids, Tensor, int]:
        """Return each user's leaves, best first (U x W, -1 for none), their logits, and how many nodes were scored."""
        alive = [torch.from_numpy(below > 0) for below in self._items_below]
        if filter.allowed is not None:
            alive = self._with_any(filter.allowed)
        nodes = torch.arange(len(self._vectors[0])).expand(len(users), -1)  # U x W
        above, seen = None, 0
        for level, vectors in enumerate(self._vectors):
            there = nodes >= 0
            at = nodes.clamp(min=0)
            codes = vectors.expand(len(users), -1, -1) if level == 0 else vectors[at]
            logits = self.parts.scorers[f"node{level + 1}"](users, codes)
            seen += logits.shape[1]
            if above is not None:
                own, before, bias = self._ensemble(level)
                logits = own * logits + before * above + bias
            logits = logits.masked_fill(~(there & alive[level][at]), -torch.inf)
            last = level == self.tree.levels - 1
            keep = nodes.shape[1] if last else max(1, int(np.ceil(beam * len(vectors))))
            top, place = logits.topk(min(keep, nodes.shape[1]), dim=1)
            nodes = nodes.gather(1, place).masked_fill(torch.isneginf(top), -1)
            if last:
                return nodes.numpy(), top, seen
            nodes, above = self._descend(level, nodes, top)
        raise AssertionError

    def _descend(self, level: int, nodes: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the children of U x K nodes of `level` as U x W (-1 behind the last), and their parents' logits."""
        order, starts = self._children[level]
        chosen = nodes.numpy()
        first = starts[chosen.clip(min=0)]
        sizes = np.where(chosen >= 0, starts[chosen.clip(min=0) + 1] - first, 0)  # U x K
        ends = sizes.cumsum(1)
        wide = max(int(ends[:, -1].max()), 1)
        at = np.arange(wide)
        owner = (at[None, :, None] >= ends[:, None, :]).sum(2)  # U x W, K for none
        there = owner < chosen.shape[1]
        owner = owner.clip(max=chosen.shape[1] - 1)
        begin = np.take_along_axis(ends - sizes, owner, 1)
        place = np.take_along_axis(first, owner, 1) + at - begin
        children = np.where(there, order[place.clip(max=len(order) - 1)], -1)
        return torch.from_numpy(children), logits.gather(1, torch.from_numpy(owner))

    def _with_any(self, allowed: Ids) -> list[Tensor]:
        """Return which nodes have one of the `allowed` items below them."""
        leaves = self.lists.nodes_of(allowed)
        leaves = leaves[leaves >= 0]
        found = []
        for level, above in zip(self.tree.nodes, self._above, strict=True):
            flags = torch.zeros(len(level), dtype=torch.bool)
            flags[torch.from_numpy(above[leaves])] = True
            found.append(flags)
        return found

    def _ensemble(self, level: int) -> tuple[float, float, float]:
        """Return the weights of a level's own logit and of the level above's, and the bias (levels from 0, items N)."""
        weights = self.parts.facts.get("ensemble", [])
        own, above, bias = weights[level] if level < len(weights) else (1.0, 0.0, 0.0)
        return own, above, bias
