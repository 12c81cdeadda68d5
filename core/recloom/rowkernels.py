"""Calls of the native embedding kernels (native/embedding.c); their arguments are checked by the callers."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import c_float, c_int, c_int64, c_void_p
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recloom import native
from recloom.rowlayout import RowLayout

if TYPE_CHECKING:
    from recloom.rowgrad import RowGradient

BAD_OFFSETS = -2
RULES = {"sgd": 0, "rowwise_adagrad": 1, "adagrad": 2}


class _Bags(ctypes.Structure):
    """Bags of embedding.c: the same fields in the same order."""

    _fields_ = [
        ("ids", c_void_p),
        ("offsets", c_void_p),
        ("weights", c_void_p),
        ("bags", c_void_p),
        ("row_stride", c_int64),
        ("feature_stride", c_int64),
        ("base", c_void_p),
        ("rows", c_void_p),
        ("mode", c_void_p),
        ("table", c_void_p),
        ("features", c_int64),
        ("batch", c_int64),
        ("values", c_int64),
    ]


def available(weight: Tensor, ids: Tensor) -> Kernels | None:
    """Return the kernels, when these tensors can be handed to them: on CPU, float32 rows, int64 ids."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or ids.dtype != torch.int64:
        return None
    if type(ids) is not Tensor and not isinstance(ids, torch.nn.Parameter):
        return None
    return _kernels() if weight.is_contiguous() else None


@functools.cache
def _kernels() -> Kernels | None:
    library = native.load("embedding.c")
    return None if library is None else Kernels(library)


def advise_huge_pages(weight: Tensor) -> None:
    """Ask the system for huge pages under a large, not yet written CPU weight."""
    if weight.device.type == "cpu" and (kernels := _kernels()):
        kernels.library.recloom_advise_huge_pages(weight.data_ptr(), weight.nbytes)


class Kernels:
    """The kernels of embedding.c as functions of tensors."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        bags = ctypes.POINTER(_Bags)
        library.recloom_pool.argtypes = [bags, c_void_p, c_int64, c_int]
        library.recloom_pool.restype = c_int64
        library.recloom_weight_gradient.argtypes = [bags, c_void_p, c_void_p, c_int64, c_int]
        library.recloom_weight_gradient.restype = None
        library.recloom_update.argtypes = [
            *(bags, c_int64, c_void_p, c_void_p, c_int64, c_int64, c_int, c_float, c_float, c_int)
        ]
        library.recloom_update.restype = c_int
        library.recloom_advise_huge_pages.argtypes = [c_void_p, c_int64]
        library.recloom_advise_huge_pages.restype = None

    def pool(
        self, weight: Tensor, ids: Tensor, offsets: Tensor | None, weights: Tensor | None, layout: RowLayout
    ) -> tuple[Tensor, int]:
        """Return (B x F x D pooled rows, the first position of an id outside its table, -1, or BAD_OFFSETS)."""
        batch = (len(ids) if offsets is None else len(offsets) - 1) // layout.num_features
        out = torch.empty(batch, layout.num_features, weight.shape[1])
        held = _hold(ids, offsets, weights)
        bags = _bags(*held, out, layout)
        bad = self.library.recloom_pool(bags, weight.data_ptr(), weight.shape[1], torch.get_num_threads())
        return out, bad

    def weight_gradient(
        self, weight: Tensor, ids: Tensor, offsets: Tensor | None, bags: Tensor, layout: RowLayout
    ) -> Tensor:
        """Return the N gradients of the value weights."""
        out = torch.empty(len(ids))
        held = _hold(ids, offsets, None)
        filled = _bags(*held, bags, layout)
        self.library.recloom_weight_gradient(
            filled, weight.data_ptr(), out.data_ptr(), weight.shape[1], torch.get_num_threads()
        )
        return out

    def update(
        self, weight: Tensor, state: Tensor | None, gradients: Sequence[RowGradient], rule: str, lr: float, eps: float
    ) -> None:
        """Apply row gradients to `weight` and `state`, in place."""
        held = [_hold(g.ids, g.offsets, g.weights) for g in gradients]
        bags = (_Bags * len(gradients))(*(_bags(*h, g.bags, g.layout) for h, g in zip(held, gradients, strict=True)))
        tables = 1 + max(max(g.layout.table) for g in gradients)
        failed = self.library.recloom_update(
            bags,
            len(gradients),
            weight.data_ptr(),
            None if state is None else state.data_ptr(),
            weight.shape[1],
            tables,
            RULES[rule],
            lr,
            eps,
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError(f"no memory left to update rows from {sum(len(g.ids) for g in gradients)} gradients")


def _hold(ids: Tensor, offsets: Tensor | None, weights: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the tensors in the form that the kernels read; the caller keeps them alive during the call."""
    return (
        ids.contiguous(),
        None if offsets is None else offsets.to(torch.int64).contiguous(),
        None if weights is None else weights.detach().to(torch.float32).contiguous(),
    )


def _bags(ids: Tensor, offsets: Tensor | None, weights: Tensor | None, bags: Tensor, layout: RowLayout) -> _Bags:
    pointers = layout.pointers()
    return _Bags(
        ids.data_ptr(),
        None if offsets is None else offsets.data_ptr(),
        None if weights is None else weights.data_ptr(),
        bags.data_ptr(),
        bags.stride(0),
        bags.stride(1),
        *pointers,
        layout.num_features,
        bags.shape[0],
        ids.shape[0],
    )
