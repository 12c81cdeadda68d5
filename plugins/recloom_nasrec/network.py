"""The part of NASRec's models that comes after the embeddings: blocks and a head, of a model or of a supernet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from recloom.errors import RecloomError
from recloom.features import FeatureSchema
from recloom.search.operators import whole
from recloom_nasrec.architecture import Architecture, Live, liveness
from recloom_nasrec.blocks import ChoiceBlock, Form, paired_tokens
from recloom_nasrec.mergers import SPLITS, Head
from recloom_nasrec.walk import Walk


class Stem(NamedTuple):
    """What the blocks start from.

    Args:
        features: Width of the dense features; 1, of zeros, if there are none.
        tokens: Number of vectors: sparse features, and histories if they are encoded.
    """

    features: int
    tokens: int


def sizes_of(schema: FeatureSchema, histories: int = 0) -> Stem:
    """Return the sizes of the stem for data of `schema`.

    Raises:
        RecloomError: There is nothing to make tokens of.
    """
    if not schema.sparse:
        raise RecloomError("NASRec needs at least one sparse feature, and the schema has none", "Check the data.")
    return Stem(max(1, len(schema.dense)), len(schema.sparse) + histories)


class NASRecNetwork(nn.Module):
    """The blocks and the head of an architecture, each at its size; what does not reach the head is not built.

    Args:
        architecture: The architecture.
        stem: Sizes of the inputs.
        dim: Width of a token, D.
        norm: Whether there are layer normalisations.
        form: See `recloom_nasrec.blocks.Form`.
        tasks: Number of logits, T.
        live: What is built; by default what reaches the head.
        pairs: Tokens that every dot product pairs; by default what suits each one's width.
    """

    def __init__(
        self,
        architecture: Architecture,
        stem: Stem,
        dim: int,
        norm: bool = False,
        form: Form = "joint",
        tasks: int = 1,
        live: Sequence[Live] | None = None,
        pairs: int | None = None,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.stem = stem
        live = liveness(architecture) if live is None else live
        features, tokens = [stem.features], [stem.tokens]
        blocks = []
        for block, mine in zip(architecture, live[1:], strict=True):
            count = paired_tokens(block.dense_dim) if pairs is None else pairs
            blocks.append(ChoiceBlock(block, features, tokens, dim, norm, form, count, mine))
            features.append(block.dense_dim)
            tokens.append(block.sparse_dim + SPLITS * block.interact)
        self.blocks: Sequence[ChoiceBlock] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.head = Head(features[-1], tokens[-1], dim, tasks)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Return B x T logits.

        Args:
            features: B x (dense features).
            tokens: B x N x D embedding vectors.
        """
        walk = Walk(self.blocks, self.architecture, (features, tokens.transpose(1, 2)))
        last = len(self.architecture)
        return self.head(whole(walk(("features", last))), whole(walk(("tokens", last))), width=self.head.sizes[3])


def stem_features(dense: Tensor) -> Tensor:
    """Return B x d; a column of zeros where there are no dense features (as published for Avazu)."""
    return dense if dense.shape[1] else dense.new_zeros(dense.shape[0], 1)
