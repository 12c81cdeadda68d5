"""The engine of `recloom prepare` for event logs: two passes over the log, and one over its events by user.

The first pass counts categories and times. The second encodes the events and parts them by user into files beside the
shards. Each part is then sorted, cut into windows, mixed and written. All that is random is a function of the seed and
of an event's place in the log, so neither threads nor the size of parts change a row; only the order of rows depends on
the parts.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recloom.data.encode import Encoder, categories, split_rows
from recloom.data.events.format import EventFormat
from recloom.data.events.negatives import ItemCounts, NegativeSampler
from recloom.data.events.rows import RowBuilder, event_schema
from recloom.data.events.spill import Spill, event_type, partition
from recloom.data.events.windows import in_order, windows
from recloom.data.formats.base import RawBlock
from recloom.data.pipeline import Piece
from recloom.data.prepare import Run
from recloom.data.shards import ShardWriter
from recloom.data.splits import SPLITS, Assigner
from recloom.errors import DataError

_LINE_BYTES = 24  # a short line: more events than there are only make smaller parts
_PACKED = 6  # times that a compressed line or one of Parquet may be smaller
_GROUP_BYTES = 32 << 20  # of a row group
_FILES = 512  # most parts


class EventRun(Run):
    """One run of `prepare` on an event log."""

    split_kinds = ("users", "random", "time", "days", "none")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.events = cast(EventFormat, self.raw)
        self.choice = self.events.options
        self.ids = [column.name for column in self.raw.columns_of("sparse")]
        step_bytes = 4 * len(self.events.step_keys) + 8
        rows = _GROUP_BYTES // (self.choice.history * step_bytes)
        self.row_group_rows = min(max(1 << max(rows, 1).bit_length() - 1, 1024), Run.row_group_rows)

    def _write(self, writer: ShardWriter) -> None:
        encoder, assign, files = self._prepared()
        encoded = encoder.schema(files, {**self._info(), **asdict(self.choice)})
        writer.schema = schema = event_schema(encoded, self.events)
        self.report.cardinalities = sizes = {feature.name: feature.num_embeddings for feature in encoded.sparse}
        items = ItemCounts(sizes[self.events.item], self.events.item_keys)
        spill = Spill(self.output / "spill", event_type(self.ids), self._parts())
        self._spill(encoder, spill, items)
        if not items.counts.any():
            left = "".join(f"; {number:,} {name}" for name, number in self.report.counts.items())
            raise DataError(
                f"{self.inputs[0]}: there are no events to use{left}",
                "Is it the right file? See --time-range, --behaviours.",
            )
        choice, seed = self.choice, self.options.seed
        sampler = NegativeSampler(items, choice.negatives == "popularity") if choice.num_negatives else None
        builder = RowBuilder(self.events, items, sampler, seed)
        found: Counter[str] = Counter()
        with ThreadPoolExecutor(1) as pool:  # builds the next rows while these are written
            for part, events in enumerate(spill.take()):
                for table, where in self._tables(events, builder, assign, found, pool, part):
                    self.report.left_out += int((where < 0).sum())
                    for index, rows in sorted(split_rows(table, where).items()):
                        self.report.count(SPLITS[index], rows, schema)
                        writer.add(SPLITS[index], rows)
                self.log.progress("write", part + 1, spill.parts)
        self.report.counts.update({name: int(number) for name, number in found.items()})
        self._finish(writer, schema)

    def _parts(self) -> int:
        """Return how many parts there should be for a part to take about half of the memory."""
        packed = {"", ".csv", ".tsv", ".txt", ".dat", ".data", ".inter"}
        sizes = [path.stat().st_size * (1 if path.suffix in packed else _PACKED) for path in self.inputs]
        events = sum(sizes) // _LINE_BYTES
        a_row = 16 * (1 + self.choice.num_negatives)
        needed = events * (3 * event_type(self.ids).itemsize + 80 + a_row)
        return min(max(-(-needed // (self.options.memory // 2)), 1), _FILES)

    def _spill(self, encoder: Encoder, spill: Spill, items: ItemCounts) -> None:
        """Write the events of the log to `spill`, encoded, and count their items."""
        form, columns = self.events, {column.name: column for column in self.raw.columns}

        def encode(piece: Piece) -> tuple[RawBlock, NDArray[np.void], NDArray[np.int64]]:
            block = self.raw.parse(piece.chunk)
            events = np.empty(len(block), event_type(self.ids))
            events["position"] = block.positions + piece.start
            events["time"] = block.columns[form.time].to_numpy()
            for name in self.ids:
                values = categories(columns[name], block.columns[name])
                events[f"id:{name}"] = encoder.ids(name, values)
                if name == form.user:
                    events["group"] = (values.keys >> np.uint64(1)).view(np.int64)[values.codes]
            block.columns = {}
            return block, *partition(events, spill.parts)

        counts = self.report.counts
        with closing(self.log.map("encode", encode)) as blocks:
            for _, (block, events, bounds) in blocks:
                self.report.note(block, self.options.max_bad_rows)
                for reason, number in block.left_out.items():
                    counts[f"events {reason}"] = counts.get(f"events {reason}", 0) + number
                ids = {name: events[f"id:{name}"] for name in (form.item, *form.item_keys)}
                items.add(ids.pop(form.item), ids)
                spill.add(events, bounds)

    def _tables(
        self,
        stored: NDArray[np.void],
        builder: RowBuilder,
        assign: Assigner,
        found: Counter[str],
        pool: ThreadPoolExecutor,
        part: int,
    ) -> Iterator[tuple[pa.Table, NDArray[np.int8]]]:
        """Yield the rows of a part, mixed, in pieces of a row group, with the split of each row."""
        seed = self.options.seed
        stored = in_order(stored, seed)
        cut = windows(stored, self.events.item, self.choice, seed, found)
        events = {name: stored[name].copy() for name in stored.dtype.names or ()}
        del stored
        number = len(cut.candidates) * builder.rows_per_candidate
        mixed = np.random.default_rng([seed, part]).permutation(number)

        def build(rows: NDArray[np.int64]) -> tuple[pa.Table, NDArray[np.int8]]:
            place = cut.candidates[rows // builder.rows_per_candidate]
            by = "group" if self.split.kind == "users" else "position"
            return builder.table(events, cut, rows), assign(events[by][place], 0, events["time"][place])

        waiting: deque[Future[tuple[pa.Table, NDArray[np.int8]]]] = deque()
        for start in range(0, number, self.row_group_rows):
            waiting.append(pool.submit(build, mixed[start : start + self.row_group_rows]))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
