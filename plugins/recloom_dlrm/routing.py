"""Which rank each id of a batch goes to, and which row it is there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recloom.errors import DataError
from recloom.rowcheck import check_lengths, outside
from recloom.rowlayout import RowLayout, bag_of_values
from recloom_dlrm.planner import ShardingPlan


@dataclass
class Routed:
    """A batch's ids, sorted by the rank that has their rows, and among them by bag.

    Args:
        rows: N rows of the owners' weights.
        lengths: K ids of each part; None when each part is one id.
        weights: N value weights, or None.
        bag: K indices f*B+b of the parts' bags.
        values_to: Ids for each rank.
        parts_to: Parts for each rank.
        scale: F*B factors of the bags, or None.
        shape: (F, B).
    """

    rows: Tensor
    lengths: Tensor | None
    weights: Tensor | None
    bag: Tensor
    values_to: list[int]
    parts_to: list[int]
    scale: Tensor | None
    shape: tuple[int, int]


class Router:
    """Routes the ids of some features by a plan.

    Args:
        plan: Where the rows are.
        layout: The features, in the order of the batch's ids, over the collection's whole weight.
    """

    def __init__(self, plan: ShardingPlan, layout: RowLayout) -> None:
        self.layout = layout
        self.world_size = plan.world_size
        filled = [0] * plan.world_size  # rows of each rank's weight so far
        block, owner, shift = [], [], []
        self.shards = max(len(table.ranks) for table in plan.tables)
        for table in plan.tables:
            block.append(table.block)
            owner.append([*table.ranks, *[0] * (self.shards - len(table.ranks))])
            shifts = [0] * self.shards
            for place, rank in enumerate(table.ranks):
                shifts[place] = filled[rank] - place * table.block
                filled[rank] += table.rows(rank)[1]
            shift.append(shifts)
        self._tables = (torch.tensor(block), torch.tensor(owner), torch.tensor(shift))
        self._cache: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def route(self, ids: Tensor, offsets: Tensor | None, weights: Tensor | None) -> Routed:
        """Return where the N ids, key-major, go.

        Raises:
            DataError: An id is outside its table, or the offsets are no bounds of N ids.
        """
        layout, device = self.layout, ids.device
        check_lengths(ids, offsets, weights, layout)
        if offsets is not None:
            _check_offsets(ids, offsets)
        bags = len(ids) if offsets is None else len(offsets) - 1
        samples = bags // layout.num_features
        bag = torch.arange(len(ids), device=device) if offsets is None else bag_of_values(ids, offsets)
        feature = bag // max(samples, 1)
        inside = (ids >= 0) & (ids < layout.tensors(device)["rows"][feature])
        if not bool(inside.all()):
            raise outside(layout, ids, offsets, int(inside.logical_not().nonzero()[0]))
        block, owner, shift = self._on(device)
        place = feature if self.shards == 1 else feature * self.shards + ids // block[feature]
        rows, rank = ids + shift[place], owner[place]
        order = rank.argsort(stable=True)
        rank, bag = rank[order], bag[order]
        values_to = rank.bincount(minlength=self.world_size)
        lengths, parts_to = None, values_to
        if offsets is not None:
            part, lengths = torch.unique_consecutive(rank * bags + bag, return_counts=True)
            bag = part % bags
            parts_to = (part // bags).bincount(minlength=self.world_size)
        counts = torch.stack([values_to, parts_to]).tolist()
        return Routed(
            rows[order],
            lengths,
            self._weights(feature, weights, order),
            bag,
            counts[0],
            counts[1],
            self._scale(offsets, samples),
            (layout.num_features, samples),
        )

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return by feature the rows of a shard, F, and by feature and shard its rank and shift to its rows, F*S."""
        if device not in self._cache:
            table = torch.tensor(self.layout.table)
            block, owner, shift = (tensor[table].reshape(-1).to(device) for tensor in self._tables)
            self._cache[device] = block, owner, shift
        return self._cache[device]

    def _weights(self, feature: Tensor, weights: Tensor | None, order: Tensor) -> Tensor | None:
        if not self.layout.weighted:
            return None
        assert weights is not None
        weighted = self.layout.tensors(feature.device)["weighted_mask"][feature]
        return torch.where(weighted, weights, 1.0)[order]

    def _scale(self, offsets: Tensor | None, samples: int) -> Tensor | None:
        if offsets is None or not self.layout.mean:
            return None
        share = offsets.diff().clamp(min=1).to(torch.float32).reciprocal()
        mean = self.layout.tensors(offsets.device)["mean_mask"].repeat_interleave(samples)
        return torch.where(mean, share, 1.0)


def _check_offsets(ids: Tensor, offsets: Tensor) -> None:
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(ids) or bool((offsets.diff() < 0).any()):
        raise DataError(f"the offsets of {len(ids)} ids do not rise from 0 to {len(ids)}", "Check the bags' lengths.")
