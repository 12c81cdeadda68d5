"""The towers of MoNN: an MLP beside an attentional factorisation machine, as the paper takes them from EDCN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recloom.embedding import FusedEmbeddingBag, bag_configs
from recloom.linear import Linear
from recloom.model import RankingModule
from recloom.sequence import Histories, SequenceArch, SequenceEncoder

TowerFactory = Callable[[dict[str, Any]], RankingModule]
"""Makes a tower from its side's schema, whose labels stand for what the tower returns: any RankingModule."""


class Tower(RankingModule):
    """An implicit part (MLP), an explicit one (attention over products of pairs) and the inputs, joined linearly.

    Args:
        schema: Schema of the tower's side; its labels are what the tower returns.
        embedding_dim: Width of the embeddings and of the dense features' tokens.
        dense_tokens: Tokens that the dense features are projected to, for the explicit part.
        hidden: Hidden widths of the MLP.
        sequence_encoder: Makes one more token of each history; one that does not look at the candidate.
    """

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        embedding_dim: int = 16,
        dense_tokens: int = 4,
        hidden: Sequence[int] = (128, 64),
        sequence_encoder: Callable[[int, int], SequenceEncoder] | None = None,
    ) -> None:
        super().__init__(schema)
        columns = len(self.schema.dense)
        self.sparse_arch = FusedEmbeddingBag(bag_configs(self.schema, embedding_dim))
        self.sequence_arch = (
            SequenceArch(self.schema, self.sparse_arch, FusedEmbeddingBag, sequence_encoder)
            if sequence_encoder and self.schema.sequences
            else None
        )
        self.uses_histories = self.sequence_arch is not None
        tokens = len(self.schema.sparse) + (self.sequence_arch.num_vectors if self.sequence_arch else 0)
        self.dense_tokens = dense_tokens if columns else 0
        self.dense_arch = Linear(columns, dense_tokens * embedding_dim) if self.dense_tokens else None
        layers: list[nn.Module] = []
        before = columns + tokens * embedding_dim
        for after in hidden:
            layers += [Linear(before, after), nn.ReLU()]
            before = after
        self.implicit = nn.Sequential(*layers)
        self.explicit = AttentionFM(tokens + self.dense_tokens, embedding_dim)
        wide = columns + tokens * embedding_dim
        self.join = Linear(wide + before + self.explicit.output_dim, len(self.schema.labels))

    @torch.no_grad()
    def separate(self, embeddings: Sequence[tuple[int, int]], scale: float = 1.0) -> None:
        """Let each embedding (a span of the output) begin mostly as a projection of one of the schema's vectors.

        Otherwise all embeddings of a user with several interests begin as mixtures of them, learn the same mean
        interest first, and are long in parting. Vectors of one width begin with one projection: with one each, no
        projection of the item's vector suits them all, and which interests are learned depends on the draw. Measured
        in docs/papers/hsnn.md. Embeddings of a side with one vector begin with projections of their own.

        Args:
            embeddings: First and last column (exclusive) of each embedding.
            scale: Of the projection. A small one soon turns to what the other side's projection is.
        """
        vectors = list(self.schema.vectors.values())
        drawn: dict[tuple[int, ...], Tensor] = {}
        for place in range(max(len(embeddings), len(vectors)) if vectors and embeddings else 0):
            start, end = embeddings[place % len(embeddings)]
            columns = vectors[place % len(vectors)]
            bound, shape = 4 * scale / len(columns) ** 0.5, (end - start, len(columns))
            key = shape if len(vectors) > 1 else (*shape, place)
            if key not in drawn:
                drawn[key] = torch.empty(shape).uniform_(-bound, bound)
            self.join.weight[start:end, columns] += drawn[key]

    def forward(
        self,
        dense: Tensor,
        values: Tensor,
        offsets: Tensor | None = None,
        weights: Tensor | None = None,
        histories: Histories | None = None,
    ) -> Tensor:
        """Return B x (number of labels)."""
        tokens = self.sparse_arch(values, offsets, weights)  # B x F x D
        if self.sequence_arch is not None:
            tokens = torch.cat([tokens, self.sequence_arch(self.sparse_arch, tokens, histories)], dim=1)
        wide = torch.cat([dense, tokens.flatten(1)], dim=1)
        if self.dense_arch is not None:
            projected = self.dense_arch(dense).unflatten(1, (self.dense_tokens, -1))
            tokens = torch.cat([tokens, projected], dim=1)
        return self.join(torch.cat([wide, self.implicit(wide), self.explicit(tokens)], dim=1))


class AttentionFM(nn.Module):
    """Attentional factorisation machine (Xiao et al. 2017, arXiv 1708.04617, eqs. 4 to 6): pairs' products, weighted.

    Args:
        tokens: Number of tokens.
        dim: Their width, and that of the output.
    """

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        left, right = torch.triu_indices(tokens, tokens, offset=1)
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)
        self.output_dim = dim if len(left) else 0
        self.attention: nn.Module | None = None
        if len(left) > 1:  # one pair has all the weight
            self.attention = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 1, bias=False))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map B x tokens x D to B x D, or to B x 0 where there is no pair."""
        if not self.output_dim:
            return tokens[:, 0, :0]
        products = tokens[:, self.get_buffer("left")] * tokens[:, self.get_buffer("right")]  # B x pairs x D
        if self.attention is None:
            return products.squeeze(1)
        return (self.attention(products).softmax(dim=1) * products).sum(1)
