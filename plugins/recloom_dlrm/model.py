"""DLRM, the model of the paper (arXiv 1906.00091, section 2).

    dense  -> dense_arch (bottom MLP) ----\\
                                           inter_arch -> over_arch (top MLP) -> logit
    sparse -> sparse_arch (embeddings) ---/
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from recloom.embedding import EmbeddingFactory, FusedEmbeddingBag, Pooling, bag_configs
from recloom.errors import RecloomError
from recloom.model import Interaction, RankingModule
from recloom.optim import OptimizerConfig
from recloom.sequence import Histories, SequenceArch, SequenceEncoder
from recloom_dlrm.interactions import DotInteraction
from recloom_dlrm.layers import MLP


class DLRM(RankingModule):
    """Deep learning recommendation model: dense arch, embeddings, pairwise interaction, over arch.

    Args:
        schema: Feature schema of the data; filled in from the data module.
        embedding_dim: Width of the embeddings, D, and of the dense arch's output.
        dense_arch: Hidden widths of the bottom MLP; its last layer, of width D, is added to them.
        over_arch: Hidden widths of the top MLP; its last layer, the logits, is added to them.
        interaction: How the vectors are combined: DotInteraction (the paper's), ConcatInteraction, FMInteraction,
            CrossNet, or any other Interaction.
        embedding: Embedding tables: FusedEmbeddingBag, or any other EmbeddingBagCollection.
        sequence_encoder: Makes one more vector of each behaviour history: TSL, DIN, or any other SequenceEncoder.
            Without one, histories are not used.
        pooling: Pooling of bags: sum, mean, or weighted (a weighted sum; the data must have value weights).
        optimizer: Optimizers and learning rates.
    """

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        embedding_dim: int = 16,
        dense_arch: Sequence[int] = (512, 256, 64),
        over_arch: Sequence[int] = (512, 256),
        interaction: Callable[[int, int], Interaction] = DotInteraction,
        embedding: EmbeddingFactory = FusedEmbeddingBag,
        sequence_encoder: Callable[[int, int], SequenceEncoder] | None = None,
        pooling: Pooling = "sum",
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(schema, optimizer)
        if not self.schema.sparse:
            raise RecloomError("DLRM needs at least one sparse feature, and the schema has none", "Check the data.")
        self.sparse_arch = embedding(bag_configs(self.schema, embedding_dim, pooling))
        width = self.sparse_arch.output_dim
        has_dense = bool(self.schema.dense)
        self.dense_arch = MLP(len(self.schema.dense), [*dense_arch, width], last_relu=True) if has_dense else None
        self.sequence_arch = (
            SequenceArch(self.schema, self.sparse_arch, embedding, sequence_encoder) if sequence_encoder else None
        )
        self.uses_histories = self.sequence_arch is not None
        histories = self.sequence_arch.num_vectors if self.sequence_arch is not None else 0
        self.inter_arch = interaction(self.sparse_arch.num_features + histories + int(has_dense), width)
        self.over_arch = MLP(self.inter_arch.output_dim, [*over_arch, len(self.schema.labels)], last_relu=False)

    def forward(
        self,
        dense: Tensor,
        values: Tensor,
        offsets: Tensor | None = None,
        weights: Tensor | None = None,
        histories: Histories | None = None,
    ) -> Tensor:
        """Return B logits, or B x T when the schema has T > 1 labels.

        Args:
            dense: B x (dense features).
            values: N ids, key-major.
            offsets: F*B+1 bag bounds, or None for one-hot data.
            weights: N value weights, or None.
            histories: The padded histories, if there is a sequence_encoder.
        """
        finish = self.sparse_arch.start(values, offsets, weights)  # sharded tables: rows travel during the dense arch
        bottom = None if self.dense_arch is None else self.dense_arch(dense)  # B x D
        vectors = finish()  # B x F x D
        if self.sequence_arch is not None:
            encoded = self.sequence_arch(self.sparse_arch, vectors, histories)  # B x S x D
            vectors = torch.cat([vectors, encoded], dim=1)  # B x (F+S) x D
        if bottom is not None:
            vectors = torch.cat([bottom.unsqueeze(1).to(vectors.dtype), vectors], dim=1)  # B x (1+F+S) x D
        logits = self.over_arch(self.inter_arch(vectors))  # B x T
        return logits.squeeze(1) if logits.shape[1] == 1 else logits
