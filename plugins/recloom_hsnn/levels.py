"""The levels of an index's nodes while it serves: which nodes have items, what nodes are scored as, the way down.

Imports no Lightning: an exported index needs it.

Letters in shapes: U users, W nodes in question, K nodes kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recloom.retrieval.index import Floats, Ids, Scorer
from recloom_hsnn.tree import Tree

Combination = tuple[float, float, float]
"""Weights of a level's own logit and of the level above's, and the bias."""


class Levels:
    """The nodes of a tree, level by level.

    Args:
        tree: The tree.
        width: Width of an item's code, which vectors of nodes are padded to.
        ensemble: Each level's combination of its logit with that of the level above, and the items'; those that are
            missing are the level's own logit.
    """

    def __init__(self, tree: Tree, width: int, ensemble: Sequence[Sequence[float]] = ()) -> None:
        self.tree, self.width, self._combinations = tree, width, ensemble
        self.above = [tree.above(level) for level in range(tree.levels)]
        self._children = [tree.children(level) for level in range(1, tree.levels)]
        self._items_below = [np.zeros(len(level), np.int64) for level in tree.nodes]
        self.scored_as: list[Floats] = []
        self.vectors: list[Tensor] = []
        self.score_as(tree.nodes)

    def score_as(self, levels: Sequence[Floats]) -> None:
        """Set the vectors that nodes are scored as, level by level."""
        self.scored_as, self.vectors = list(levels), []
        for level in levels:
            padded = np.zeros((len(level), self.width), np.float32)
            padded[:, : level.shape[1]] = level
            self.vectors.append(torch.from_numpy(padded))

    def count(self, leaves: Ids, sign: int) -> None:
        """Note that items have come to (1) or gone from (-1) `leaves`."""
        for below, above in zip(self._items_below, self.above, strict=True):
            below += sign * np.bincount(above[leaves], minlength=len(below))

    def with_items(self) -> list[Tensor]:
        """Return of each level which nodes have items below them."""
        return [torch.from_numpy(below > 0) for below in self._items_below]

    def over(self, leaves: Ids) -> list[Tensor]:
        """Return of each level which nodes are over one of `leaves`."""
        found = []
        for level, above in zip(self.tree.nodes, self.above, strict=True):
            flags = torch.zeros(len(level), dtype=torch.bool)
            flags[torch.from_numpy(above[leaves])] = True
            found.append(flags)
        return found

    def combination(self, level: int) -> Combination:
        """Return how a level's logit is made (levels from 0; the number of levels stands for items)."""
        own, above, bias = self._combinations[level] if level < len(self._combinations) else (1.0, 0.0, 0.0)
        return own, above, bias

    def choose(
        self, users: Tensor, scorers: Mapping[str, Scorer], alive: list[Tensor], beam: float
    ) -> tuple[Ids, Tensor, int]:
        """Score nodes level by level, and keep a share of each (the paper's algorithm 2).

        Args:
            users: U x du codes.
            scorers: "node1", ... of each level.
            alive: Of each level which nodes may be chosen.
            beam: Share of a level's nodes that is kept, of all but the last level's.

        Returns:
            Each user's leaves, best first (U x W, -1 for none), their logits, and how many nodes were scored.
        """
        nodes = torch.arange(len(self.vectors[0])).expand(len(users), -1)  # U x W
        above, seen = None, 0
        for level, vectors in enumerate(self.vectors):
            there = nodes >= 0
            at = nodes.clamp(min=0)
            codes = vectors.expand(len(users), -1, -1) if level == 0 else vectors[at]
            logits = scorers[f"node{level + 1}"](users, codes)
            seen += logits.shape[1]
            if above is not None:
                own, before, bias = self.combination(level)
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


@dataclass(frozen=True)
class Effort:
    """What one round of a search may do.

    Args:
        room: Evaluations of a user.
        beam: Share of the nodes kept at each level but the last.
        rated: Share of the leaves whose items are rated.
    """

    room: int
    beam: float
    rated: float
