"""The cross network of DCN V2, full rank and low rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recloom.model import Interaction


class CrossNet(Interaction):
    """Explicit feature crosses of bounded degree: x_{l+1} = x_0 * (W_l x_l + b_l) + x_l (eq. 1), * elementwise.

    x_0 is all vectors side by side; the output has its width, F D. With a rank, W_l = U_l V_l^T (eq. 2).

    Args:
        layers: Number of cross layers; the highest degree of a cross is layers + 1.
        rank: Rank of the weights; 0 for full rank. The paper finds about a quarter of the width enough.
    """

    def __init__(self, num_vectors: int, embedding_dim: int, layers: int = 3, rank: int = 0) -> None:
        super().__init__(num_vectors, embedding_dim)
        width = num_vectors * embedding_dim
        self.output_dim = width
        self.down = nn.ModuleList([nn.Linear(width, rank, bias=False) for _ in range(layers)] if rank else [])
        self.up = nn.ModuleList([nn.Linear(rank or width, width) for _ in range(layers)])
        for layer in [*self.down, *self.up]:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map B x F x D to B x F D."""
        first = vectors.flatten(1)
        crossed = first
        for index, up in enumerate(self.up):
            hidden = self.down[index](crossed) if self.down else crossed
            crossed = torch.addcmul(crossed, first, up(hidden))
        return crossed
