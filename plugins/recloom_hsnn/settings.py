"""How many nodes an HSNN has and how they are learned, as configs say it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Source = Literal["lti", "kmeans", "ema", "natural"]
Layout = Literal["tree", "residual"]


@dataclass
class NodesConfig:
    """How many nodes there are, and how they are learned.

    Args:
        sizes: Nodes of each level, 1 to 3 levels, the coarsest first; with `residual`, codewords of each level.
        source: "lti": learned by gradients, jointly with the towers (JOIM). "kmeans": k-means on the items' codes, made
            when they begin and at every refresh (SIL). "ema": k-means, then moving averages of the items that come.
            "natural": given by the item's features named in `features`.
        layout: "tree": each level has vectors of its own, a leaf's parent is the nearest. "residual": a level's
            codewords are of what the levels before leave, and shared between parents.
        features: Sparse features of the item that give its node at each level, of `natural`.
        start: Share of the training steps after which nodes begin: made by k-means on the codes of the last batches.
        warmup: Share of the training steps over which the weight of the index's losses then grows from 0 to 1.
        max_alpha: Inverse temperature of the soft assignment at the end: max_alpha (step / steps)^exponent (eq. 8).
        exponent: Exponent of that schedule; 0: constant.
        grad_scale: By what the gradient of the nodes' losses is multiplied where it enters the item tower; 0: the
            index is learned and the tower does not see it.
        commitment: Weight of the term that draws items to their nodes, beside the one that draws nodes to items; unset
            in the paper's form, where one term does both.
        balance: Weight of the FLOPs regulariser.
        stacked: Batches of which the regulariser sees the mean assignment.
        revive: Nodes used less than this share of their due are put on items of the batch; 0: never.
        decay: Of the moving averages of use and, for "ema", of nodes.
        distill: Weight of the soft labels that the item level gives to nodes on pairs nobody has labelled.
        pair_loss: Weight of the squared distance between the interaction towers of nodes and of items.
    """

    sizes: Sequence[int] = (256,)
    source: Source = "lti"
    layout: Layout = "tree"
    features: Sequence[str] = ()
    start: float = 0.5
    warmup: float = 0.1
    max_alpha: float = 30.0
    exponent: float = 1.0
    grad_scale: float = 0.1
    commitment: float | None = 0.25
    balance: float = 0.05
    stacked: int = 8
    revive: float = 0.1
    decay: float = 0.99
    distill: float = 0.5
    pair_loss: float = 0.1


def as_published(nodes: NodesConfig) -> NodesConfig:
    """Return the nodes' settings as the paper has them: one reconstruction term, whole gradients, from the first step.

    Nodes that are not used stay where they are. The paper gives no numbers for the temperature, the warm-up and the
    weights: those of `nodes` stay, and so does its distillation term.
    """
    return dataclasses.replace(nodes, start=0.0, grad_scale=1.0, commitment=None, revive=0.0)
