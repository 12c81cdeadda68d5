"""NASRecNet: a model of NASRec's space (arXiv 2207.07187), published or found by `recloom search`.

    dense  -> features --\\
                          blocks, each: (features, tokens) of earlier blocks -> features, tokens -> head -> logit
    sparse -> tokens ----/
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from recloom.embedding import EmbeddingFactory, FusedEmbeddingBag, bag_configs
from recloom.model import RankingModule
from recloom.optim import OptimizerConfig
from recloom.sequence import Histories, SequenceArch, SequenceEncoder
from recloom_nasrec.architecture import load
from recloom_nasrec.network import NASRecNetwork, sizes_of, stem_features


def published_optimizer(lr: float = 0.16) -> OptimizerConfig:
    """Return the Adagrad that the published models were trained with; elementwise, for embeddings too."""
    return OptimizerConfig(
        dense="Adagrad", dense_lr=lr, dense_options={"eps": 1e-2}, sparse="adagrad", sparse_lr=lr, sparse_eps=1e-2
    )


class NASRecNet(RankingModule):
    """A model of NASRec's space. Blocks that do not reach the logit are not built.

    Args:
        schema: Feature schema of the data; filled in from the data module.
        architecture: Its blocks; or a YAML or JSON file with them; or a published one: criteo_small, criteo_full,
            avazu_small, avazu_full, kdd_small, kdd_full.
        embedding_dim: Width of embeddings and tokens, D.
        layer_norm: Whether operators have layer normalisations; the published models have none.
        embedding: Embedding tables: FusedEmbeddingBag, or any other EmbeddingBagCollection.
        sequence_encoder: Makes one more token of each behaviour history: TSL, DIN, or any other SequenceEncoder.
            Without one, histories are not used.
        optimizer: Optimizers and learning rates; unset: Adagrad as published, learning rate 0.16 and eps 0.01.
        form: "joint": as the published models are. "apart": as a part of a supernet computes it, whose weights it takes
            (`recloom_nasrec.materialise`).
        pairs: Tokens that every dot product pairs; unset: about the root of twice its width.
    """

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        architecture: dict[str, Any] | str = "criteo_small",
        embedding_dim: int = 16,
        layer_norm: bool = False,
        embedding: EmbeddingFactory = FusedEmbeddingBag,
        sequence_encoder: Callable[[int, int], SequenceEncoder] | None = None,
        optimizer: OptimizerConfig | None = None,
        form: Literal["joint", "apart"] = "joint",
        pairs: int | None = None,
    ) -> None:
        super().__init__(schema, optimizer or published_optimizer())
        sizes = sizes_of(self.schema)
        self.sparse_arch = embedding(bag_configs(self.schema, embedding_dim))
        self.sequence_arch = (
            SequenceArch(self.schema, self.sparse_arch, embedding, sequence_encoder) if sequence_encoder else None
        )
        self.uses_histories = self.sequence_arch is not None
        if self.sequence_arch is not None:
            sizes = sizes_of(self.schema, self.sequence_arch.num_vectors)
        self.network = NASRecNetwork(
            load(architecture),
            sizes,
            self.sparse_arch.output_dim,
            layer_norm,
            form,
            tasks=len(self.schema.labels),
            pairs=pairs,
        )

    def forward(
        self,
        dense: Tensor,
        values: Tensor,
        offsets: Tensor | None = None,
        weights: Tensor | None = None,
        histories: Histories | None = None,
    ) -> Tensor:
        """Return B logits, or B x T when the schema has T > 1 labels; see DLRM for the arguments.

        Args:
            dense: B x (dense features).
            values: N ids, key-major.
            offsets: F*B+1 bag bounds, or None for one-hot data.
            weights: N value weights, or None.
            histories: The padded histories, if there is a sequence_encoder.
        """
        tokens = self.sparse_arch(values, offsets, weights)  # B x F x D
        if self.sequence_arch is not None:
            tokens = torch.cat([tokens, self.sequence_arch(self.sparse_arch, tokens, histories)], dim=1)
        logits = self.network(stem_features(dense), tokens)  # B x T
        return logits.squeeze(1) if logits.shape[1] == 1 else logits
