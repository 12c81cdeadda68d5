"""What a model sees of a batch: dense values, jagged categorical ids, behaviour sequences, labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from recloom.history import Sequences
from recloom.jagged import KeyedJaggedTensor, map_tensors

__all__ = ["Batch", "KeyedJaggedTensor", "Sequences"]


@dataclass
class Batch:
    """One batch. What a data set does not have is None (or empty).

    Args:
        dense_features: B x (number of dense features) floats.
        sparse_features: Categorical ids.
        labels: B floats, or B x T for T tasks.
        sequences: Behaviour histories by name.
        weights: B sample weights.
        timestamps: B times in integer seconds.
        extras: Anything else that has a row a sample: "group" (B ids for grouped AUC), "probability" (B true click
            probabilities of synthetic data), a plugin's own columns.
    """

    dense_features: Tensor
    sparse_features: KeyedJaggedTensor
    labels: Tensor
    sequences: dict[str, Sequences] = field(default_factory=dict)
    weights: Tensor | None = None
    timestamps: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, start: int, end: int) -> Batch:
        """Return samples start..end-1."""
        part = slice(start, end)
        return replace(
            self,
            dense_features=self.dense_features[part],
            sparse_features=self.sparse_features.rows(start, end),
            labels=self.labels[part],
            sequences={name: histories.rows(start, end) for name, histories in self.sequences.items()},
            weights=None if self.weights is None else self.weights[part],
            timestamps=None if self.timestamps is None else self.timestamps[part],
            extras={name: tensor[part] for name, tensor in self.extras.items()},
        )

    @staticmethod
    def concat(parts: Sequence[Batch]) -> Batch:
        """Return the samples of `parts`, which have the same columns, one after the other."""

        def join(tensors: list[Tensor | None]) -> Tensor | None:
            present = [tensor for tensor in tensors if tensor is not None]
            return torch.cat(present) if present else None

        first = parts[0]
        return replace(
            first,
            dense_features=torch.cat([part.dense_features for part in parts]),
            sparse_features=KeyedJaggedTensor.concat([part.sparse_features for part in parts]),
            labels=torch.cat([part.labels for part in parts]),
            sequences={name: Sequences.concat([part.sequences[name] for part in parts]) for name in first.sequences},
            weights=join([part.weights for part in parts]),
            timestamps=join([part.timestamps for part in parts]),
            extras={name: torch.cat([part.extras[name] for part in parts]) for name in first.extras},
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return a copy on `device`, or the batch itself if it is there already."""
        if self.labels.device == torch.device(device):
            return self
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return a copy in pinned memory."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())
