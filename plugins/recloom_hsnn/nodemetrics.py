"""How well nodes stand for their items, and how evenly they are used, over the validation rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recloom.batch import Batch
from recloom.metrics import NormalizedEntropy
from recloom_hsnn.nodes import usage

KINDS = ("", "_soft")


class NodeMetrics(nn.Module):
    """NE of each level with items at their nearest node and with soft assignment, and the use of nodes.

    Args:
        sizes: Nodes of each level.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.entropies = nn.ModuleDict(
            {f"node{level + 1}{kind}": NormalizedEntropy() for level in range(len(sizes)) for kind in KINDS}
        )
        self._nodes: list[Tensor] = []

    def add(self, kind: str, logits: Sequence[Tensor], batch: Batch) -> None:
        """Add a batch's B x 1 logits of each level, nodes being nearest ("") or soft ("_soft")."""
        for level, found in enumerate(logits):
            metric = self.entropies[f"node{level + 1}{kind}"]
            metric.update(found.squeeze(1).float(), batch.labels, batch.weights)  # type: ignore[operator]

    def count(self, nodes: Sequence[Tensor]) -> None:
        """Count each level's B nodes."""
        self._nodes.append(torch.stack(list(nodes)))

    def take(self) -> dict[str, Tensor | float]:
        """Return the metrics by name, none where nothing was added; start anew."""
        if not self._nodes:
            return {}
        found: dict[str, Tensor | float] = {}
        for name, metric in self.entropies.items():
            found[f"{name}_ne"] = metric.compute().float()  # type: ignore[operator]
            metric.reset()  # type: ignore[operator]
        nodes = torch.cat(self._nodes, dim=1)
        self._nodes = []
        for level, size in enumerate(self.sizes):
            values = usage(torch.bincount(nodes[level], minlength=size))
            found |= {f"node{level + 1}_{name}": value for name, value in values.items()}
        return found
