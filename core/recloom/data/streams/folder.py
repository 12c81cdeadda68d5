"""A stream's folder: flat little-endian arrays and a manifest, written piece by piece and mapped when read.

DIR/source.bin, destination.bin   int32        DIR/time.bin    int64
DIR/label.bin, features.bin       float32, where there are any
DIR/nodes/source.parquet          the raw name of each source, in the order of numbers; destination likewise
DIR/manifest.json                 sizes, bounds of the splits, checksums, facts; written last
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from recloom import intact
from recloom.data.manifest import MANIFEST, UNFINISHED
from recloom.data.shards import claim, clear
from recloom.data.streams.stream import EventStream
from recloom.errors import DataError

TYPES = {"source": "<i4", "destination": "<i4", "time": "<i8", "label": "<f4", "features": "<f4"}
_AGAIN = "Run `recloom prepare` again."
_COPY = 1 << 22


class StreamWriter:
    """Writes a stream's folder, piece by piece; a context manager that removes what it wrote on an exception.

    Args:
        directory: The folder; made if it is missing.
        columns: Which of source, destination, time, label and features there are.
        num_features: Width of the features.
        overwrite: Replace the data set that is there.

    Raises:
        DataError: The folder is not empty, or another process writes there.
    """

    def __init__(
        self, directory: Path, columns: tuple[str, ...], num_features: int = 0, overwrite: bool = False
    ) -> None:
        self.directory, self.columns, self.num_features = Path(directory), columns, num_features
        self._lock = claim(self.directory, overwrite)
        self._files: dict[str, IO[bytes]] = {name: self._part(name).open("wb") for name in columns}
        self.length = 0
        self.disorder = 0  # events that are earlier than the one before them
        self._last = -1

    def add(self, columns: dict[str, NDArray[Any]]) -> None:
        """Append events: a piece of every column."""
        time = columns["time"]
        if not len(time):
            return
        self.disorder += int((np.diff(time, prepend=self._last) < 0).sum())
        self._last = int(time[-1])
        for name, file in self._files.items():
            file.write(np.ascontiguousarray(columns[name], TYPES[name]).tobytes())
        self.length += len(time)

    def mapped(self, name: str) -> NDArray[Any]:
        """Return what was added to a column so far."""
        self._files[name].flush()
        return _mapped(self._part(name), name, self.length, self.num_features)

    def rearrange(self, order: NDArray[np.int64]) -> None:
        """Keep the events at these positions, in this order."""
        for name, file in self._files.items():
            if self.length:
                old, aside = self.mapped(name), self._part(name).with_suffix(".again.part")
                with aside.open("wb") as new:
                    for start in range(0, len(order), _COPY):
                        new.write(np.ascontiguousarray(old[order[start : start + _COPY]]).tobytes())
                del old
                file.close()
                aside.replace(self._part(name))
                self._files[name] = self._part(name).open("ab")
        self.length = len(order)

    def finish(self, facts: dict[str, Any]) -> None:
        """Give the files their names and write the manifest with `facts`, last."""
        for name, file in self._files.items():
            file.close()
            self._part(name).replace(self.directory / f"{name}.bin")
        stored = {"version": 1, "kind": "stream", "events": self.length, "num_features": self.num_features, **facts}
        stored["columns"] = list(self.columns)
        stored["sha256"] = {name: intact.sha256(self.directory / f"{name}.bin") for name in self.columns}
        aside = self.directory / (MANIFEST + ".part")
        aside.write_text(json.dumps(intact.signed(stored), indent=1) + "\n")
        aside.replace(self.directory / MANIFEST)
        (self.directory / UNFINISHED).unlink()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and not self._lock.closed:
            for file in self._files.values():
                file.close()
            clear(self.directory)
            self._lock.close()
            if not any(self.directory.iterdir()):
                self.directory.rmdir()

    def _part(self, name: str) -> Path:
        return self.directory / f"{name}.bin.part"


def load_stream(directory: Path, verify: bool = False) -> EventStream:
    """Return the stream in `directory`, its columns mapped from the files: memory is used as they are read.

    Args:
        directory: What `StreamWriter` wrote.
        verify: Compare the columns with their sha256, which reads all of them.

    Raises:
        DataError: There is no finished stream, or a file is missing, has the wrong size, or is damaged.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    if not directory.is_dir():
        hint = "Prepare the stream first: recloom prepare jodie --input RAW --output DIR"
        raise DataError(f"{directory}: there is no such directory", hint)
    try:
        facts = intact.unsigned(json.loads(path.read_text()), path, _AGAIN)
    except FileNotFoundError:
        raise DataError(f"{directory}: there is no finished data set here (no {MANIFEST})", _AGAIN) from None
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise DataError(f"{path}: not a manifest: {error}", _AGAIN) from error
    if facts.get("kind") != "stream":
        hint = "Prepare one with the formats jodie, graph or movielens_graph."
        raise DataError(f"{directory}: this is a shard directory, not an event stream", hint)
    columns = {
        name: torch.from_numpy(_mapped(directory / f"{name}.bin", name, facts["events"], facts["num_features"]))
        for name in facts["columns"]
    }
    for name, digest in facts.get("sha256", {}).items() if verify else ():
        if intact.sha256(directory / f"{name}.bin") != digest:
            raise DataError(f"{directory / name}.bin: it is damaged: its sha256 is not the manifest's", _AGAIN)
    return EventStream(
        **columns,
        num_sources=facts["num_sources"],
        num_destinations=facts["num_destinations"],
        bipartite=facts["bipartite"],
        ticks=facts["ticks"],
        bounds=tuple(facts["bounds"]),
        info=facts.get("info", {}),
    )


def _mapped(path: Path, name: str, length: int, num_features: int) -> NDArray[Any]:
    kind = np.dtype(TYPES[name])
    shape = (length, num_features) if name == "features" else (length,)
    wanted = int(np.prod(shape)) * kind.itemsize
    try:
        size = path.stat().st_size
    except OSError:
        raise DataError(f"{path}: this column of the manifest is missing", _AGAIN) from None
    if size != wanted:
        raise DataError(f"{path}: {size:,} bytes where the manifest says {wanted:,}", _AGAIN)
    if not wanted:
        return np.zeros(shape, kind)
    return np.memmap(path, kind, mode="c", shape=shape)  # private: nothing that is written reaches the file
