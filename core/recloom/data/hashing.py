"""Hashes of categories: vectorised, and the same on every machine and in every version.

Shards, hashed ids and vocabularies of different days must agree, so the functions are fixed here instead of taken from
a library that may change them. In words: the bytes of a string are read as little-endian 64-bit words, the last one
padded with zeros; h starts as its length in bytes times P; each word w does h = rotate_left(h ^ w, 29) * P; the result
is mix64(h).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_P = np.uint64(0x9E3779B97F4A7C15)
_U = np.uint64


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return n well-mixed 64-bit numbers: splitmix64's finaliser, a bijection (Steele et al. 2014)."""
    mixed = (values ^ (values >> _U(30))) * _U(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> _U(27))) * _U(0x94D049BB133111EB)
    return mixed ^ (mixed >> _U(31))


def uniform(positions: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Return n numbers in [0, 1), each a function of its position and the seed alone."""
    start = mix64(np.array([seed], np.int64).view(np.uint64) + _P)
    return (mix64(positions.view(np.uint64) * _P + start) >> _U(11)).astype(np.float64) * 2.0**-53


def hash_ids(keys: NDArray[np.unsignedinteger], size: int) -> NDArray[np.int32]:
    """Return n ids in 1 .. size-1 for the keys of categories; id 0 is left for missing ones."""
    return (mix64(keys.astype(np.uint64) + _P) % _U(size - 1)).astype(np.int32) + np.int32(1)


def _string_buffers(array: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the n+1 bounds and the bytes of a string array."""
    array = array.cast(pa.large_string()) if array.type != pa.large_string() else array
    bounds = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    data = array.buffers()[2]
    return bounds, np.frombuffer(data if data is not None else b"", np.uint8)


def hash_strings(array: pa.Array) -> NDArray[np.uint64]:
    """Return the n 64-bit hashes of a string array; those of nulls mean nothing."""
    if len(array) == 0:
        return np.empty(0, np.uint64)
    bounds, data = _string_buffers(array)
    lengths = np.diff(bounds)
    padded = np.concatenate([data, np.zeros(8, np.uint8)])
    words: NDArray[np.uint64] = np.ndarray(len(padded) - 7, "<u8", padded, strides=(1,))
    hashes = lengths.astype(np.uint64) * _P
    for start in range(0, int(lengths.max()), 8):
        rows = np.flatnonzero(lengths > start)
        spare = (8 - np.minimum(lengths[rows] - start, 8)).astype(np.uint64) * _U(8)
        mixed = hashes[rows] ^ (words[bounds[rows] + start] << spare >> spare)
        hashes[rows] = (mixed << _U(29) | mixed >> _U(35)) * _P
    return mix64(hashes)


def hex_keys(array: pa.Array) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Read n strings of 8 lower-case hexadecimal digits.

    Returns:
        The n numbers (0 for nulls), and which of the strings are neither null nor such digits.
    """
    bounds = np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]
    data = np.frombuffer(array.buffers()[2] or b"", np.uint8)[bounds[0] : bounds[-1]]
    lengths = np.diff(bounds)
    eight = lengths == 8
    count = int(np.count_nonzero(eight))
    numbers, wrong = np.zeros(len(array), np.uint32), np.zeros(len(array), bool)
    if count + array.null_count != len(array):  # some are longer or shorter
        wrong = array.is_valid().to_numpy(zero_copy_only=False) & ~eight
        data = data[np.repeat(eight, lengths)]
    if count:
        parsed, good = _parse_hex(data.view("<u8"))
        numbers[eight] = parsed
        if not good.all():
            wrong[eight] |= ~good
    return numbers, wrong


def _parse_hex(text: NDArray[np.uint64]) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Return (the numbers, whether every byte is a digit 0-9a-f); a word holds 8 characters, the first one lowest."""
    ones = 0x0101010101010101
    scratch = (text >> _U(6)) & _U(ones)  # 1 in the bytes of letters
    scratch *= _U(9)
    nibbles = text & _U(0x0F * ones)
    nibbles += scratch
    # written out again, every digit must give the byte it came from
    np.add(nibbles, _U(6 * ones), out=scratch)
    scratch >>= _U(4)
    scratch &= _U(ones)
    scratch *= _U(0x27)
    scratch += nibbles
    scratch += _U(0x30 * ones)
    scratch ^= text
    scratch |= nibbles & _U(0xF0 * ones)
    good = scratch == 0
    numbers = nibbles.byteswap()
    for shift, mask in ((4, 0x00FF00FF00FF00FF), (8, 0x0000FFFF0000FFFF), (16, 0x00000000FFFFFFFF)):
        np.right_shift(numbers, _U(shift), out=scratch)
        numbers |= scratch
        numbers &= _U(mask)
    return numbers.astype(np.uint32), good
