"""The slot `interaction` of a model: what combines a sample's vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn


class Interaction(nn.Module, ABC):
    """Combines a sample's vectors into one: the slot `interaction` of a model.

    Args:
        num_vectors: Number of vectors a sample, F. Vector 0 is the dense arch's output where a model has one.
        embedding_dim: Their width, D.
    """

    output_dim: int
    """Width of the output; set by the subclass's constructor."""

    def __init__(self, num_vectors: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_vectors = num_vectors
        self.embedding_dim = embedding_dim

    @abstractmethod
    def forward(self, vectors: Tensor) -> Tensor:
        """Map B x F x D to B x output_dim."""


InteractionFactory = Callable[[int, int], Interaction]
