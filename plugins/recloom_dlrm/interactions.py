"""Feature interactions: dot products (the paper's), concatenation, factorization machine."""

from __future__ import annotations

import torch
from torch import Tensor

from recloom.model import Interaction
from recloom.tracing import is_exporting
from recloom_dlrm.dots import Dots, plain_dots


class DotInteraction(Interaction):
    """The paper's interaction: dot products of all pairs of vectors, after the dense arch's vector.

    Output: [x_0, <x_1, x_0>, <x_2, x_0>, <x_2, x_1>, ...], the strictly lower triangle in row order as in the
    reference implementation; width D + F(F-1)/2, or D + F(F+1)/2 with `itself`.

    Args:
        itself: Also take each vector's product with itself.
    """

    def __init__(self, num_vectors: int, embedding_dim: int, itself: bool = False) -> None:
        super().__init__(num_vectors, embedding_dim)
        self.itself = itself
        self.output_dim = embedding_dim + num_vectors * (num_vectors + (1 if itself else -1)) // 2

    def forward(self, vectors: Tensor) -> Tensor:
        """Map B x F x D to B x (D + pairs)."""
        if torch.compiler.is_compiling() or is_exporting():
            return plain_dots(vectors, self.itself)
        return Dots.apply(vectors, self.itself)  # type: ignore[no-untyped-call]


class ConcatInteraction(Interaction):
    """All vectors side by side; the over arch finds the interactions. Width F D."""

    def __init__(self, num_vectors: int, embedding_dim: int) -> None:
        super().__init__(num_vectors, embedding_dim)
        self.output_dim = num_vectors * embedding_dim

    def forward(self, vectors: Tensor) -> Tensor:
        """Map B x F x D to B x F D."""
        return vectors.flatten(1)


class FMInteraction(Interaction):
    """Second-order factorization machine, kept as a vector (bi-interaction pooling), after the dense arch's vector.

    0.5 ((sum_f v_f)^2 - sum_f v_f^2), elementwise (Rendle 2010, lemma 3.1; He and Chua 2017, eq. 4). Width 2 D.
    """

    def __init__(self, num_vectors: int, embedding_dim: int) -> None:
        super().__init__(num_vectors, embedding_dim)
        self.output_dim = 2 * embedding_dim

    def forward(self, vectors: Tensor) -> Tensor:
        """Map B x F x D to B x 2 D."""
        pooled = 0.5 * (vectors.sum(1).square() - vectors.square().sum(1))
        return torch.cat([vectors[:, 0], pooled], dim=1)
