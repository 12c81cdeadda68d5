"""SampleSets: many sets of points of one space, each of its own size, as one stacked tensor and offsets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recloom.errors import DataError


class SampleSets:
    """S sets of d-dimensional points, stacked: set i is rows offsets[i] .. offsets[i+1]-1 of `values`.

    Args:
        values: N x d points, float32 or float64; what is computed of them keeps that precision.
        offsets: S+1 bounds, int64.
        names: A name for each set; by default their numbers. Messages and outputs use them.

    Raises:
        DataError: There is no set, a set is empty, or a value is NaN or infinite.
    """

    def __init__(self, values: Tensor, offsets: Tensor, names: Sequence[Any] | None = None) -> None:
        if values.ndim != 2 or values.dtype not in (torch.float32, torch.float64):
            raise DataError(
                f"sample sets are N x d points of float32 or float64, and these are {values.dtype}, "
                f"{' x '.join(map(str, values.shape))}",
                "A set of single numbers is n x 1.",
            )
        self.values = values.contiguous()
        self.offsets = offsets.to(torch.int64).cpu()
        self.names = list(range(len(offsets) - 1)) if names is None else list(names)
        self._check()

    @classmethod
    def from_list(cls, sets: Sequence[Any], names: Sequence[Any] | None = None) -> SampleSets:
        """Stack sets of n_i x d points (arrays, tensors or nested lists), or of n_i numbers.

        The sets are float32 if all of them are; any other kind of number makes them float64.

        Raises:
            DataError: There is no set, or their widths differ; see also the constructor.
        """
        arrays = [np.asarray(one.detach().cpu() if isinstance(one, Tensor) else one) for one in sets]
        arrays = [array[:, None] if array.ndim == 1 else array for array in arrays]
        labels = list(range(len(arrays))) if names is None else list(names)
        if not arrays:
            raise DataError("there are no sets", "Give at least one set of points.")
        for label, array in zip(labels, arrays, strict=True):
            if array.ndim != 2:
                raise DataError(f"set {label!r} has {array.ndim} axes", "A set is n x d points.")
            if array.shape[1] != arrays[0].shape[1]:
                raise DataError(
                    f"set {label!r} has points of {array.shape[1]} dimensions, set {labels[0]!r} of "
                    f"{arrays[0].shape[1]}",
                    "All points lie in one space: use the same columns for every set.",
                )
        kind = np.float32 if all(array.dtype == np.float32 for array in arrays) else np.float64
        offsets = np.cumsum([0, *map(len, arrays)])
        stacked = np.concatenate(arrays).astype(kind, copy=False)
        return cls(torch.from_numpy(stacked), torch.from_numpy(offsets), labels)

    @classmethod
    def of(cls, sets: Any) -> SampleSets:
        """Return `sets` if it is one, else `from_list(sets)`."""
        return sets if isinstance(sets, SampleSets) else cls.from_list(sets)

    @classmethod
    def from_ids(cls, vectors: Tensor, ids: Tensor, offsets: Tensor, names: Sequence[Any] | None = None) -> SampleSets:
        """Return sets of rows of a table: users as the sets of the vectors of their items.

        Args:
            vectors: V x d, a row an item (an embedding table).
            ids: N row numbers, those of the first set, then those of the second, ...
            offsets: S+1 bounds of the sets in `ids`.
            names: A name for each set.
        """
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(vectors):
            wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise DataError(f"there is an item {wrong}, and vectors of {len(vectors):,} items", "Give all vectors.")
        return cls(vectors.detach()[ids], offsets, names)

    @property
    def dim(self) -> int:
        """Dimension of the points, d."""
        return self.values.shape[1]

    @property
    def sizes(self) -> Tensor:
        """S numbers of points."""
        return self.offsets.diff()

    @property
    def points(self) -> int:
        """Number of points of all sets, N."""
        return len(self.values)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Tensor:
        """Return set `index`: n x d, a view."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} sets, and no set {index}")
        index %= len(self)
        return self.values[int(self.offsets[index]) : int(self.offsets[index + 1])]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def select(self, index: Any) -> SampleSets:
        """Return the sets numbered `index` (ints, or S booleans), in that order."""
        chosen = np.arange(len(self))[np.asarray(index)]
        bounds, sizes = self.offsets.numpy(), self.sizes.numpy()[chosen]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        rows = np.repeat(bounds[chosen] - offsets[:-1], sizes) + np.arange(offsets[-1])
        names = [self.names[i] for i in chosen]
        return SampleSets(self.values[torch.from_numpy(rows).to(self.values.device)], torch.from_numpy(offsets), names)

    def slice(self, start: int, end: int) -> SampleSets:
        """Return sets start .. end-1 as a view."""
        first, last = int(self.offsets[start]), int(self.offsets[end])
        return SampleSets(self.values[first:last], self.offsets[start : end + 1] - first, self.names[start:end])

    def to(self, target: torch.device | str | torch.dtype) -> SampleSets:
        """Return a copy on a device, or of another precision."""
        return SampleSets(self.values.to(target), self.offsets, self.names)

    def fingerprint(self) -> str:
        """Return a hash of the points and of how they are divided; names don't matter."""
        digest = hashlib.sha256(f"{self.dim} {self.values.dtype}".encode())
        digest.update(self.offsets.numpy().tobytes())
        digest.update(self.values.detach().cpu().numpy().data)
        return digest.hexdigest()

    def check_neighbours(self, k: int, own: bool) -> None:
        """Raise DataError if a set has too few points for a k-th neighbour; in its `own` set a point isn't its own."""
        least = k + own
        if int(self.sizes.min()) < least:
            worst = int(self.sizes.argmin())
            raise DataError(
                f"set {self.names[worst]!r} has {int(self.sizes[worst])} points, and neighbour {k} needs "
                f"{least}; {int((self.sizes < least).sum())} of {len(self)} sets are so small",
                "Leave small sets out, or take a smaller k, MMD or random features.",
            )

    def _check(self) -> None:
        if len(self) < 1:
            raise DataError("there are no sets", "Give at least one set of points.")
        if len(self.names) != len(self):
            raise DataError(f"{len(self)} sets have {len(self.names)} names", "Give each set one name.")
        if int(self.offsets[0]) != 0 or int(self.offsets[-1]) != len(self.values) or int(self.sizes.min()) < 0:
            raise DataError(
                f"the offsets run from {int(self.offsets[0])} to {int(self.offsets[-1])} over {self.points} points",
                "They start at 0, never fall, and end at the number of points.",
            )
        if int(self.sizes.min()) == 0:
            empty = self.names[int(self.sizes.argmin())]
            raise DataError(f"set {empty!r} is empty", "Leave it out.")
        if self.dim == 0:
            raise DataError("the points have no coordinates", "Name at least one column of numbers.")
        finite = torch.isfinite(self.values.detach().sum(dim=1))
        if not bool(finite.all()):
            finite = torch.isfinite(self.values.detach()).all(dim=1)
        if not bool(finite.all()):
            row = int(finite.logical_not().nonzero()[0])
            place = int(torch.searchsorted(self.offsets, row, right=True)) - 1
            raise DataError(
                f"set {self.names[place]!r}, point {row - int(self.offsets[place])}: a coordinate is NaN or infinite",
                "Remove or fill such points first.",
            )
