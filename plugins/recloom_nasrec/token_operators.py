"""NASRec's operators that give tokens, B x D x N: embedding fully connected, transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from recloom.search.operators import Operator, Pieces, SlicedLinear, SlicedNorm, Slices
from recloom.search.program import Program
from recloom_nasrec.products import Product, lower_norm, norm_slices, normed

HEADS = 8
NORM_SCALE = 0.17  # initial weight of the transformer's normalisations, as published


class EFC(Product):
    """Embedding fully connected: ReLU(norm(W x + b)) along the tokens, the same for each of the D columns.

    Args:
        num_tokens: Number of tokens, N.
        width: Number of output tokens.
        dim: Width of a token, D.
        norm: Whether there is a layer normalisation.
    """

    def __init__(self, num_tokens: int, width: int, dim: int, norm: bool) -> None:
        super().__init__(num_tokens, width, norm)
        self.dim = dim

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add the product, of D vectors, and what follows it."""
        place = self.linear.lower(program, inputs, name, group, self.dim)
        place = lower_norm(self.norm, program, [place], name, group, self.dim)
        return program.add(f"{name}.relu", "elementwise", 1, self.linear.out_features, self.dim, [place], group)


class Transformer(Operator):
    """Tokens projected to `width` tokens, one layer of self-attention among them, two fully connected layers of D.

    Its two normalisations over D stay when `norm` is off, as published.

    Args:
        num_tokens: Number of tokens, N.
        width: Number of output tokens.
        dim: Width of a token, D.
        norm: Whether the projection has a layer normalisation.
    """

    def __init__(self, num_tokens: int, width: int, dim: int, norm: bool) -> None:
        super().__init__()
        self.dim = dim
        self.heads = HEADS if dim % HEADS == 0 else 1
        self.project = SlicedLinear(num_tokens, width, bias=not norm)
        self.norm = SlicedNorm(width) if norm else None
        self.attend = SlicedLinear(dim, 3 * dim)  # queries, keys, values
        self.out = SlicedLinear(dim, dim)
        self.attend_norm = SlicedNorm(dim, NORM_SCALE)
        self.first = SlicedLinear(dim, dim)
        self.second = SlicedLinear(dim, dim)
        self.second_norm = SlicedNorm(dim, NORM_SCALE)

    def forward(self, *inputs: Pieces, width: int, keep: int | None = None) -> Tensor:
        """Return B x D x width of one input, B x D x N.

        Args:
            inputs: The tokens.
            width: Number of output tokens.
            keep: How many of them are not set to zero after the projection; zeros take their share of the softmax.
        """
        x = normed(self.norm, self.project.pieces(inputs[0], slice(0, width)))
        if keep is not None:
            x = x * first(keep, x)
        x = x.transpose(1, 2)  # B x N x D
        batch, tokens, dim = x.shape
        parts = self.attend(x).view(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])  # B x heads x N x D/heads
        x = self.attend_norm(x + self.out(attended.transpose(1, 2).reshape(batch, tokens, dim)))
        x = self.second_norm(x + self.second(F.relu(self.first(x))))
        return x.transpose(1, 2).contiguous()

    def slices(self, *inputs: Pieces, width: int) -> Slices:
        """Return rows and columns of the projection, and all of what works on a token's columns."""
        found = self.project.slices(inputs[0], slice(0, width), "project") | norm_slices(self.norm, slice(0, width))
        for name, layer in self.named_children():
            if name not in ("project", "norm"):
                for label, parameter in layer.named_parameters():
                    found[f"{name}.{label}"] = [tuple(slice(0, size) for size in parameter.shape)]
        return found

    def lower(self, program: Program, inputs: Sequence[int], name: str, group: str) -> int:
        """Add the projection, attention (both its products are dynamic) and the fully connected layers."""
        count = self.project.out_features
        place = self.project.lower(program, inputs, name, group, self.dim)
        x = lower_norm(self.norm, program, [place], name, group, self.dim)
        place = self.attend.lower(program, [x], f"{name}.attend", group, count)
        place = program.add(f"{name}.scores", "dynamic", self.dim, count, count, [place], group)
        place = program.add(f"{name}.softmax", "elementwise", 1, count, count * self.heads, [place], group)
        place = program.add(f"{name}.values", "dynamic", count, self.dim, count, [place], group)
        place = self.out.lower(program, [place], f"{name}.out", group, count)
        x = self.attend_norm.lower(program, [place, x], f"{name}.attend_norm", group, count)
        place = self.first.lower(program, [x], f"{name}.first", group, count)
        place = self.second.lower(program, [place], f"{name}.second", group, count)
        return self.second_norm.lower(program, [place, x], f"{name}.second_norm", group, count)


def first(keep: int, x: Tensor) -> Tensor:
    """Return ones for the first `keep` of x's last dimension, zeros for the others."""
    return (torch.arange(x.shape[-1], device=x.device) < keep).to(x.dtype)
