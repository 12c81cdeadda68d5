"""Parsed blocks to the columns of a shard: categories to ids, dense values transformed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recloom.data.formats.base import Column, RawBlock, RawFormat
from recloom.data.formats.convert import is_list
from recloom.data.hashing import hash_ids, hash_strings
from recloom.data.vocabulary import Vocabulary
from recloom.features import DenseFeature, FeatureSchema, SparseFeature

HASH_NOTE = "id = 1 + mix64(key) mod (size - 1); key: the number for hexadecimal values, recloom.data.hashing otherwise"


class Categories(NamedTuple):
    """A block's values of one feature, each distinct one once.

    Args:
        codes: n places in `keys`, -1 for missing.
        keys: Keys of the distinct values.
        text: Their text, or None for hexadecimal values.
        bounds: Of the bags in `codes`: rows + 1; None when every row has exactly one value.
    """

    codes: NDArray[np.int32]
    keys: NDArray[np.unsignedinteger]
    text: pa.Array | None
    bounds: NDArray[np.int32] | None


def categories(column: Column, array: pa.Array) -> Categories:
    """Return the distinct values in a block's column of role "sparse" or "bag"."""
    bounds = None
    if column.role == "bag":
        lists = array if is_list(array.type) else pc.split_pattern(array, column.separator or "|")
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        array = lists.flatten().cast(pa.string())
    found = array.dictionary_encode()
    index = found.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    if column.kind == "hex":
        return Categories(index, found.dictionary.to_numpy(), None, bounds)
    return Categories(index, hash_strings(found.dictionary), found.dictionary, bounds)


def count_categories(raw: RawFormat, block: RawBlock) -> list[tuple[pl.DataFrame, int]]:
    """Return, for each sparse column, the counts of its values (columns key, count, value) and of its missing ones."""
    parts = []
    for column in raw.columns_of("sparse", "bag"):
        found = categories(column, block.columns[column.name])
        counts = np.bincount(found.codes + 1, minlength=len(found.keys) + 1)
        data: dict[str, Any] = {"key": found.keys, "count": counts[1:]}
        if found.text is not None:
            data["value"] = pl.Series(found.text, dtype=pl.String)
        parts.append((pl.DataFrame(data), int(counts[0])))
    return parts


class Encoder:
    """Encodes blocks.

    Args:
        raw: The log's format.
        vocabularies: By feature; empty when categories are hashed.
        hash_size: Number of ids of a hashed feature.
        transform: Of dense values, "log" or "none".
    """

    def __init__(
        self, raw: RawFormat, vocabularies: Mapping[str, Vocabulary], hash_size: int | None, transform: str
    ) -> None:
        self._raw = raw
        self._vocabularies = vocabularies
        self._hash_size = hash_size
        self._transform = transform
        self._sparse = raw.columns_of("sparse", "bag")

    def schema(self, vocabulary_files: Mapping[str, str], info: dict[str, Any]) -> FeatureSchema:
        """Return the schema of what `encode` returns."""

        def name(role: Any) -> str:
            return next((column.name for column in self._raw.columns_of(role)), "")

        return FeatureSchema(
            dense=tuple(DenseFeature(column.name, self._transform) for column in self._raw.columns_of("dense")),
            sparse=tuple(
                SparseFeature(
                    column.name,
                    self._hash_size or self._vocabularies[column.name].size,
                    max_length=0 if column.role == "bag" else 1,
                    vocabulary=vocabulary_files.get(column.name, ""),
                )
                for column in self._sparse
            ),
            labels=tuple(column.name for column in self._raw.columns_of("label")),
            weight=name("weight"),
            timestamp=name("timestamp"),
            group=name("group"),
            info=info,
        )

    def encode(self, block: RawBlock) -> pa.Table:
        """Return the rows of `block` as columns of a shard, in the order of the shard's columns."""
        columns: dict[str, Any] = {}
        for column in self._raw.columns_of("dense"):
            columns[column.name] = self._dense(block.columns[column.name])
        for column in self._sparse:
            columns[column.name] = self._ids(column, block.columns[column.name])
        for column in self._raw.columns_of("label", "weight"):
            columns[column.name] = block.columns[column.name].to_numpy(zero_copy_only=False).astype(np.float32)
        for column in self._raw.columns_of("timestamp"):
            columns[column.name] = block.columns[column.name]
        for column in self._raw.columns_of("group"):
            columns[column.name] = group_ids(block.columns[column.name])
        return pa.table(columns)

    def ids(self, name: str, found: Categories) -> NDArray[np.int32]:
        """Return the id of each value of feature `name`; 0 for missing and unknown ones."""
        if self._hash_size:
            ids = hash_ids(found.keys, self._hash_size)
        else:
            ids = self._vocabularies[name].lookup(found.keys)
        return np.append(ids, np.int32(0))[found.codes]  # code -1, a missing value, takes the 0 at the end

    def _dense(self, array: pa.Array) -> NDArray[np.float32]:
        values = array.fill_null(0).to_numpy(zero_copy_only=False)
        if self._transform == "log":
            values = np.log1p(np.maximum(values, 0))
        return values.astype(np.float32)

    def _ids(self, column: Column, array: pa.Array) -> pa.Array:
        found = categories(column, array)
        values = self.ids(column.name, found)
        if found.bounds is None:
            return pa.array(values)
        return pa.ListArray.from_arrays(pa.array(found.bounds), pa.array(values))


def group_ids(array: pa.Array) -> NDArray[np.int64]:
    """Return n ids of groups: integers as they are, text as its stable hash, missing as 0."""
    if pa.types.is_integer(array.type):
        return array.fill_null(0).cast(pa.int64()).to_numpy()
    ids = (hash_strings(array.fill_null("")) >> np.uint64(1)).view(np.int64)
    return np.where(array.is_valid().to_numpy(zero_copy_only=False), ids, 0)


def split_rows(table: pa.Table, where: NDArray[np.int8]) -> dict[int, pa.Table]:
    """Return the rows of each split by its index; those with index -1 are left out. The order of rows is kept."""
    if len(where) and (where == where[0]).all():
        return {int(where[0]): table} if where[0] >= 0 else {}
    ordered = table.take(pa.array(np.argsort(where, kind="stable")))
    bounds: Sequence[int] = np.searchsorted(np.sort(where), np.arange(int(where.max(initial=-1)) + 2)).tolist()
    return {
        index: ordered.slice(bounds[index], bounds[index + 1] - bounds[index])
        for index in range(len(bounds) - 1)
        if bounds[index + 1] > bounds[index]
    }
