"""Values of a parsed block to their types: vectorised, with the rows that cannot be converted marked as bad."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recloom.data.formats.base import Column, RawBlock
from recloom.data.hashing import hex_keys
from recloom.errors import DataError

_INT = r"^-?[0-9]{1,18}$"
_SECONDS = r"^-?[0-9]{1,18}(\.[0-9]*)?$"
_FLOAT = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_LARGEST = float(np.finfo(np.float32).max)  # shards hold float32; beyond is infinity
_ISO = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([ T][0-9]{2}:[0-9]{2}(:[0-9]{2})?(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:?[0-9]{2})?)?$"


def convert(block: RawBlock, column: Column) -> None:
    """Bring `block`'s column to its kind: int64, float64, string, uint32 for hex; times to int64 seconds.

    Values that do not convert are rejected, and null afterwards.

    Raises:
        DataError: No value of the column's type converts: structs in a Parquet file, bytes that are no text.
    """
    array = block.columns[column.name]
    try:
        block.columns[column.name] = _converted(block, column, array)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        what = f"column {column.name!r} of type {array.type} cannot be read as {column.kind}"
        cause = str(error).splitlines()[0]
        raise DataError(f"{block.file}, row {block.first_line}: {what}: {cause}", "Convert it beforehand.") from error


def _converted(block: RawBlock, column: Column, array: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if column.kind == "time":
        array = _times(block, column, array)
    elif column.kind == "int":
        array = _numbers(block, column.name, array, pa.int64(), _INT, "is not an integer")
    elif column.kind == "float":
        array = _numbers(block, column.name, array, pa.float64(), _FLOAT, "is not a number")
        block.reject(pc.invert(pc.is_finite(array)), column.name, "is not finite", array)
        block.reject(pc.greater(pc.abs(array), _LARGEST), column.name, "is too large for 32 bits", array)
    elif column.kind == "hex":
        keys, wrong = hex_keys(array)
        block.reject(wrong, column.name, "is not 8 hexadecimal digits", array)
        array = pa.array(keys, mask=array.is_null().to_numpy(zero_copy_only=False))
    elif is_list(array.type):
        if column.role != "bag":
            raise pa.ArrowTypeError("a list is no single value")
    elif array.type != pa.string():
        array = array.cast(pa.string())
    return array


def is_list(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _numbers(block: RawBlock, name: str, array: pa.Array, kind: pa.DataType, pattern: str, reason: str) -> pa.Array:
    if array.type == kind:
        return array
    if not _is_text(array):
        try:
            return array.cast(kind)
        except pa.ArrowInvalid:  # a fraction where integers are expected, or beyond 64 bits
            array = array.cast(pa.string())
    trimmed = pc.utf8_trim_whitespace(array.cast(pa.string()))
    good = pc.match_substring_regex(trimmed, pattern)
    block.reject(pc.invert(good), name, reason, array)
    return pc.if_else(good, trimmed, None).cast(kind)


def _times(block: RawBlock, column: Column, array: pa.Array) -> pa.Array:
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        return (
            array.cast(pa.timestamp("ns" if array.type == pa.timestamp("ns") else "us"))
            .cast(pa.timestamp("s"), safe=False)
            .cast(pa.int64())
        )
    if not _is_text(array):
        return _seconds(array.cast(pa.int64(), safe=False), column.unit)
    name = column.name
    seconds = pc.match_substring_regex(array, _SECONDS)
    whole = pc.replace_substring_regex(pc.if_else(seconds, array, None), r"\.[0-9]*$", "")
    numbers = _seconds(whole.cast(pa.int64()), column.unit)
    if pc.all(seconds).as_py() is not False:
        return numbers
    iso = pc.match_substring_regex(array, _ISO)
    block.reject(pc.invert(pc.or_(seconds, iso)), name, "is neither unix seconds nor an ISO 8601 time", array)
    text = pc.if_else(iso, array, None)
    try:
        return pc.coalesce(numbers, _iso_seconds(text))
    except pa.ArrowInvalid:  # a month 13 somewhere: find the rows one by one
        values = [_iso_or_none(text.slice(i, 1)) for i in range(len(text))]
        found = pa.array(values, pa.int64())
        block.reject(pc.and_(text.is_valid(), found.is_null()), name, "is no date", array)
        return pc.coalesce(numbers, found)


def _seconds(numbers: pa.Array, unit: int) -> pa.Array:
    """Return int64 seconds of numbers that count `unit` a second."""
    return numbers if unit == 1 else pc.divide(numbers, unit)


def _iso_seconds(text: pa.Array) -> pa.Array:
    """Return int64 seconds of ISO times; those with an offset are converted to UTC, the others taken as UTC."""
    zoned = pc.match_substring_regex(text, r"(Z|[ T].*[+-][0-9]{2}:?[0-9]{2})$")
    plain = pc.if_else(pc.fill_null(zoned, False), None, text).cast(pa.timestamp("ns"))
    moved = pc.if_else(zoned, text, None).cast(pa.timestamp("ns", tz="UTC")).cast(pa.timestamp("ns"))
    return pc.floor_temporal(pc.coalesce(plain, moved), unit="second").cast(pa.timestamp("s")).cast(pa.int64())


def _iso_or_none(text: pa.Array) -> int | None:
    try:
        return _iso_seconds(text)[0].as_py()
    except pa.ArrowInvalid:
        return None


def _is_text(array: pa.Array) -> bool:
    return bool(pa.types.is_string(array.type) or pa.types.is_large_string(array.type))
