"""The engine of `recloom prepare`: a raw log of any size to Parquet shards, in bounded memory.

The log is read twice: first to count categories (and times, if the split needs them), then to encode and write. With
hashed ids and a random split once is enough. Blocks are parsed by several threads and taken in order, so that the
output depends neither on their number nor on the blocks' size.
"""

from __future__ import annotations

import os
import resource
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from recloom.data.encode import Encoder, count_categories
from recloom.data.formats.base import SHOWN, BadRow, Chunk, RawBlock, RawFormat
from recloom.data.shards import ShardWriter
from recloom.data.splits import SPLITS, Assigner, TimeCounts, Totals, parse_split
from recloom.data.vocabulary import CategoryCounts, Vocabulary
from recloom.errors import DataError

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PrepareOptions:
    """How to prepare.

    Args:
        split: See `recloom.data.splits.parse_split`; "" for the format's default.
        min_count: Categories that occur less often in the log share id 0.
        hash_size: Hash categories into this many ids instead of building vocabularies.
        max_vocabulary: Most ids of a vocabulary.
        dense_transform: "log" or "none"; "" for the format's default.
        max_bad_rows: Stop when more rows than this are malformed.
        memory: Bytes that counts and vocabularies may take.
        limit: Read only this many lines.
        seed: Of the random split.
        threads: Threads that parse; 0: one a CPU.
        overwrite: Replace the data set in the output directory.
        block_bytes: Size of the pieces a file is read in; 0: from `memory`.
    """

    split: str = ""
    min_count: int = 1
    hash_size: int | None = None
    max_vocabulary: int | None = None
    dense_transform: str = ""
    max_bad_rows: int = 0
    memory: int = 1 << 30
    limit: int | None = None
    seed: int = 0
    threads: int = 0
    overwrite: bool = False
    block_bytes: int = 0


@dataclass
class PrepareReport:
    """What was done.

    Args:
        rows: Rows of each split.
        left_out: Rows of days that the split does not name.
        bad_rows: Malformed rows, left out.
        bad: The first few of them.
        label_means: Mean label of each split, weighted where there are weights.
        cardinalities: Number of ids of each sparse feature.
        split: The split that was used.
        seconds: Wall time.
        peak_memory: The process's peak resident memory in bytes.
    """

    rows: dict[str, int] = field(default_factory=dict)
    left_out: int = 0
    bad_rows: int = 0
    bad: list[BadRow] = field(default_factory=list)
    label_means: dict[str, float] = field(default_factory=dict)
    cardinalities: dict[str, int] = field(default_factory=dict)
    split: str = ""
    seconds: float = 0.0
    peak_memory: int = 0


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
        progress: Called with ("count" or "write", bytes done, bytes in all).

    Raises:
        DataError: The log is not of that format, has too many bad rows, or cannot be split as asked; the directory
            holds something else; the disk is full. Nothing that a reader would take is left then.
    """
    return _Run(raw, [Path(path) for path in inputs], Path(output), options or PrepareOptions(), progress).run()


class _Run:
    """One run of `prepare`: its state."""

    def __init__(
        self, raw: RawFormat, inputs: list[Path], output: Path, options: PrepareOptions, progress: Progress
    ) -> None:
        self.raw, self.inputs, self.output, self.options, self.progress = raw, inputs, output, options, progress
        self.split = parse_split(options.split or raw.default_split, options.seed)
        self.report = PrepareReport(split=options.split or raw.default_split)
        self.times = next((column.name for column in raw.columns_of("timestamp")), None)
        self.block_bytes = options.block_bytes or min(max(options.memory // 64, 1 << 20), 16 << 20)
        self.sums = np.zeros((len(SPLITS), 3))  # rows, weights, weighted labels

    def run(self) -> PrepareReport:
        start = time.perf_counter()
        for path in self.inputs:
            if not path.is_file():
                raise DataError(f"{path}: there is no such file", "Give the raw log's files with --input.")
            self.raw.sniff(path)
        source = {"files": [{"name": path.name, "bytes": path.stat().st_size} for path in self.inputs]}
        with ShardWriter(
            self.output, None, format=self.raw.name, source=source, overwrite=self.options.overwrite
        ) as writer:
            try:
                self._write(writer)
            except OSError as error:
                what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"cannot write: {error}"
                raise DataError(f"{self.output}: {what}", "Nothing half-written remains; free some space.") from error
        self.report.seconds = time.perf_counter() - start
        self.report.peak_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return self.report

    def _write(self, writer: ShardWriter) -> None:
        counts = {} if self.options.hash_size else self._counters()
        totals = self._first_pass(counts)
        assign = self.split.bounds(totals)
        vocabularies = self._vocabularies(counts)
        transform = self.options.dense_transform or self.raw.dense_transform
        encoder = Encoder(self.raw, vocabularies, self.options.hash_size, transform)
        files = {name: f"vocabulary/{counter.path.name}" for name, counter in counts.items()}
        writer.schema = encoder.schema(files, self._info())
        self.report.cardinalities = {feature.name: feature.num_embeddings for feature in writer.schema.sparse}

        def encode(chunk: Chunk, start: int, file: int) -> tuple[RawBlock, int, dict[int, pa.Table]]:
            block = self.raw.parse(chunk)
            times = block.columns[self.times].to_numpy() if self.times else None
            parts = split_rows(encoder.encode(block), assign(block.positions + start, file, times))
            return block, len(block), parts

        self.report.bad, self.report.bad_rows = [], 0
        for block, rows, parts in self._blocks("write", encode):
            self._note(block)
            self.report.left_out += rows - sum(part.num_rows for part in parts.values())
            for index, part in parts.items():
                self._sum_labels(index, part, writer.schema)
                writer.add(SPLITS[index], part)
        self._finish(writer)

    def _counters(self) -> dict[str, CategoryCounts]:
        directory = self.output / "vocabulary"
        directory.mkdir(exist_ok=True)
        return {
            column.name: CategoryCounts(column.name, directory, column.kind == "hex")
            for column in self.raw.columns_of("sparse", "bag")
        }

    def _first_pass(self, counts: dict[str, CategoryCounts]) -> Totals:
        """Count what the second pass needs: values into `counts`, times and rows; or return at once if nothing."""
        totals = Totals(times=TimeCounts() if self.times and self.split.needs_times else None)
        if counts or totals.times is not None:
            self._count(counts, totals.times)
        if self.split.needs_rows or self.split.needs_times:
            totals.rows = [0] * len(self.inputs)
            for chunk, _, file in self._chunks():
                totals.rows[file] += chunk.rows
        return totals

    def _count(self, counts: dict[str, CategoryCounts], times: TimeCounts | None) -> None:
        def count(chunk: Chunk, start: int, file: int) -> tuple[RawBlock, list[tuple[pl.DataFrame, int]]]:
            block = self.raw.parse(chunk)
            parts = count_categories(self.raw, block) if counts else []
            block.columns = {self.times: block.columns[self.times]} if self.times else {}
            return block, parts

        for block, parts in self._blocks("count", count):
            self._note(block)
            if times is not None and self.times:
                times.add(block.columns[self.times].to_numpy())
            for counter, (part, missing) in zip(counts.values(), parts, strict=False):
                counter.missing += missing
                counter.add(part)
            while sum(counter.nbytes for counter in counts.values()) > self.options.memory // 2:
                max(counts.values(), key=lambda counter: counter.nbytes).spill()

    def _vocabularies(self, counts: dict[str, CategoryCounts]) -> dict[str, Vocabulary]:
        found: dict[str, Vocabulary] = {}
        for name, counter in counts.items():
            left = self.options.memory - sum(vocabulary.nbytes for vocabulary in found.values())
            found[name] = counter.vocabulary(self.options.min_count, self.options.max_vocabulary, max(left, 0))
        return found

    def _blocks(self, stage: str, function: Callable[[Chunk, int, int], T]) -> Iterator[T]:
        """Yield `function(chunk, position of its file's first row, index of the file)` of every chunk, in order."""
        total, before = sum(path.stat().st_size for path in self.inputs), 0
        file, sizes = 0, [path.stat().st_size for path in self.inputs]
        with ThreadPoolExecutor(self.threads) as pool:
            waiting: deque[tuple[Future[T], int]] = deque()
            try:
                for chunk, start, file in self._chunks():
                    before = sum(sizes[:file])
                    waiting.append((pool.submit(function, chunk, start, file), before + chunk.position))
                    if len(waiting) > self.threads:
                        yield from self._result(stage, waiting, total)
                while waiting:
                    yield from self._result(stage, waiting, total)
            finally:
                for future, _ in waiting:
                    future.cancel()
