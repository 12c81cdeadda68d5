"""The positions of a sample, its history's steps and the candidate, as the samples of another model: TBSM's tower.

Letters in shapes: B rows, L places of the histories, P positions in use, F sparse features, K keys of a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from recloom.errors import RecloomError, unknown
from recloom.features import DenseFeature, FeatureSchema, SequenceFeature, SparseFeature
from recloom.gaps import DAY
from recloom.sequence import Histories
from recloom.tracing import is_exporting

Time = Literal["position", "gap", "none"]
LONGEST_GAP = math.log1p(30 * DAY)


@dataclass
class TowerInputs:
    """What the tower's `forward` gets, and where its P rows belong.

    Args:
        dense: P x (dense features).
        values: Ids, key-major.
        offsets: Bounds of the bags, or None for one-hot data.
        weights: Weights of the values, or None.
        places: P places in the flat B x (L+1) positions, the candidate at place L; None: all of them, in order.
    """

    dense: Tensor
    values: Tensor
    offsets: Tensor | None
    weights: Tensor | None
    places: Tensor | None


class Positions:
    """Makes one row a position: the ids of the step or candidate, and the sample's other features again and again.

    The candidate's id of a history key is the (first) sparse feature that shares the key's table. A key without one
    (a behaviour, a rating) gets one more id, "unknown", for the candidate.

    Args:
        schema: The data's schema.
        history: The history's name; empty: the only one.
        time: The first dense feature: "position" / (T + 1) as published, right-aligned; "gap", the scaled logarithm
            of the time since the step, 0 for the candidate; "none", no such feature.
        width: Width of the tower's output.
        keys: Names of the keys to use; None: all.
    """

    def __init__(
        self, schema: FeatureSchema, history: str, time: Time, width: int, keys: Sequence[str] | None = None
    ) -> None:
        self.history = _history(schema, history)
        self.time = time
        self._features = len(schema.sparse)
        self._keys: list[int | None] = [None] * self._features  # the history key of each of the tower's features
        self._unknown: list[int] = []  # the candidate's id of each key without a counterpart
        sparse = list(schema.sparse)
        extra: list[SparseFeature] = []
        names = [key.name for key in self.history.keys]
        for k in range(len(names)) if keys is None else [_place(names, key) for key in keys]:
            key = self.history.keys[k]
            shared = [i for i, feature in enumerate(schema.sparse) if feature.table_name == key.table_name]
            if shared:
                i = shared[0]
                self._keys[i] = k
                sparse[i] = replace(sparse[i], num_embeddings=max(sparse[i].num_embeddings, key.num_embeddings))
            else:
                extra.append(SparseFeature(f"{self.history.name}_{key.name}", key.num_embeddings + 1))
                self._keys.append(k)
                self._unknown.append(key.num_embeddings)
        position = () if time == "none" else (DenseFeature(time),)
        self.schema = FeatureSchema(
            dense=(*position, *schema.dense),
            sparse=(*sparse, *extra),
            labels=tuple(f"z{i}" for i in range(width)),
        )

    def inputs(
        self, dense: Tensor, values: Tensor, offsets: Tensor | None, weights: Tensor | None, histories: Histories
    ) -> TowerInputs:
        """Return the tower's inputs for the positions that hold a step or the candidate; arguments as in `forward`.

        Under export, all positions are taken: no shape may depend on data.
        """
        ids, mask = histories[self.history.name], histories[f"{self.history.name}:mask"]
        rows, length = mask.shape
        every = rows * (length + 1)
        if is_exporting():
            positions, places = torch.arange(every, device=mask.device), None
        else:
            positions = torch.cat([mask, mask.new_ones(rows, 1)], dim=1).view(-1).nonzero().squeeze(1)
            places = None if len(positions) == every else positions
        row, place = positions // (length + 1), positions % (length + 1)
        columns = self._clock(place, length, positions, histories)
        dense = torch.cat([*columns, dense[row]], dim=1)
        bags = self._bags(row, place, rows, length)  # (tower's features) x P
        steps = [ids.permute(2, 0, 1).reshape(-1), ids.new_tensor(self._unknown)]
        pool = torch.cat([values, *steps])
        added = pool.shape[0] - values.shape[0]
        weighting = None if weights is None else torch.cat([weights, weights.new_ones(added)])
        if offsets is None:
            found = pool[bags.view(-1)]
            return TowerInputs(dense, found, None, None if weighting is None else weighting[bags.view(-1)], places)
        if is_exporting():
            raise RecloomError(
                "TBSM with bags of ids cannot be exported: how often an id is repeated depends on the data",
                "Use one-hot data.",
            )
        lengths = torch.cat([offsets.diff(), offsets.new_ones(added)])
        index, bounds = _gather(lengths, bags.view(-1))
        return TowerInputs(dense, pool[index], bounds, None if weighting is None else weighting[index], places)

    def _clock(self, place: Tensor, length: int, positions: Tensor, histories: Histories) -> list[Tensor]:
        """Return the position's or gap's P x 1 column, if there is one."""
        if self.time == "none":
            return []
        if self.time == "position":
            longest = self.history.max_length
            return [((place + (longest - length)) / (longest + 1)).unsqueeze(1)]
        gaps = histories.get(f"{self.history.name}:gaps")
        if gaps is None:
            raise RecloomError("TBSM has time='gap', and the data have no times", "Set time to 'position' or 'none'.")
        scaled = torch.log1p(gaps.clamp(min=0)) / LONGEST_GAP
        column = torch.cat([scaled, scaled.new_zeros(scaled.shape[0], 1)], dim=1).view(-1)
        return [column[positions].unsqueeze(1)]

    def _bags(self, row: Tensor, place: Tensor, rows: int, length: int) -> Tensor:
        """Return for each of the tower's features and P positions a bag.

        Bags are counted over the F B of the data, then the K B L steps' ids, then the unknown ids.
        """
        candidate = place == length
        first = self._features * rows
        step = first + row * length + place
        last = first + len(self.history.keys) * rows * length
        found: list[Tensor] = []
        for feature, key in enumerate(self._keys):
            own = (
                row + feature * rows
                if feature < self._features
                else torch.full_like(row, last + feature - self._features)
            )
            found.append(own if key is None else torch.where(candidate, own, step + key * rows * length))
        return torch.stack(found)


def _place(names: list[str], name: str) -> int:
    if name not in names:
        raise unknown("key of the history", name, names)
    return names.index(name)


def _gather(lengths: Tensor, bags: Tensor) -> tuple[Tensor, Tensor]:
    """Return (places of the values of `bags`, bag after bag; their bounds), where bag i has lengths[i] values."""
    starts = lengths.cumsum(0) - lengths
    counts = lengths[bags]
    bounds = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    shift = (starts[bags] - bounds[:-1]).repeat_interleave(counts)
    return shift + torch.arange(len(shift), device=shift.device), bounds


def _history(schema: FeatureSchema, name: str) -> SequenceFeature:
    names = ", ".join(history.name for history in schema.sequences)
    found = [history for history in schema.sequences if name in ("", history.name)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise RecloomError(
            f"TBSM needs a history{' named ' + repr(name) if name else ''}, and the data have {names or 'none'}",
            "Use data with histories (recloom prepare taobao, movielens or events).",
        )
    raise RecloomError(f"TBSM takes one history, and the data have {names}", "Name one: --model.history NAME.")
