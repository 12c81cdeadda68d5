"""Jagged tensors: categorical ids of several features, any number of them a sample.

The layout is TorchRec's: a KeyedJaggedTensor is key-major, all samples of the first key, then all of the second.
Letters in shape comments: B rows, F features, N values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


class KeyedJaggedTensor:
    """Categorical ids of several features, any number of them a sample.

    Args:
        keys: Feature names, F of them.
        values: Ids, key-major: N values, those of key 0 for samples 0..B-1, then those of key 1, ...
        lengths: F*B counts of values; key-major like the values.
        offsets: F*B+1 bounds; either of the two, or neither: then every sample has exactly one value of every key
            (N = F*B), which is the fast path of one-hot data.
        weights: N weights of the values in weighted pooling, or None.
    """

    __slots__ = ("_lengths", "_offsets", "keys", "values", "weights")

    def __init__(
        self,
        keys: Sequence[str],
        values: Tensor,
        lengths: Tensor | None = None,
        offsets: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        self.keys = list(keys)
        self.values = values.reshape(-1)
        self.weights = weights
        self._lengths = lengths
        self._offsets = offsets
        bounds = len(lengths) if lengths is not None else len(offsets) - 1 if offsets is not None else len(self.values)
        if self.keys and bounds % len(self.keys):
            raise ValueError(f"{bounds} bags cannot be split over {len(self.keys)} keys")
        if weights is not None and len(weights) != len(self.values):
            raise ValueError(f"{len(self.values)} values have {len(weights)} weights")

    @property
    def one_hot(self) -> bool:
        """Whether every sample has exactly one value of every key (no lengths and no offsets were given)."""
        return self._lengths is None and self._offsets is None

    @property
    def stride(self) -> int:
        """Number of samples, B."""
        if not self.keys:
            return 0
        if self._lengths is not None:
            return len(self._lengths) // len(self.keys)
        if self._offsets is not None:
            return (len(self._offsets) - 1) // len(self.keys)
        return len(self.values) // len(self.keys)

    @property
    def lengths(self) -> Tensor:
        """F*B counts of values."""
        if self._lengths is None:
            if self._offsets is None:
                return torch.ones_like(self.values)  # not kept: the data stay one-hot
            self._lengths = self._offsets.diff()
        return self._lengths

    @property
    def offsets(self) -> Tensor:
        """F*B+1 bounds of the bags in `values`."""
        if self._offsets is None:
            if self._lengths is None:
                return torch.arange(len(self.values) + 1, device=self.values.device)
            zero = self._lengths.new_zeros(1)
            self._offsets = torch.cat([zero, self._lengths.cumsum(0)])
        return self._offsets

    @property
    def bag_offsets(self) -> Tensor | None:
        """The bounds, or None when the data are one-hot: the form that models' `forward` takes."""
        return None if self.one_hot else self.offsets

    def __getitem__(self, key: str) -> tuple[Tensor, Tensor]:
        """Return (values, lengths) of one key: its n values and B counts."""
        index, rows = self.keys.index(key), self.stride
        if self.one_hot:
            values = self.values[index * rows : (index + 1) * rows]
            return values, torch.ones_like(values)
        start, end = self.offsets[index * rows], self.offsets[(index + 1) * rows]
        return self.values[start:end], self.lengths[index * rows : (index + 1) * rows]

    def select(self, keys: Sequence[str]) -> KeyedJaggedTensor:
        """Return the features named `keys`, in that order."""
        rows = self.stride
        if self.one_hot and self.weights is None:
            index = [self.keys.index(key) for key in keys]
            return KeyedJaggedTensor(keys, self.values.view(len(self.keys), rows)[index])
        offsets, spans = self.offsets, [self.keys.index(key) for key in keys]
        pieces = [slice(int(offsets[i * rows]), int(offsets[(i + 1) * rows])) for i in spans]
        return KeyedJaggedTensor(
            keys,
            torch.cat([self.values[piece] for piece in pieces]),
            lengths=None if self.one_hot else self.lengths.view(len(self.keys), rows)[spans].reshape(-1),
            weights=None if self.weights is None else torch.cat([self.weights[piece] for piece in pieces]),
        )

    def rows(self, start: int, end: int) -> KeyedJaggedTensor:
        """Return samples start..end-1 of every feature, with int64 ids: a block to be cut may hold them as int32."""
        count = len(self.keys)
        if not count:
            return self
        if self.one_hot:
            weights = None if self.weights is None else self.weights.view(count, -1)[:, start:end].reshape(-1)
            values = self.values.view(count, -1)[:, start:end].to(torch.int64)
            return KeyedJaggedTensor(self.keys, values, weights=weights)
        firsts = torch.arange(count, device=self.values.device) * self.stride
        cuts = zip(self.offsets[firsts + start].tolist(), self.offsets[firsts + end].tolist(), strict=True)
        pieces = [slice(first, last) for first, last in cuts]
        return KeyedJaggedTensor(
            self.keys,
            torch.cat([self.values[piece] for piece in pieces]).to(torch.int64),
            lengths=self.lengths.view(count, -1)[:, start:end].reshape(-1),
            weights=None if self.weights is None else torch.cat([self.weights[piece] for piece in pieces]),
        )

    @staticmethod
    def concat(parts: Sequence[KeyedJaggedTensor]) -> KeyedJaggedTensor:
        """Return the samples of `parts`, which have the same keys, one after the other."""
        keys, count = parts[0].keys, len(parts[0].keys)
        if not count:
            return parts[0]
        if all(part.one_hot and part.weights is None for part in parts):
            return KeyedJaggedTensor(keys, torch.cat([part.values.view(count, -1) for part in parts], dim=1))
        cuts = [part.offsets[torch.arange(count + 1) * part.stride].tolist() for part in parts]
        pairs = list(zip(parts, cuts, strict=True))
        pieces = [(part, slice(cut[k], cut[k + 1])) for k in range(count) for part, cut in pairs]
        weighted = parts[0].weights is not None
        return KeyedJaggedTensor(
            keys,
            torch.cat([part.values[piece] for part, piece in pieces]),
            lengths=torch.cat([part.lengths.view(count, -1) for part in parts], dim=1).reshape(-1),
            weights=torch.cat([part.weights[piece] for part, piece in pieces]) if weighted else None,  # type: ignore[index]
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> KeyedJaggedTensor:
        """Return a copy on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> KeyedJaggedTensor:
        """Return a copy in pinned memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Any) -> KeyedJaggedTensor:
        def apply(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else function(tensor)

        return KeyedJaggedTensor(
            self.keys, function(self.values), apply(self._lengths), apply(self._offsets), apply(self.weights)
        )

    def __repr__(self) -> str:
        kind = "one-hot" if self.one_hot else f"{len(self.values)} values"
        return f"KeyedJaggedTensor({len(self.keys)} keys x {self.stride} rows, {kind})"


def map_tensors(holder: Any, function: Any) -> Any:
    """Return `holder` (a dataclass of tensors, and of things that hold tensors) with `function` applied to each."""

    def apply(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        if isinstance(value, KeyedJaggedTensor):
            return value._map(function)
        if is_dataclass(value) and not isinstance(value, type):
            return map_tensors(value, function)
        if isinstance(value, dict):
            return {name: apply(item) for name, item in value.items()}
        return value

    return replace(holder, **{f.name: apply(getattr(holder, f.name)) for f in fields(holder)})
