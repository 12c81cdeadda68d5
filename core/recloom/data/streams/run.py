"""The engine of `recloom prepare` for event streams: one pass over the log, then sorting where that is needed.

Nodes are numbered in the order in which they first occur in the log, so a number tells nothing about what comes later.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from recloom.data.formats.base import RawBlock
from recloom.data.pipeline import Piece
from recloom.data.prepare import Run
from recloom.data.streams.folder import StreamWriter
from recloom.data.streams.format import TICKS, StreamFormat
from recloom.data.streams.limits import MAX_NODES
from recloom.data.streams.stream import SPLITS, split_bounds
from recloom.errors import DataError

_CHUNK = 1 << 20


class NodeNumbers:
    """Numbers of nodes by raw name, in the order of their first events."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.names)

    def of(self, values: pa.DictionaryArray) -> NDArray[np.int32]:
        """Return the numbers of names; new names get the next ones."""
        names = self.names
        table = [names.setdefault(name, len(names)) for name in values.dictionary.to_pylist()]
        if len(names) > MAX_NODES:
            raise DataError(f"the log has more than {MAX_NODES:,} nodes", "Split it.")
        return np.array(table, np.int32)[values.indices.to_numpy()]

    def save(self, path: Any) -> None:
        """Write the names in the order of their numbers."""
        pq.write_table(pa.table({"name": pa.array(self.names, pa.string())}), path)


class StreamRun(Run):
    """One run of `prepare` on the log of a graph."""

    split_kinds = ("time", "none")

    def _run(self) -> None:
        self.form = form = cast(StreamFormat, self.raw)
        columns = ["source", "destination", "time", *(["label"] if form.label else [])]
        columns += ["features"] if form.features else []
        self.sources = NodeNumbers()
        self.destinations = NodeNumbers() if form.options.bipartite else self.sources
        with StreamWriter(self.output, tuple(columns), len(form.features), self.options.overwrite) as writer:
            self._read(writer)
            if not writer.length:
                raise DataError(f"{self.inputs[0]}: there are no events to write", "Is it the right file?")
            self._sort(writer)
            self._drop_repeated(writer)
            self._finish_stream(writer)

    def _read(self, writer: StreamWriter) -> None:
        """Append all good events to `writer`, in the order of the log."""
        form, counts = self.form, self.report.counts

        def parse(piece: Piece) -> tuple[RawBlock, dict[str, Any]]:
            block = self.raw.parse(piece.chunk)
            found: dict[str, Any] = {
                "source": block.columns[form.source].dictionary_encode(),
                "destination": block.columns[form.destination].dictionary_encode(),
                "time": block.columns[form.time].to_numpy(),
            }
            if form.label:
                found["label"] = block.columns[form.label].to_numpy().astype(np.float32)
            if form.features:
                parts = [block.columns[name].to_numpy().astype(np.float32) for name in form.features]
                found["features"] = np.stack(parts, axis=1)
            block.columns = {}
            return block, found

        with closing(self.log.map("write", parse)) as blocks:
            for _, (block, found) in blocks:
                self.report.note(block, self.options.max_bad_rows)
                if not form.options.bipartite:
                    kept = _no_loops(found["source"], found["destination"])
                    counts["self loops left out"] = counts.get("self loops left out", 0) + int((~kept).sum())
                    rows = pa.array(np.flatnonzero(kept))
                    found = {
                        name: values.take(rows) if isinstance(values, pa.Array) else values[kept]
                        for name, values in found.items()
                    }
                found["source"] = self.sources.of(found["source"])
                found["destination"] = self.destinations.of(found["destination"])
                writer.add(found)

    def _sort(self, writer: StreamWriter) -> None:
        if not writer.disorder:
            return
        if self.form.options.order == "strict":
            time = writer.mapped("time")
            first = int((np.diff(time) < 0).argmax()) + 1
            where = f"event {first:,} of the log (of time {time[first]}) is earlier than the one before it"
            hint = "Leave out --order strict, and events are sorted."
            raise DataError(f"{self.inputs[0]}: {where}; so are {writer.disorder - 1:,} others", hint)
        self.report.counts["events out of order, sorted"] = writer.disorder
        writer.rearrange(np.argsort(writer.mapped("time"), kind="stable"))

    def _drop_repeated(self, writer: StreamWriter) -> None:
        """Count events that repeat one of the same nodes and time, and leave them out if so asked."""
        time = writer.mapped("time")
        kept, start = np.ones(writer.length, bool), 0
        while start < writer.length:
            stop = min(start + _CHUNK, writer.length)
            if stop < writer.length:  # simultaneous events stay together
                stop = int(np.searchsorted(time, time[stop - 1], side="right"))
            rows = [writer.mapped(name)[start:stop] for name in ("destination", "source", "time")]
            order = np.lexsort(rows)
            same = np.logical_and.reduce([row[order][1:] == row[order][:-1] for row in rows])
            kept[start:stop][order[1:][same]] = False
            start = stop
        repeated = int((~kept).sum())
        drop = self.form.options.repeated == "drop"
        self.report.counts[f"repeated events, {'left out' if drop else 'kept'}"] = repeated
        if repeated and drop:
            writer.rearrange(np.flatnonzero(kept))

    def _finish_stream(self, writer: StreamWriter) -> None:
        form, report = self.form, self.report
        time = torch.from_numpy(writer.mapped("time"))
        shares = self.split.fractions if self.split.kind == "time" else (1.0, 0.0, 0.0)
        bounds = split_bounds(time, shares)
        places = (0, *bounds, writer.length)
        for index, split in enumerate(SPLITS):
            start, stop = places[index], places[index + 1]
            if stop > start and form.label:
                report.count_labels(split, writer.mapped("label")[start:stop], np.ones(stop - start))
            elif stop > start:
                report.rows[split] = stop - start
        sizes = {"num_sources": len(self.sources), "num_destinations": len(self.destinations)}
        report.cardinalities = dict(zip((form.source, form.destination), sizes.values(), strict=True))
        new = _unseen(writer, places[1], (len(self.sources), len(self.destinations)), form.options.bipartite)
        report.counts["events outside train with a node that train has not"] = new
        (self.output / "nodes").mkdir(exist_ok=True)
        self.sources.save(self.output / "nodes" / "source.parquet")
        self.destinations.save(self.output / "nodes" / "destination.parquet")
        info = {"format": self.raw.name, "files": [path.name for path in self.inputs], "split": report.split}
        facts = {**sizes, "bipartite": form.options.bipartite, "ticks": TICKS[form.options.time_unit]}
        bad = {"bad_rows": report.bad_rows, "bad_examples": [str(row) for row in report.bad], "counts": report.counts}
        writer.finish({**facts, "bounds": list(bounds), "info": info, "source": self._source(), **bad})


def _no_loops(source: pa.DictionaryArray, destination: pa.DictionaryArray) -> NDArray[np.bool_]:
    return np.asarray(source.dictionary_decode()) != np.asarray(destination.dictionary_decode())


def _unseen(writer: StreamWriter, last: int, sizes: tuple[int, int], bipartite: bool) -> int:
    """Return the number of events from position `last` on with a node that the events before do not have."""
    source, destination = writer.mapped("source"), writer.mapped("destination")
    seen = np.zeros(sizes[0] + (sizes[1] if bipartite else 0), bool)
    offset = sizes[0] if bipartite else 0
    seen[source[:last]] = seen[destination[:last] + offset] = True
    return int((~(seen[source[last:]] & seen[destination[last:] + offset])).sum())
