"""GraphModel: a model composed of blocks, written by hand or found by `recloom search`.

    dense  -> features --\\
                          blocks, each of one or two earlier results -> head -> logit
    sparse -> tokens ----/
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recloom.embedding import EmbeddingFactory, FusedEmbeddingBag, bag_configs
from recloom.errors import RecloomError
from recloom.model import RankingModule
from recloom.optim import OptimizerConfig
from recloom.search.program import Program
from recloom.sequence import Histories, SequenceArch, SequenceEncoder
from recloom_rankitect.graph import Graph, from_document
from recloom_rankitect.network import GraphNetwork, stem_features
from recloom_rankitect.plan import Limits, lower, plan, stem_of


def default_optimizer() -> OptimizerConfig:
    """Return Adam for dense layers and row-wise Adagrad for embeddings, with clipping: depths and products vary."""
    return OptimizerConfig(
        dense="Adam", dense_lr=0.002, sparse="rowwise_adagrad", sparse_lr=0.05, sparse_eps=1e-8, clip_norm=5.0
    )


class ComposedModel(RankingModule):
    """A model that is a graph of blocks behind embeddings.

    Args:
        graph: The graph; nodes that do not reach the head are not built.
        schema: Feature schema of the data.
        embedding_dim: Width of embeddings and tokens, D.
        limits: How large results may get.
        embedding: Embedding tables.
        sequence_encoder: Makes one more token of each behaviour history.
        optimizer: Optimizers and learning rates.
    """

    def __init__(
        self,
        graph: Graph,
        schema: dict[str, Any] | None,
        embedding_dim: int,
        limits: Limits,
        embedding: EmbeddingFactory,
        sequence_encoder: Callable[[int, int], SequenceEncoder] | None,
        optimizer: OptimizerConfig | None,
    ) -> None:
        super().__init__(schema, optimizer or default_optimizer())
        if not self.schema.sparse:
            raise RecloomError(f"{type(self).__name__} needs a sparse feature, and the schema has none", "Check it.")
        self.sparse_arch = embedding(bag_configs(self.schema, embedding_dim))
        self.sequence_arch = (
            SequenceArch(self.schema, self.sparse_arch, embedding, sequence_encoder) if sequence_encoder else None
        )
        self.uses_histories = self.sequence_arch is not None
        histories = self.sequence_arch.num_vectors if self.sequence_arch is not None else 0
        self.stem = stem_of(self.schema, self.sparse_arch.output_dim, histories)
        self.plan = plan(graph.pruned(), self.stem, limits)
        self.network = GraphNetwork(self.plan, len(self.schema.labels))

    def program(self) -> Program:
        """Return what the model does for a sample, what encodes histories left out."""
        return lower(self.plan, self.stem, self.schema)

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


class GraphModel(ComposedModel):
    """A model composed of blocks. Nodes that do not reach the head are not built.

    Args:
        schema: Feature schema of the data; filled in from the data module.
        architecture: `nodes` by name, each with its `block`, its `inputs` (earlier nodes, `dense`, `sparse`) and, where
            the block needs one, its `width`; and `head`, the list of results that the logit is made of.
        embedding_dim: Width of embeddings and tokens, D.
        max_features: Results of more features are projected down to so many.
        max_tokens: Results of more tokens are projected down to so many.
        embedding: Embedding tables: FusedEmbeddingBag, or any other EmbeddingBagCollection.
        sequence_encoder: Makes one more token of each behaviour history: TSL, DIN, or any other SequenceEncoder.
            Without one, histories are not used.
        optimizer: Optimizers and learning rates; unset: Adam 0.002, row-wise Adagrad 0.05, gradients clipped to 5.
    """

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        architecture: dict[str, Any] | None = None,
        embedding_dim: int = 16,
        max_features: int = 512,
        max_tokens: int = 32,
        embedding: EmbeddingFactory = FusedEmbeddingBag,
        sequence_encoder: Callable[[int, int], SequenceEncoder] | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        graph = from_document(architecture or EXAMPLE)
        limits = Limits(max_features, max_tokens)
        super().__init__(graph, schema, embedding_dim, limits, embedding, sequence_encoder, optimizer)


EXAMPLE: dict[str, Any] = {
    "nodes": {
        "bottom": {"block": "linear", "inputs": ["dense"], "width": 16},
        "vectors": {"block": "concat", "inputs": ["sparse", "bottom"]},
        "pairs": {"block": "dot", "inputs": ["vectors"]},
        "all": {"block": "concat", "inputs": ["pairs", "bottom"]},
        "hidden": {"block": "linear", "inputs": ["all"], "width": 64},
        "top": {"block": "relu", "inputs": ["hidden"]},
    },
    "head": ["top"],
}
"""A small DLRM, what GraphModel is without an architecture."""
