"""Requests as JSON documents: checked field by field, and turned into a batch.

    {"dense": [[0.1, 2.0], ...],                      B lists, in the schema's order, if there are dense features
     "sparse": {"user": [7, ...], "tags": [[1, 2], []]},   for each feature B ids, or B lists of ids if it is a bag
     "histories": {"history": {"ids": [[[5, 1], ...], ...],  B lists of steps, oldest first, each K ids
                               "gaps": [[3600, ...], ...]}}}   seconds from each step to now, if steps have times

An id that its table does not have counts as id 0, the unknown one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recloom.batch import Batch, KeyedJaggedTensor, Sequences
from recloom.errors import DataError, suggest
from recloom.features import FeatureSchema, SequenceFeature

NOW = 1 << 62  # s, the time of every row: a gap's step is that much earlier


def parse(document: Any, schema: FeatureSchema, max_rows: int) -> Batch:
    """Return the batch that a request describes.

    Args:
        document: What `json.loads` made of the request.
        schema: The model's features.
        max_rows: Most rows of a request.

    Raises:
        DataError: Something is missing, unknown, of another type or length, or too much; it names the field.
    """
    wanted = {"dense": bool(schema.dense), "sparse": bool(schema.sparse), "histories": bool(schema.sequences)}
    fields = [name for name, needed in wanted.items() if needed]
    _same_names(document, fields, "the request")
    rows = _rows(document, schema, fields)
    if not 1 <= rows <= max_rows:
        raise DataError(f"a request of {rows} rows", f"It takes 1 to {max_rows}.")
    dense = torch.zeros(rows, 0)
    if schema.sequences:
        _same_names(document["histories"], [part.name for part in schema.sequences], "histories")
    if schema.dense:
        dense = _dense(document["dense"], rows, len(schema.dense))
    return Batch(
        dense_features=dense,
        sparse_features=_sparse(document.get("sparse", {}), schema, rows),
        labels=torch.zeros(rows),
        sequences={
            part.name: _history(document["histories"][part.name], part, rows, _timed(part, schema))
            for part in schema.sequences
        },
        timestamps=torch.full((rows,), NOW),
    )


def example(schema: FeatureSchema, rows: int, seed: int = 0) -> dict[str, Any]:
    """Return a request of `rows` random rows, as `parse` takes it; bags have 1 to 4 ids, histories 1 to 4 steps."""
    random = np.random.default_rng(seed)

    def ids(size: int, count: int) -> list[int]:
        return random.integers(size, size=count).tolist()

    found: dict[str, Any] = {}
    if schema.dense:
        found["dense"] = random.standard_normal((rows, len(schema.dense))).round(3).tolist()
    if schema.sparse:
        found["sparse"] = {
            f.name: ids(f.num_embeddings, rows)
            if f.max_length == 1
            else [ids(f.num_embeddings, int(n)) for n in random.integers(1, 5, rows)]
            for f in schema.sparse
        }
    for part in schema.sequences:
        lengths = random.integers(1, min(4, part.max_length) + 1, rows)
        steps = [[[int(random.integers(k.num_embeddings)) for k in part.keys] for _ in range(n)] for n in lengths]
        history: dict[str, Any] = {"ids": steps}
        if _timed(part, schema):
            history["gaps"] = [sorted(random.integers(86_400, size=n).tolist(), reverse=True) for n in lengths]
        found.setdefault("histories", {})[part.name] = history
    return found


def _timed(part: SequenceFeature, schema: FeatureSchema) -> bool:
    return part.timestamps and bool(schema.timestamp)


def _same_names(found: Any, wanted: Sequence[str], where: str) -> None:
    if not isinstance(found, dict):
        raise DataError(f"{where} is no JSON object", f"It has: {', '.join(wanted)}.")
    for name in found:
        if name not in wanted:
            raise DataError(f"{where} has {name!r}", suggest(name, wanted))
    for name in wanted:
        if name not in found:
            raise DataError(f"{where} has no {name!r}", f"It has: {', '.join(wanted)}.")


def _rows(document: dict[str, Any], schema: FeatureSchema, fields: Sequence[str]) -> int:
    """Return the number of rows, by the first field there is."""
    if "dense" in fields:
        return len(_list(document["dense"], "dense"))
    if "sparse" in fields:
        _same_names(document["sparse"], schema.sparse_names, "sparse")
        return len(_list(document["sparse"][schema.sparse_names[0]], f"sparse.{schema.sparse_names[0]}"))
    raise DataError("this model has neither dense nor sparse features", "It cannot be asked.")


def _list(value: Any, where: str, rows: int | None = None) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{where} is no list", "Give a list with an item a row.")
    if rows is not None and len(value) != rows:
        raise DataError(f"{where} has {len(value)} rows, and the request {rows}", "All features have the same rows.")
    return value


def _numbers(value: Any, where: str, kinds: str, what: str) -> np.ndarray:
    """Return the values as an array, if they all are of a NumPy kind in `kinds`."""
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.empty(0, object)  # lists of different lengths
    if array.size and array.dtype.kind not in kinds:
        raise DataError(f"{where} has something else than {what}", f"Give {what} only.")
    return array


def _dense(value: Any, rows: int, width: int) -> Tensor:
    array = _numbers(value, "dense", "fiu", "numbers, the same number in each row")
    if array.shape != (rows, width):
        raise DataError(f"dense is of shape {list(array.shape)}", f"Give {width} numbers a row.")
    with np.errstate(over="ignore"):
        found = torch.from_numpy(array.astype(np.float32))
    if not bool(torch.isfinite(found).all()):
        raise DataError("dense has a number that is not finite, or too large for a float", "Give finite numbers.")
    return found


def _ids(value: Any, size: int, where: str) -> Tensor:
    array = _numbers(value, where, "iu", "whole numbers").astype(np.int64)
    return torch.from_numpy(np.where((array >= 0) & (array < size), array, 0))


def _sparse(found: Any, schema: FeatureSchema, rows: int) -> KeyedJaggedTensor:
    if schema.sparse:
        _same_names(found, schema.sparse_names, "sparse")
    values, lengths = [], []
    for feature in schema.sparse:
        where = f"sparse.{feature.name}"
        column = _list(found[feature.name], where, rows)
        if feature.max_length == 1:
            values.append(_ids(column, feature.num_embeddings, where))
            lengths.append(torch.ones(rows, dtype=torch.int64))
            if values[-1].ndim != 1:
                raise DataError(f"{where} has a list in a row", "This feature has one id a row.")
            continue
        bags = [_list(bag, f"{where}, row {row}") for row, bag in enumerate(column)]
        flat = _ids([one for bag in bags for one in bag], feature.num_embeddings, where)
        if flat.ndim != 1:
            raise DataError(f"{where} has lists of lists of lists", "Give a list of ids a row.")
        values.append(flat)
        lengths.append(torch.tensor([len(bag) for bag in bags]))
    ids = torch.cat(values) if values else torch.empty(0, dtype=torch.int64)
    return KeyedJaggedTensor(schema.sparse_names, ids, lengths=None if schema.one_hot else torch.cat(lengths))


def _history(found: Any, part: SequenceFeature, rows: int, timed: bool) -> Sequences:
    where = f"histories.{part.name}"
    _same_names(found, ["ids", "gaps"] if timed else ["ids"], where)
    column = _list(found["ids"], f"{where}.ids", rows)
    steps = [_list(row, f"{where}.ids, row {i}")[-part.max_length :] for i, row in enumerate(column)]
    lengths = [len(row) for row in steps]
    flat = [step if isinstance(step, list) else [step] for row in steps for step in row]
    array = _numbers(flat, f"{where}.ids", "iu", f"steps of {len(part.keys)} whole numbers")
    if array.size and array.shape != (sum(lengths), len(part.keys)):
        raise DataError(f"{where}.ids has steps of another length", f"Give {len(part.keys)} ids a step.")
    array = array.reshape(-1, len(part.keys)).astype(np.int64)
    limits = np.array([key.num_embeddings for key in part.keys])
    ids = torch.from_numpy(np.where((array >= 0) & (array < limits), array, 0))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    times = None
    if timed:
        times = NOW - _gaps(_list(found["gaps"], f"{where}.gaps", rows), part, lengths, f"{where}.gaps")
    return Sequences([key.name for key in part.keys], ids, offsets, times)


def _gaps(column: list[Any], part: SequenceFeature, lengths: Sequence[int], where: str) -> Tensor:
    """Return the seconds of all steps; below 0 counts as 0."""
    gaps = [_list(row, f"{where}, row {i}")[-part.max_length :] for i, row in enumerate(column)]
    if [len(row) for row in gaps] != lengths:
        raise DataError(f"{where} has other lengths than its ids", "Give seconds for each step.")
    seconds = _numbers([gap for row in gaps for gap in row], where, "fiu", "numbers of seconds")
    if not bool((np.abs(seconds) < NOW).all()):
        raise DataError(f"{where} has a number that is not finite, or too large", "Give seconds.")
    return torch.from_numpy(seconds.astype(np.int64)).clamp(min=0)
