"""Tensors whose rows are spread over ranks, written and read with torch.distributed.checkpoint.

Shards are stored by their place in the whole tensor, so that any number of ranks, with any plan, can read them.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import metadata as dcpmeta
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.futures import Future

from recloom import archives
from recloom.dcp_index import read_index
from recloom.errors import DataError

_EARLIER = "Use an earlier checkpoint."
CHUNK_BYTES = 64 << 20  # largest piece of a tensor that a save or a load holds in memory twice


@dataclass(frozen=True)
class RowSpans:
    """Which rows of a whole tensor a local tensor holds, one stretch after the other.

    Args:
        total: Rows of the whole tensor.
        spans: (first row in the whole tensor, number of rows) of each stretch.
    """

    total: int
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def all(cls, total: int) -> RowSpans:
        """Return the spans of a tensor that is whole."""
        return cls(total, ((0, total),))

    @property
    def rows(self) -> int:
        """Rows of the local tensor."""
        return sum(count for _, count in self.spans)

    def take(self, whole: Tensor) -> Tensor:
        """Return this rank's rows of `whole`."""
        return torch.cat([whole[first : first + count] for first, count in self.spans] or [whole[:0]])


@dataclass
class _Piece:
    """Some consecutive rows: their first row in the whole tensor, its shape, and the local memory."""

    first: int
    shape: torch.Size
    rows: Tensor

    def chunk(self) -> dcpmeta.ChunkStorageMetadata:
        offsets = [self.first] + [0] * (self.rows.ndim - 1)
        return dcpmeta.ChunkStorageMetadata(torch.Size(offsets), self.rows.shape)


def _pieces(local: Tensor, spans: RowSpans) -> list[_Piece]:
    """Cut `local` into pieces of at most CHUNK_BYTES."""
    shape = torch.Size([spans.total, *local.shape[1:]])
    step = max(1, CHUNK_BYTES // max(1, local.element_size() * shape[1:].numel()))
    found, start = [], 0
    for first, count in spans.spans:
        for offset in range(0, count, step):
            length = min(step, count - offset)
            found.append(_Piece(first + offset, shape, local[start + offset : start + offset + length]))
        start += count
    return found


class _Saver(SavePlanner):
    """Plans a save of {name: pieces}."""

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        self._pieces: dict[str, list[_Piece]] = state_dict

    def create_local_plan(self) -> SavePlan:
        items = []
        for name, pieces in self._pieces.items():
            for piece in pieces:
                properties = dcpmeta.TensorProperties(dtype=piece.rows.dtype)
                chunk = piece.chunk()
                data = TensorWriteData(chunk=chunk, properties=properties, size=piece.shape)
                index = dcpmeta.MetadataIndex(name, chunk.offsets)
                items.append(WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data))
        return SavePlan(items)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], dcpmeta.Metadata]:
        return create_default_global_save_plan(all_plans)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        offset = write_item.index.offset
        assert offset is not None
        return next(p.rows for p in self._pieces[write_item.index.fqn] if p.first == offset[0]).detach()


class _Loader(LoadPlanner):
    """Plans a load into {name: pieces}."""

    def set_up_planner(self, state_dict: Any, metadata: Any = None, is_coordinator: bool = False) -> None:
        self._pieces: dict[str, list[_Piece]] = state_dict
        self._stored: dict[str, Any] = metadata.state_dict_metadata

    def create_local_plan(self) -> LoadPlan:
        items: list[ReadItem] = []
        for name, pieces in self._pieces.items():
            items += create_read_items_for_chunk_list(name, self._stored[name], [piece.chunk() for piece in pieces])
        return LoadPlan(items)

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        raise pickle.UnpicklingError(f"{read_item.storage_index.fqn} is a pickled object, not a tensor")

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        index = read_item.dest_index.index
        assert index is not None
        rows = self._pieces[read_item.dest_index.fqn][index].rows
        for axis, (offset, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            rows = rows.narrow(axis, offset, length)
        return rows.detach()

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        return


class _Reader(FileSystemReader):
    """Reads a folder whose index has been read already."""

    def __init__(self, folder: Path, index: dcpmeta.Metadata) -> None:
        super().__init__(folder)
        self._index = index

    def read_metadata(self) -> dcpmeta.Metadata:  # type: ignore[override]
        return self._index

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Compare the checksums of what this rank reads, which torch does not; then read it."""
        stored = [self._index.storage_data[item.storage_index] for item in plan.items]
        for name, offset, length in {(str(part.relative_path), part.offset, part.length) for part in stored}:
            archives.check(Path(self.path) / name, _EARLIER, part=(offset, length))
        return super().read_data(plan, planner)


def save(folder: Path, tensors: Mapping[str, tuple[Tensor, RowSpans]], group: dist.ProcessGroup | None = None) -> None:
    """Write every rank's rows of `tensors` into `folder`, on all ranks together; returns when all are on disk.

    Args:
        folder: A folder that does not exist yet, the same on all ranks.
        tensors: The local rows and their places by name; all ranks give the same names.
        group: A process group that can send objects between CPUs; the default one if None.

    Raises:
        DataError: A rank could not write (a full disk): on every rank.
    """
    state: dict[str, Any] = {name: _pieces(local.detach(), spans) for name, (local, spans) in tensors.items()}
    try:
        dcp_save(state, storage_writer=FileSystemWriter(folder), planner=_Saver(), process_group=group)
    except CheckpointException as error:
        raise DataError(f"{folder}: the shards could not be written: {_cause(error)}", "Is the disk full?") from error


def load(folder: Path, tensors: Mapping[str, tuple[Tensor, RowSpans]]) -> None:
    """Read rows into the local `tensors`, in place; each rank by itself, whatever number of ranks wrote them.

    Raises:
        DataError: The shards are missing or damaged, or a tensor has another shape.
    """
    index = read_index(folder)
    for name, (local, spans) in tensors.items():
        stored = index.state_dict_metadata.get(name)
        here = torch.Size([spans.total, *local.shape[1:]])
        if not isinstance(stored, dcpmeta.TensorStorageMetadata) or stored.size != here:
            there = tuple(stored.size) if isinstance(stored, dcpmeta.TensorStorageMetadata) else "missing"
            raise DataError(f"{folder}: {name} is {there} there, {tuple(here)} here", "Use the run's own config.yaml.")
    state: dict[str, Any] = {name: _pieces(local.detach(), spans) for name, (local, spans) in tensors.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*assuming the intent is to load in a single process.*")
        try:
            dcp_load(state, storage_reader=_Reader(folder, index), planner=_Loader(), no_dist=True)
        except CheckpointException as error:
            for cause, _ in error.failures.values():
                if isinstance(cause, DataError):
                    raise cause from error
            raise DataError(f"{folder}: shards are damaged: {_cause(error)}", _EARLIER) from error


def _cause(error: CheckpointException) -> str:
    """Return the first rank's failure, in one line."""
    rank, (cause, _) = next(iter(error.failures.items()))
    return f"rank {rank}: {type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}"
