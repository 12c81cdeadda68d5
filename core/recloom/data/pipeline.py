"""Raw files in pieces, through several threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from recloom.data.formats.base import Chunk, RawFormat

T = TypeVar("T")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Piece:
    """A chunk and its place in the whole input.

    Args:
        chunk: The chunk.
        file: Index of its file.
        start: Position of the file's first row among the rows of all files.
        done: Bytes of all files up to the end of the chunk.
    """

    chunk: Chunk
    file: int
    start: int
    done: int


@dataclass(frozen=True)
class RawLog:
    """The files of one log.

    Args:
        raw: Their format.
        inputs: The files, in order.
        block_bytes: Size of the pieces.
        limit: Most lines of data to read, or None.
        threads: Number of threads that work on pieces.
        progress: Called with the stage, the bytes done and the bytes in all.
    """

    raw: RawFormat
    inputs: Sequence[Path]
    block_bytes: int
    limit: int | None
    threads: int
    progress: Progress

    def pieces(self) -> Iterator[Piece]:
        """Yield the pieces of all files, up to the limit."""
        start = done = 0
        for file, path in enumerate(self.inputs):
            rows = 0
            for chunk in self.raw.chunks(path, self.block_bytes):
                if self.limit is not None and start + rows + chunk.rows > self.limit:
                    chunk = self.raw.head(chunk, self.limit - start - rows)
                rows += chunk.rows
                if chunk.rows:
                    yield Piece(chunk, file, start, done + chunk.position)
                if self.limit is not None and start + rows >= self.limit:
                    return
            start += rows
            done += path.stat().st_size

    def map(self, stage: str, function: Callable[[Piece], T]) -> Generator[tuple[Piece, T]]:
        """Yield every piece with `function` of it, in order; a few pieces at a time are in memory."""
        total = sum(path.stat().st_size for path in self.inputs)
        waiting: deque[tuple[Piece, Future[T]]] = deque()

        def oldest() -> tuple[Piece, T]:
            piece, future = waiting.popleft()
            result = future.result()
            self.progress(stage, piece.done, total)
            return piece, result

        with ThreadPoolExecutor(self.threads) as pool:
            try:
                for piece in self.pieces():
                    future = pool.submit(function, piece)
                    waiting.append((replace(piece, chunk=replace(piece.chunk, data=None)), future))
                    if len(waiting) > self.threads:
                        yield oldest()
                while waiting:
                    yield oldest()
                self.progress(stage, total, total)
            finally:
                for _, future in waiting:
                    future.cancel()
