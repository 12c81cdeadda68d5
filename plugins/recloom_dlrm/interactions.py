"""Feature interactions: dot products (the paper's), concatenation, factorization machine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recloom.model import Interaction


class _PairwiseDots(torch.autograd.Function):
    """Z = T T^t read along the lower triangle; backward is one gather and one product with the symmetric gradient."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, index: Tensor, expand: Tensor) -> Tensor:
        products = torch.bmm(vectors, vectors.transpose(1, 2))  # B x F x F
        ctx.save_for_backward(vectors, expand)
        return products.flatten(1).index_select(1, index)  # B x pairs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        vectors, expand = ctx.saved_tensors
        (gradient,) = gradients
        padded = torch.nn.functional.pad(gradient, (0, 1))  # the last column stands for "not a pair"
        symmetric = padded.index_select(1, expand).view(len(vectors), vectors.shape[1], vectors.shape[1])
        # the diagonal, when kept, is x.x: its derivative 2 x needs the gradient twice
        symmetric.diagonal(dim1=1, dim2=2).mul_(2)
        return torch.bmm(symmetric, vectors), None, None


class DotInteraction(Interaction):
    """The paper's interaction: dot products of all pairs of vectors, after the dense arch's vector.

    Output: [x_0, <x_1, x_0>, <x_2, x_0>, <x_2, x_1>, ...], the strictly lower triangle in row order as in the
    reference implementation; width D + F(F-1)/2, or D + F(F+1)/2 with `itself`.

    Args:
        itself: Also take each vector's product with itself.
    """

    def __init__(self, num_vectors: int, embedding_dim: int, itself: bool = False) -> None:
        super().__init__(num_vectors, embedding_dim)
        rows, columns = torch.tril_indices(num_vectors, num_vectors, 0 if itself else -1)
        pairs = len(rows)
        expand = torch.full((num_vectors, num_vectors), pairs)
        expand[rows, columns] = expand[columns, rows] = torch.arange(pairs)
        self.register_buffer("index", rows * num_vectors + columns, persistent=False)
        self.register_buffer("expand", expand.flatten(), persistent=False)
        self.output_dim = embedding_dim + pairs

    def forward(self, vectors: Tensor) -> Tensor:
        """Map B x F x D to B x (D + pairs)."""
        index, expand = self.get_buffer("index"), self.get_buffer("expand")
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            dots = _PairwiseDots.apply(vectors, index, expand)
        else:
            dots = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, index)
        return torch.cat([vectors[:, 0], dots], dim=1)


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
