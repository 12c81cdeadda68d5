"""The compiled CPU engine: knn.c through ctypes."""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_int, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from recloom import native
from recloom.errors import RecloomError
from recloom_distkernels.knn import KnnEngine

_JOB_ROWS = 1024
_BOTH_K = 5  # neighbours that `both` keeps in registers
_DIMS, _SIZES = 16, (100.0, 20_000.0)  # where `both` pays, as measured


class NativeKnn(KnnEngine):
    """Direct differences in vector registers, the k least kept by a network of minima and maxima; torch's threads."""

    def __init__(self) -> None:
        if not self.available():
            raise RecloomError("the compiled k-NN engine is not available here", "Use --engine torch or faiss.")

    @staticmethod
    def available() -> bool:
        """Whether there is a C compiler, or what it compiled before (and RECLOOM_NATIVE is not 0)."""
        return _library() is not None

    def search(self, queries: Tensor, targets: Tensor, bounds: Tensor, k: int, first: int | None = None) -> Tensor:
        """Return T x k x N squared distances; see KnnEngine."""
        starts = torch.arange(0, len(queries), _JOB_ROWS)
        sets = len(bounds) - 1
        jobs = torch.stack(
            [
                starts,
                (starts + _JOB_ROWS).clamp(max=len(queries)),
                torch.zeros_like(starts),
                torch.full_like(starts, sets),
                torch.zeros_like(starts),
            ],
            dim=1,
        )
        out = queries.new_empty(sets, k, len(queries))
        _call(queries, targets, bounds, jobs, k, first, out, k * len(queries))
        return out

    def own(self, values: Tensor, offsets: Tensor, k: int) -> Tensor:
        """Return k x N squared distances; see KnnEngine."""
        sets = torch.arange(len(offsets) - 1)
        jobs = torch.stack([offsets[:-1], offsets[1:], sets, sets + 1, sets], dim=1)
        out = values.new_empty(k, len(values))
        _call(values, values, offsets, jobs, k, 0, out, 0)
        return out

    def halves(self, dim: int, k: int, sizes: Tensor) -> bool:
        """Whether `both` takes less time than two searches: distances are costly, and sets fill the registers."""
        return dim >= _DIMS and k <= _BOTH_K and _SIZES[0] <= float(sizes.double().mean()) <= _SIZES[1]

    def both(self, x: Tensor, x_bounds: Tensor, y: Tensor, y_bounds: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return T x k x N and S x k x M squared distances, each distance computed once; see KnnEngine."""
        if k > _BOTH_K:
            return super().both(x, x_bounds, y, y_bounds, k)
        s, t = len(x_bounds) - 1, len(y_bounds) - 1
        sets = torch.arange(s)
        jobs = torch.stack([x_bounds[:-1], x_bounds[1:], torch.zeros_like(sets), torch.full_like(sets, t), sets], dim=1)
        there, back = x.new_empty(t, k, len(x)), x.new_empty(s, k, len(y))
        _call(x, y, y_bounds, jobs, k, None, there, k * len(x), back)
        return there, back


class _Arguments(ctypes.Structure):
    """Arguments of knn.c: the same fields in the same order."""

    _fields_ = [
        ("queries", c_void_p),
        ("targets", c_void_p),
        ("bounds", c_void_p),
        ("jobs", c_void_p),
        ("jobs_count", c_int64),
        ("dim", c_int64),
        ("k", c_int64),
        ("excludes", c_int64),
        ("first", c_int64),
        ("out", c_void_p),
        ("set_stride", c_int64),
        ("rank_stride", c_int64),
        ("back", c_void_p),
        ("back_set_stride", c_int64),
        ("back_rank_stride", c_int64),
    ]


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = native.load("knn.c", Path(__file__).resolve().parent)
    if library is not None:
        for function in (library.knn_f32, library.knn_f64, library.knn_both_f32, library.knn_both_f64):
            function.argtypes = [ctypes.POINTER(_Arguments), c_int]
            function.restype = c_int
    return library


def _call(
    queries: Tensor,
    targets: Tensor,
    bounds: Tensor,
    jobs: Tensor,
    k: int,
    first: int | None,
    out: Tensor,
    set_stride: int,
    back: Tensor | None = None,
) -> None:
    queries, targets, bounds, jobs = (t.detach().contiguous() for t in (queries, targets, bounds, jobs))
    arguments = _Arguments(
        queries.data_ptr(),
        targets.data_ptr(),
        bounds.data_ptr(),
        jobs.data_ptr(),
        len(jobs),
        queries.shape[1],
        k,
        int(first is not None),
        first or 0,
        out.data_ptr(),
        set_stride,
        len(queries),
        0 if back is None else back.data_ptr(),
        0 if back is None else k * len(targets),
        len(targets),
    )
    library = _library()
    assert library is not None
    assert queries.dtype == targets.dtype == out.dtype
    kind = "f32" if queries.dtype == torch.float32 else "f64"
    function = getattr(library, f"knn_{kind}" if back is None else f"knn_both_{kind}")
    if function(arguments, torch.get_num_threads()):
        raise MemoryError("no memory left for a block of queries")
