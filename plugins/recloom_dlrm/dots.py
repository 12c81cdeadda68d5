"""The dot interaction's computation: one native kernel each way on CPU, plain torch operations elsewhere."""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from recloom import native


def plain_dots(vectors: Tensor, itself: bool) -> Tensor:
    """Return [x_0, <x_i, x_j> for j < i (or j <= i)], B x (D + pairs), by operations that export."""
    rows, columns = torch.tril_indices(vectors.shape[1], vectors.shape[1], 0 if itself else -1, device=vectors.device)
    products = torch.bmm(vectors, vectors.transpose(1, 2))  # B x F x F
    dots = products.flatten(1).index_select(1, rows * vectors.shape[1] + columns)  # B x pairs
    return torch.cat([vectors[:, 0].to(dots.dtype), dots], dim=1)


class Dots(torch.autograd.Function):
    """[x_0, <x_i, x_j>] as `plain_dots`; under autocast the output has autocast's type, the products float32's sums."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, itself: bool) -> Tensor:
        """Map B x F x D to B x (D + pairs)."""
        kind = vectors.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else vectors.dtype
        ctx.itself = itself
        ctx.save_for_backward(vectors)
        if not _native(vectors, dtype):
            return plain_dots(vectors.to(dtype), itself)
        vectors = vectors if vectors.stride(2) == 1 else vectors.contiguous()
        pairs = vectors.shape[1] * (vectors.shape[1] + (1 if itself else -1)) // 2
        out = torch.empty(vectors.shape[0], vectors.shape[2] + pairs, dtype=dtype)
        _call("dots_forward", vectors, out, None, itself)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Map the gradient of the output to that of the vectors."""
        (vectors,) = ctx.saved_tensors
        if not _native(vectors, gradient.dtype):
            return plain_gradient(vectors, gradient, ctx.itself), None
        vectors = vectors if vectors.stride(2) == 1 else vectors.contiguous()
        gradient = gradient if gradient.stride(1) == 1 else gradient.contiguous()
        out = torch.empty(vectors.shape)
        _call("dots_backward", vectors, gradient, out, ctx.itself)
        return out, None


def plain_gradient(vectors: Tensor, gradient: Tensor, itself: bool) -> Tensor:
    """Return the vectors' gradient: one gather of the pairs into a symmetric matrix and one product with it."""
    count, dim = vectors.shape[1], vectors.shape[2]
    rows, columns = torch.tril_indices(count, count, 0 if itself else -1, device=vectors.device)
    pairs = len(rows)
    place = torch.full((count, count), pairs, device=vectors.device)
    place[rows, columns] = place[columns, rows] = torch.arange(pairs, device=vectors.device)
    padded = F.pad(gradient[:, dim:], (0, 1))  # the last column stands for "not a pair"
    symmetric = padded.index_select(1, place.flatten()).view(-1, count, count)
    # the diagonal, when kept, is x.x: its derivative 2 x needs the gradient twice
    symmetric.diagonal(dim1=1, dim2=2).mul_(2)
    out = torch.bmm(symmetric, vectors.to(symmetric.dtype)).to(vectors.dtype)
    out[:, 0] += gradient[:, :dim]
    return out


class _Arguments(ctypes.Structure):
    """Arguments of interactions.c: the same fields in the same order."""

    _fields_ = [
        ("vectors", c_void_p),
        ("batch", c_int64),
        ("count", c_int64),
        ("dim", c_int64),
        ("sample_stride", c_int64),
        ("vector_stride", c_int64),
        ("output", c_void_p),
        ("output_stride", c_int64),
        ("gradient", c_void_p),
        ("bfloat16", c_int64),
        ("itself", c_int64),
    ]


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = native.load("interactions.c", Path(__file__).parent)
    if library is not None:
        for function in (library.dots_forward, library.dots_backward):
            function.argtypes = [ctypes.POINTER(_Arguments), c_int]
            function.restype = c_int
    return library


def _native(vectors: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernel takes these vectors, with an output (or its gradient) of type `dtype`."""
    return (
        vectors.device.type == "cpu"
        and vectors.dtype == torch.float32
        and dtype in (torch.float32, torch.bfloat16)
        and vectors.shape[2] % 8 == 0
        and _library() is not None
    )


def _call(name: str, vectors: Tensor, output: Tensor, gradient: Tensor | None, itself: bool) -> None:
    arguments = _Arguments(
        vectors.data_ptr(),
        *vectors.shape,
        vectors.stride(0),
        vectors.stride(1),
        output.data_ptr(),
        output.stride(0),
        None if gradient is None else gradient.data_ptr(),
        int(output.dtype == torch.bfloat16),
        int(itself),
    )
    if getattr(_library(), name)(arguments, torch.get_num_threads()):
        raise MemoryError(f"no memory left for the products of {vectors.shape[1]} vectors")
