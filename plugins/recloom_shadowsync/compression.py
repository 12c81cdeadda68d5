"""Compression of what is exchanged: bf16, or int8 by blocks with error feedback."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Compression = Literal["none", "bf16", "int8"]
BLOCK = 256


def encode(values: Tensor, kind: Compression) -> Tensor:
    """Return each row of `values`, rows x N float32, as bytes, rows x `encoded_bytes(N)`.

    bf16: 2 N. int8: the values of each block of 256 as multiples of 1/127 of its largest magnitude; 4 bytes for that
    and 256 for the multiples.
    """
    if kind == "none":
        return values.contiguous().view(torch.uint8)
    if kind == "bf16":
        return values.to(torch.bfloat16).view(torch.uint8)
    rows, length = values.shape
    blocks = F.pad(values, (0, -length % BLOCK)).view(rows, -1, BLOCK)
    scale = blocks.abs().amax(2, keepdim=True).div_(127).clamp_(min=torch.finfo(torch.float32).tiny)
    multiples = blocks.div(scale).round_().to(torch.int8)
    return torch.cat([scale.view(rows, -1).view(torch.uint8), multiples.view(rows, -1).view(torch.uint8)], dim=1)


def decode(data: Tensor, kind: Compression, length: int) -> Tensor:
    """Return the values that `encode` wrote, rows x `length` float32."""
    if kind == "none":
        return data.contiguous().view(torch.float32)
    if kind == "bf16":
        return data.contiguous().view(torch.bfloat16).to(torch.float32)
    blocks = -(-length // BLOCK)
    scale = data[:, : 4 * blocks].contiguous().view(torch.float32)[:, :, None]
    return (data[:, 4 * blocks :].view(torch.int8).reshape(len(data), blocks, BLOCK) * scale).flatten(1)[:, :length]


def encoded_bytes(length: int, kind: Compression) -> int:
    """Return how many bytes `encode` makes of `length` values."""
    if kind == "int8":
        return -(-length // BLOCK) * (BLOCK + 4)
    return length * (2 if kind == "bf16" else 4)


class Feedback:
    """Error feedback (Seide et al. 2014): what compression left out of one message is added to the next.

    Args:
        kind: The compression.
        carry: The share of the error that is added. Of a replica's weights the part 1 - alpha of what was not sent is
            still there when the next copy is taken, so only alpha of it has been lost.
    """

    def __init__(self, kind: Compression, carry: float = 1.0) -> None:
        self.kind: Compression = kind
        self.carry = carry
        self._error: Tensor | None = None

    def encode(self, values: Tensor) -> Tensor:
        """Return the bytes of `values`, rows x N, plus what is owed; remember what these leave out."""
        wanted = values if self._error is None else values + self._error
        data = encode(wanted, self.kind)
        if self.kind != "none":
            self._error = (wanted - decode(data, self.kind, wanted.shape[1])).mul_(self.carry)
        return data

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is owed."""
        return {} if self._error is None else {"error": self._error}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what is owed."""
        self._error = state["error"].clone() if "error" in state else None
