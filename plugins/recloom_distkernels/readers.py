"""Sets of points from files: Parquet with a group column, .npz of arrays, shard directories of `recloom prepare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recloom import archives
from recloom.data.manifest import MANIFEST
from recloom.errors import DataError, suggest
from recloom_distkernels.samplesets import SampleSets


@dataclass(frozen=True)
class GroupTable:
    """Sets read from files.

    Args:
        sets: The sets, in the order of their first rows.
        labels: S labels, if asked for.
        columns: Names of the d coordinates.
    """

    sets: SampleSets
    labels: np.ndarray | None
    columns: tuple[str, ...]


def read_groups(
    path: str | Path,
    group: str = "group",
    columns: Sequence[str] = (),
    vectors: str | Path = "",
    dim: int = 10,
    feature: str = "item",
) -> GroupTable:
    """Read sets of points from what `path` is.

    Args:
        path: A Parquet file or a folder of them, a row a point; an .npz file, an n x d array a set; or a shard
            directory written by `recloom prepare`, whose users become the sets of their items' vectors.
        group: Parquet: column that tells the set.
        columns: Parquet: columns of coordinates; empty: all other numeric columns.
        vectors: Shard directory: .npy file of V x d vectors, a row an id of `feature`, or the folder of a run on these
            data, whose model's embedding is taken; empty: a truncated singular value decomposition of the users' items.
        dim: Shard directory: dimension of that decomposition.
        feature: Shard directory: what users are sets of ("item", "category").

    Raises:
        DataError: There is nothing at `path` to read, or it is not as described.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"{path}: there is no such file or folder", "Give a Parquet or .npz file, or a shard directory."
        )
    if path.is_dir() and (path / MANIFEST).exists():
        from recloom_distkernels.users import read_users

        return read_users(path, vectors, dim, feature)
    return read_npz(path) if path.suffix == ".npz" else read_parquet(path, group, columns)


def read_npz(path: Path) -> GroupTable:
    """Read a set an array of an .npz file; the arrays' names are the sets'."""
    arrays = archives.read_arrays(path, "Write it by numpy.savez(FILE, a=..., b=...).", compressed=True)
    try:
        sets = SampleSets.from_list(list(arrays.values()), list(arrays))
    except DataError as error:
        raise DataError(f"{path}: {error.message}", error.hint) from error
    return GroupTable(sets, None, tuple(f"x{i}" for i in range(sets.dim)))


def read_parquet(path: str | Path, group: str, columns: Sequence[str] = (), label: str = "") -> GroupTable:
    """Read sets whose points are rows; rows of a set need not be neighbours, and keep their order.

    Args:
        path: A Parquet file, or a folder of them.
        group: Column that tells the set.
        columns: Columns of coordinates; empty: all numeric columns but `group` and `label`.
        label: Column of the set's label, the same in all its rows; empty: none.

    Raises:
        DataError: A column is missing or not numeric, a group or label is empty, or a set has two labels.
    """
    path = Path(path)
    needed = [name for name in (group, label, *columns) if name]
    table = _read_table(path, needed if columns else None)
    for name in needed:
        if name not in table.column_names:
            raise DataError(f"{path}: there is no column {name!r}", suggest(name, table.column_names))
    wanted = tuple(columns) or tuple(
        field.name for field in table.schema if field.name not in (group, label) and _numeric(field.type)
    )
    for name in wanted:
        if not _numeric(table[name].type):
            raise DataError(f"{path}: column {name!r} is {table[name].type}, no number", "Name other --columns.")
    for name in needed[: 1 + bool(label)]:
        if table[name].null_count:
            raise DataError(f"{path}: column {name!r} has {table[name].null_count} empty values", "Fill them.")
    if not wanted:
        raise DataError(f"{path}: there is no numeric column beside {group!r}", "A set's points need coordinates.")
    codes = table[group].combine_chunks().dictionary_encode()
    index = codes.indices.to_numpy()
    single = all(pa.types.is_float32(table[name].type) for name in wanted)
    values = np.stack(
        [table[name].to_numpy().astype(np.float32 if single else np.float64, copy=False) for name in wanted], axis=1
    )
    order = np.argsort(index, kind="stable")
    sizes = np.bincount(index, minlength=len(codes.dictionary))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    try:
        sets = SampleSets(torch.from_numpy(values[order]), torch.from_numpy(offsets), codes.dictionary.to_pylist())
    except DataError as error:
        raise DataError(f"{path}: {error.message}", error.hint) from error
    labels = None
    if label:
        every = table[label].to_numpy().astype(np.float64)[order]
        labels = every[offsets[:-1]]
        if not np.array_equal(np.repeat(labels, sizes), every):
            wrong = int(np.flatnonzero(np.repeat(labels, sizes) != every)[0])
            place = int(np.searchsorted(offsets, wrong, side="right")) - 1
            raise DataError(
                f"{path}: set {sets.names[place]!r} has rows of different {label!r}", "A set has one label."
            )
    return GroupTable(sets, labels, wanted)


def _read_table(path: Path, columns: list[str] | None) -> pa.Table:
    try:
        files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{path}: there are no Parquet files here", "Give a .parquet file, or a folder of them.")
        tables = [pq.read_table(file, columns=columns, partitioning=None) for file in files]
        return pa.concat_tables(tables)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}", "Write it again."
        ) from error


def _numeric(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)
