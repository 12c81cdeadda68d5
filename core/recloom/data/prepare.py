"""The engine of `recloom prepare`: a raw log of any size to Parquet shards, in bounded memory.

The log is read twice: first to count categories (and times, if the split needs them), then to encode and write. With
hashed ids and a random split once is enough. Blocks are parsed by several threads and taken in order, so that the
output depends neither on their number nor on the blocks' size.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from recloom.data.encode import HASH_NOTE, Encoder, count_categories, split_rows
from recloom.data.events.format import EventFormat
from recloom.data.formats.base import RawBlock, RawFormat
from recloom.data.like import Like
from recloom.data.pipeline import Piece, Progress, RawLog
from recloom.data.prepare_options import PrepareOptions
from recloom.data.prepare_report import PrepareReport
from recloom.data.shards import ShardWriter
from recloom.data.splits import SPLITS, Assigner, TimeCounts, Totals, parse_split
from recloom.data.streams.format import StreamFormat
from recloom.data.vocabulary import CategoryCounts, Vocabulary
from recloom.errors import DataError
from recloom.features import FeatureSchema
from recloom.machine import peak_memory

__all__ = ["PrepareOptions", "Run", "prepare"]


def prepare(
    raw: RawFormat,
    inputs: Sequence[Path],
    output: Path,
    options: PrepareOptions | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> PrepareReport:
    """Write the log in `inputs` to the shard directory `output`.

    Args:
        raw: The log's format.
        inputs: Its files, in order of time.
        output: The directory; see `recloom.data.shards`.
        options: How.
        progress: Called with a stage ("count", "encode" or "write"), how much of it is done, and how much there is.

    Raises:
        DataError: The log is not of that format, has too many bad rows, or cannot be split as asked; the directory
            holds something else; the disk is full. Nothing that a reader would take is left then.
    """
    kind: type[Any] = Run
    if isinstance(raw, EventFormat):
        from recloom.data.events.run import EventRun  # made of what is here

        kind = EventRun
    elif isinstance(raw, StreamFormat):
        from recloom.data.streams.run import StreamRun  # the same, and imports torch

        kind = StreamRun
    return kind(raw, [Path(path) for path in inputs], Path(output), options or PrepareOptions(), progress).run()


class Run:
    """One run of `prepare`: its state.

    Attributes:
        row_group_rows: Rows of a row group.
        split_kinds: The splits that there are.
    """

    row_group_rows = 65_536
    split_kinds: tuple[str, ...] = ("random", "time", "days", "reference", "none")

    def __init__(
        self, raw: RawFormat, inputs: list[Path], output: Path, options: PrepareOptions, progress: Progress
    ) -> None:
        self.raw, self.inputs, self.output, self.options = raw, inputs, output, options
        self.split = parse_split(options.split or raw.default_split, options.seed)
        if self.split.kind not in self.split_kinds:
            known = ", ".join(self.split_kinds)
            raise DataError(f"--split {self.split.kind} is not for the format {raw.name!r}", f"There are: {known}.")
        self.report = PrepareReport(split=options.split or raw.default_split)
        self.times = next((column.name for column in raw.columns_of("timestamp")), None)
        self.log = RawLog(
            raw,
            inputs,
            options.block_bytes or min(max(options.memory // 64, 1 << 20), 16 << 20),
            options.limit,
            options.threads or len(os.sched_getaffinity(0)),
            progress,
        )

    def run(self) -> PrepareReport:
        """Do it."""
        start = time.perf_counter()
        self.like = None
        if self.options.like is not None:
            if type(self) is not Run:
                raise DataError(f"--like is not for the format {self.raw.name!r}", "It is for logs of rows.")
            self.like = Like.asked_for(self.options, self.raw, self.output)
        for path in self.inputs:
            if not path.is_file():
                raise DataError(f"{path}: there is no such file", "Give the raw log's files with --input.")
            self.raw.sniff(path)
        try:
            self._run()
        except OSError as error:
            what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"cannot write: {error}"
            hint = "Nothing half-written remains; free some space or choose another directory."
            raise DataError(f"{self.output}: {what}", hint) from error
        self.report.seconds = time.perf_counter() - start
        self.report.peak_memory = peak_memory()
        return self.report

    def _source(self) -> dict[str, Any]:
        return {"files": [{"name": path.name, "bytes": path.stat().st_size} for path in self.inputs]}

    def _run(self) -> None:
        """Write the data set."""
        sizes: dict[str, Any] = {"row_group_rows": self.row_group_rows, "rows_per_shard": 15 * self.row_group_rows}
        facts: dict[str, Any] = {"format": self.raw.name, "source": self._source()}
        with ShardWriter(self.output, None, **facts, overwrite=self.options.overwrite, **sizes) as writer:
            self._write(writer)

    def _write(self, writer: ShardWriter) -> None:
        encoder, assign, files = self._prepared()
        writer.schema = schema = encoder.schema(files, self._info())
        self.report.cardinalities = {feature.name: feature.num_embeddings for feature in schema.sparse}

        def encode(piece: Piece) -> tuple[RawBlock, int, dict[int, pa.Table]]:
            block = self.raw.parse(piece.chunk)
            times = block.columns[self.times].to_numpy() if self.times else None
            parts = split_rows(encoder.encode(block), assign(block.positions + piece.start, piece.file, times))
            block.columns = {}
            return block, len(block), parts

        report = self.report
        with closing(self.log.map("write", encode)) as blocks:
            for _, (block, rows, parts) in blocks:
                report.note(block, self.options.max_bad_rows)
                report.left_out += rows - sum(part.num_rows for part in parts.values())
                for index, part in sorted(parts.items()):
                    report.count(SPLITS[index], part, schema)
                    writer.add(SPLITS[index], part)
        self._finish(writer, schema)

    def _prepared(self) -> tuple[Encoder, Assigner, dict[str, str]]:
        """Return, from a first pass: the encoder, the split's bounds, the vocabularies' files by feature."""
        if self.like is not None:
            assign = self.split.bounds(self._first_pass({}))
            self.report.bad, self.report.bad_rows = [], 0
            self.like.copy(self.output)
            return self.like.encoder, assign, self.like.files
        counters = {} if self.options.hash_size else self._counters()
        assign = self.split.bounds(self._first_pass(counters))
        vocabularies = self._vocabularies(counters)
        self.report.bad, self.report.bad_rows = [], 0  # the second pass finds the same rows
        transform = self.options.dense_transform or self.raw.dense_transform
        encoder = Encoder(self.raw, vocabularies, self.options.hash_size, transform)
        return encoder, assign, {name: f"vocabulary/{counter.path.name}" for name, counter in counters.items()}

    def _counters(self) -> dict[str, CategoryCounts]:
        directory = self.output / "vocabulary"
        directory.mkdir(exist_ok=True)
        return {
            column.name: CategoryCounts(column.name, directory, column.kind == "hex")
            for column in self.raw.columns_of("sparse", "bag")
        }

    def _first_pass(self, counters: dict[str, CategoryCounts]) -> Totals:
        """Find out what the second pass needs: counts of values, times and rows. Reads nothing if that is nothing."""
        totals = Totals(rows=[0] * len(self.inputs))
        if self.times and self.split.needs_times:
            totals.times = TimeCounts()
        if not counters and totals.times is None:
            for piece in self.log.pieces() if self.split.needs_rows else ():
                totals.rows[piece.file] += piece.chunk.rows
            return totals

        def count(piece: Piece) -> tuple[RawBlock, list[tuple[pl.DataFrame, int]]]:
            block = self.raw.parse(piece.chunk)
            parts = count_categories(self.raw, block) if counters else []
            block.columns = {name: array for name, array in block.columns.items() if name == self.times}
            return block, parts

        with closing(self.log.map("count", count)) as blocks:
            for piece, (block, parts) in blocks:
                self.report.note(block, self.options.max_bad_rows)
                totals.rows[piece.file] += piece.chunk.rows
                if totals.times is not None and self.times:
                    totals.times.add(block.columns[self.times].to_numpy())
                for counter, (part, missing) in zip(counters.values(), parts, strict=bool(counters)):
                    counter.missing += missing
                    counter.add(part)
                while sum(counter.nbytes for counter in counters.values()) > self.options.memory // 2:
                    max(counters.values(), key=lambda counter: counter.nbytes).spill()
        return totals

    def _vocabularies(self, counters: dict[str, CategoryCounts]) -> dict[str, Vocabulary]:
        found: dict[str, Vocabulary] = {}
        for name, counter in counters.items():
            taken = sum(vocabulary.nbytes for vocabulary in found.values())
            taken += sum(other.nbytes for other in counters.values() if other is not counter)
            found[name] = counter.vocabulary(
                self.options.min_count, self.options.max_vocabulary, self.options.memory - taken
            )
        return found

    def _info(self) -> dict[str, Any]:
        options = self.options
        ids = f"hashed to {options.hash_size}: {HASH_NOTE}" if options.hash_size else "vocabulary"
        return {
            "format": self.raw.name,
            "source": [path.name for path in self.inputs],
            "split": self.report.split,
            "seed": options.seed,
            "ids": ids,
            "min_count": options.min_count,
            **({"like": str(options.like)} if options.like else {}),
        }

    def _finish(self, writer: ShardWriter, schema: FeatureSchema) -> None:
        report = self.report
        if not report.rows:
            raise DataError(f"{self.inputs[0]}: there are no rows to write", "Is it the right file? The right split?")
        report.rows = {split: report.rows[split] for split in SPLITS if split in report.rows}
        stats = {
            "label_mean": report.label_mean(),
            "label_means": {split: report.label_mean(split) for split in report.rows},
            "left_out": report.left_out,
            **({"events": report.counts} if report.counts else {}),
        }
        writer.finish(schema, bad_rows=report.bad_rows, bad_examples=[str(row) for row in report.bad], stats=stats)
