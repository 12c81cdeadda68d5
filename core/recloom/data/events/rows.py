"""Candidates with their histories as columns of a shard."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recloom.data.events.format import EventFormat
from recloom.data.events.negatives import ItemCounts, NegativeSampler
from recloom.data.events.windows import Windows, stream
from recloom.data.hashing import uniform
from recloom.features import FeatureSchema, SequenceFeature

HISTORY = "history"
_NEGATIVES = 3


def event_schema(schema: FeatureSchema, events: EventFormat) -> FeatureSchema:
    """Return the schema of samples from that of events, which has a sparse feature for every column of ids."""
    known = {feature.name: feature for feature in schema.sparse}
    steps = tuple(replace(known[name], table=name) for name in events.step_keys)
    candidate = [*([events.user] if events.options.user_feature else []), events.item, *events.item_keys]
    return replace(
        schema,
        sparse=tuple(known[name] for name in candidate),
        sequences=(SequenceFeature(HISTORY, steps, events.options.history, timestamps=True),),
        labels=("label",),
        group="group",
    )


class RowBuilder:
    """Builds the rows of shards.

    Args:
        events: The log's format.
        items: Counts and keys of all items.
        sampler: Draws negatives; None for positives only.
        seed: Of the negatives.
    """

    def __init__(self, events: EventFormat, items: ItemCounts, sampler: NegativeSampler | None, seed: int) -> None:
        self._format = events
        self._items = items
        self._sampler = sampler
        self._seed = seed
        self.rows_per_candidate = 1 + events.options.num_negatives

    def table(self, events: dict[str, NDArray[Any]], found: Windows, rows: NDArray[np.int64]) -> pa.Table:
        """Return some rows.

        Args:
            events: Columns of a part's events in order.
            found: Their windows.
            rows: Numbers of the rows: candidate c has the rows c * (1 + k), the positive, to c * (1 + k) + k.
        """
        candidate, number = np.divmod(rows, self.rows_per_candidate)
        place = found.candidates[candidate]
        columns: dict[str, Any] = self._candidates(events, place, number)
        lengths = np.minimum(found.ranks[candidate], self._format.options.history)
        ends = np.cumsum(lengths)
        steps = np.repeat(place - ends, lengths) + np.arange(lengths.sum())  # the `lengths` events before `place`
        bounds = pa.array(np.concatenate([[0], ends]).astype(np.int32))
        for name in self._format.step_keys:
            columns[f"{HISTORY}:{name}"] = pa.ListArray.from_arrays(bounds, events[f"id:{name}"][steps])
        columns[f"{HISTORY}:time"] = pa.ListArray.from_arrays(bounds, events["time"][steps])
        columns["label"] = (number == 0).astype(np.float32)
        columns[self._format.time] = events["time"][place]
        columns["group"] = events["group"][place]
        return pa.table(columns)

    def _candidates(
        self, events: dict[str, NDArray[Any]], place: NDArray[np.int64], number: NDArray[np.int64]
    ) -> dict[str, Any]:
        form = self._format
        columns = {name: events[f"id:{name}"][place] for name in (form.user, form.item, *form.item_keys)}
        negative = np.flatnonzero(number)
        if self._sampler is not None and len(negative):
            draws = events["position"][place[negative]] * (self.rows_per_candidate - 1) + number[negative] - 1
            drawn = self._sampler.draw(columns[form.item][negative], uniform(draws, stream(self._seed, _NEGATIVES)))
            columns[form.item][negative] = drawn
            for name in form.item_keys:
                columns[name][negative] = self._items.keys[name][drawn]
        return columns
