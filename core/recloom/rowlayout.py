"""Where each feature's rows are in a weight that holds the rows of several tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recloom.tracing import is_exporting

_CPU = torch.device("cpu")
POOLINGS = {"sum": 0, "mean": 1, "weighted": 2}


@dataclass(frozen=True)
class RowLayout:
    """For each of F features the span of its table's rows and how its bags are pooled.

    Args:
        features: F names.
        base: The first row of each feature's table in the weight.
        rows: The number of rows of each feature's table.
        pooling: "sum", "mean" or "weighted", for each feature.
        table: The index of each feature's table; features that share one have the same.
    """

    features: tuple[str, ...]
    base: tuple[int, ...]
    rows: tuple[int, ...]
    pooling: tuple[str, ...]
    table: tuple[int, ...]
    _tensors: dict[torch.device, dict[str, Tensor]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def num_features(self) -> int:
        """F."""
        return len(self.features)

    @property
    def weighted(self) -> bool:
        """Whether any feature has weighted pooling."""
        return "weighted" in self.pooling

    @property
    def mean(self) -> bool:
        """Whether any feature has mean pooling."""
        return "mean" in self.pooling

    def only(self, feature: str) -> RowLayout:
        """Return the layout of one feature, summed: for lookups of single rows."""
        i = self.features.index(feature)
        return RowLayout((feature,), (self.base[i],), (self.rows[i],), ("sum",), (self.table[i],))

    def tensors(self, device: torch.device) -> dict[str, Tensor]:
        """Return base, rows, mode, table (int64) and weighted_mask, mean_mask (bool), F of each, on `device`."""
        if torch.compiler.is_compiling() or is_exporting():
            return self._build(device)
        if device not in self._tensors:
            self._tensors[device] = self._build(device)
        return self._tensors[device]

    def _build(self, device: torch.device) -> dict[str, Tensor]:
        mode = [POOLINGS[p] for p in self.pooling]
        return {
            "base": torch.tensor(self.base, device=device),
            "rows": torch.tensor(self.rows, device=device),
            "mode": torch.tensor(mode, device=device),
            "table": torch.tensor(self.table, device=device),
            "weighted_mask": torch.tensor([m == 2 for m in mode], device=device),
            "mean_mask": torch.tensor([m == 1 for m in mode], device=device),
        }

    def pointers(self) -> tuple[int, int, int, int]:
        """Return the addresses of the CPU tensors base, rows, mode and table, for native kernels."""
        tensors = self.tensors(_CPU)
        return (
            tensors["base"].data_ptr(),
            tensors["rows"].data_ptr(),
            tensors["mode"].data_ptr(),
            tensors["table"].data_ptr(),
        )

    def per_value(self, name: str, ids: Tensor, offsets: Tensor | None) -> Tensor:
        """Return the F-long tensor `name` (see `tensors`) spread over the N values."""
        values = self.tensors(ids.device)[name]
        if offsets is None:
            return values[:, None].expand(-1, ids.shape[0] // self.num_features).reshape(-1)
        return values[bag_of_values(ids, offsets) // ((offsets.shape[0] - 1) // self.num_features)]

    def rows_and_bags(self, ids: Tensor, offsets: Tensor | None, bags: bool = True) -> tuple[Tensor, Tensor | None]:
        """Return (N rows of the weight, N bag indices f*B+b); the latter None for one-hot data or `bags` False."""
        if offsets is None:
            return (ids.view(self.num_features, -1) + self.tensors(ids.device)["base"][:, None]).view(-1), None
        if len(self.features) == 1 and not bags:
            return ids + self.base[0], None
        bag = bag_of_values(ids, offsets)
        feature = bag // ((offsets.shape[0] - 1) // self.num_features)
        return ids + self.tensors(ids.device)["base"][feature], bag

    def coefficients(self, ids: Tensor, offsets: Tensor | None, weights: Tensor | None) -> Tensor | None:
        """Return the factor of each value in its bag's sum: 1, 1/length or its weight; None if all are 1."""
        scale = None
        if self.weighted:
            assert weights is not None
            scale = torch.where(self.per_value("weighted_mask", ids, offsets), weights, 1.0)
        if self.mean and offsets is not None:
            share = offsets.diff().to(torch.float32).reciprocal()[bag_of_values(ids, offsets)]
            share = torch.where(self.per_value("mean_mask", ids, offsets), share, 1.0)
            scale = share if scale is None else scale * share
        return scale


def bag_of_values(ids: Tensor, offsets: Tensor) -> Tensor:
    """Return for each of the N values the index of its bag; exportable (no data-dependent shape)."""
    if is_exporting():  # the ends at or before each place, without searchsorted, which ONNX has not
        ends = torch.zeros(ids.shape[0] + 1, dtype=torch.int64, device=ids.device)
        return ends.index_add(0, offsets[1:], torch.ones_like(offsets[1:])).cumsum(0)[:-1]
    place = torch.arange(ids.shape[0], device=ids.device)
    return torch.searchsorted(offsets[1:].contiguous(), place, right=True)


def stack_layout(
    tables: Sequence[tuple[int, Sequence[str], str]],
) -> RowLayout:
    """Return the layout of `tables`, each (rows, feature names, pooling), one after the other in one weight."""
    features: list[str] = []
    base: list[int] = []
    rows: list[int] = []
    pooling: list[str] = []
    table: list[int] = []
    start = 0
    for index, (count, names, kind) in enumerate(tables):
        for name in names:
            features.append(name)
            base.append(start)
            rows.append(count)
            pooling.append(kind)
            table.append(index)
        start += count
    return RowLayout(tuple(features), tuple(base), tuple(rows), tuple(pooling), tuple(table))
