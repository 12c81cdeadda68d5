"""Multi-task Wide & Deep: a shared deep part, and a tower and a wide part for each label.

After the workload of that name in DeepRecSys (arXiv 2001.02772; towers of 512-256-128 above 1024-512). A wide part for
each label makes it Wide & Deep (Cheng et al. 2016) when there is one label and no tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recloom.embedding import EmbeddingFactory, FusedEmbeddingBag, Pooling
from recloom.optim import OptimizerConfig
from recloom_rmc.mlp import mlp
from recloom_rmc.wide_deep import WideAndDeep


class MultiTaskWideDeep(WideAndDeep):
    """Wide & Deep for several labels: one shared MLP on embeddings, a tower and a wide part for each label.

    Args:
        schema: Feature schema of the data; filled in from the data module.
        embedding_dim: Width of the embeddings, D.
        widths: Widths of the shared layers.
        tower: Widths of each label's own layers; the logit is added to them.
        crosses: Pairs of one-hot categories whose combinations the wide parts have weights for: [[c0, c1], ...].
        cross_rows: Rows of a crossed pair's hashed table.
        embedding: Embedding tables: FusedEmbeddingBag, or any other EmbeddingBagCollection.
        pooling: Pooling of bags: sum, mean, or weighted.
        optimizer: Optimizers and learning rates.
    """

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        embedding_dim: int = 32,
        widths: Sequence[int] = (1024, 512),
        tower: Sequence[int] = (512, 256, 128),
        crosses: Sequence[tuple[str, str]] = (),
        cross_rows: int = 100_000,
        embedding: EmbeddingFactory = FusedEmbeddingBag,
        pooling: Pooling = "sum",
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(schema, embedding_dim, crosses, cross_rows, embedding, pooling, optimizer)
        self.shared = mlp(self.num_inputs, widths, "widths")
        self.towers = nn.ModuleList(
            [nn.Sequential(*mlp(widths[-1], tower, "tower"), nn.Linear(tower[-1], 1)) for _ in self.schema.labels]
        )

    def deep_logits(self, inputs: Tensor) -> Tensor:
        """Return B x T, each label's from its own tower."""
        shared = self.shared(inputs)
        return torch.cat([tower(shared) for tower in self.towers], dim=1)
