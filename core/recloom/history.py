"""Behaviour histories: for each sample a number of steps, jagged; and their padded view.

Letters in shape comments: B rows, L sequence length, N steps, K aligned ids of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recloom.jagged import map_tensors


@dataclass
class Sequences:
    """Behaviour histories: for each sample a number of steps, each step one id of every key.

    Args:
        keys: Names of the aligned ids of a step (item, category, behaviour), K of them.
        values: N x K ids; the steps of sample 0, oldest first, then those of sample 1, ...
        offsets: B+1 bounds of the samples in `values`.
        timestamps: N times of the steps in integer seconds, or None.
    """

    keys: list[str]
    values: Tensor
    offsets: Tensor
    timestamps: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """B counts of steps."""
        return self.offsets.diff()

    @property
    def longest(self) -> int:
        """The longest history of the batch, in steps."""
        return int(self.lengths.max()) if len(self.offsets) > 1 else 0

    def padded(self, length: int | None = None) -> tuple[Tensor, Tensor]:
        """Return (B x L x K ids, B x L mask of the places that hold a step).

        The latest step is always at place L-1: shorter histories are padded with 0 in front, longer ones keep their
        latest L steps. L is the longest history of the batch unless `length` says otherwise.
        """
        index, mask = self._places(length)
        if len(self.values) == 0:
            return self.values.new_zeros(*mask.shape, len(self.keys)), mask
        return self.values[index] * mask[..., None], mask

    def gaps(self, now: Tensor, length: int | None = None) -> Tensor:
        """Return B x L seconds from each step to `now` (B times in seconds), float32; 0 where there is no step."""
        index, mask = self._places(length)
        assert self.timestamps is not None, "these histories have no times"
        if len(self.values) == 0:
            return mask.float()
        return ((now[:, None] - self.timestamps[index]) * mask).float()

    def _places(self, length: int | None) -> tuple[Tensor, Tensor]:
        """Return (B x L places of the padded view's steps in `values`, B x L mask)."""
        width = self.longest if length is None else length
        place = torch.arange(-width, 0, device=self.offsets.device)
        mask = place >= -self.lengths[:, None]
        return (self.offsets[1:, None] + place).clamp(min=0), mask

    def rows(self, start: int, end: int) -> Sequences:
        """Return the histories of samples start..end-1, with int64 ids."""
        first, last = int(self.offsets[start]), int(self.offsets[end])
        return Sequences(
            self.keys,
            self.values[first:last].to(torch.int64),
            self.offsets[start : end + 1] - self.offsets[start],
            None if self.timestamps is None else self.timestamps[first:last],
        )

    @staticmethod
    def concat(parts: Sequence[Sequences]) -> Sequences:
        """Return the histories of `parts`, which have the same keys, one after the other."""
        lengths = torch.cat([part.lengths for part in parts])
        times = [part.timestamps for part in parts if part.timestamps is not None]
        return Sequences(
            parts[0].keys,
            torch.cat([part.values for part in parts]),
            torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
            torch.cat(times) if times else None,
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Sequences:
        """Return a copy on `device`."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Sequences:
        """Return a copy in pinned memory."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())
