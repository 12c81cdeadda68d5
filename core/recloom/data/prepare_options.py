"""How a raw log is prepared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
        like: A data set whose ids and transforms are taken over; values that it does not have get id 0.
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
    like: Path | None = None
    overwrite: bool = False
    block_bytes: int = 0
