"""The manifest of a shard directory: which shards there are, and how to tell that they are whole."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recloom import intact
from recloom.errors import DataError

MANIFEST = "manifest.json"
SCHEMA = "schema.json"
UNFINISHED = ".unfinished"  # there, and locked, while a run writes the directory
_VERSION = 1
_OF_SCHEMA = "schema_sha256"
_NOT_FACTS = ("version", "splits", _OF_SCHEMA)
_AGAIN = "Run `recloom prepare` again."


@dataclass(frozen=True)
class Shard:
    """One Parquet file.

    Args:
        file: Path below the directory.
        rows: Number of rows.
        row_groups: Rows of each row group.
        bytes: Size of the file.
        sha256: Hash of the file, in hexadecimal.
    """

    file: str
    rows: int
    row_groups: list[int]
    bytes: int
    sha256: str

    def check(self, directory: Path, full: bool = False) -> None:
        """Raise DataError unless the file is there with the right size and, if `full`, the right sha256."""
        path = directory / self.file
        try:
            size = path.stat().st_size
        except OSError:
            raise DataError(f"{path}: this shard of the manifest is missing", _AGAIN) from None
        if size != self.bytes:
            what = "truncated" if size < self.bytes else "changed"
            raise DataError(
                f"{path}: the shard is {what}: {size:,} bytes where the manifest has {self.bytes:,}",
                f"Copy the file again, or prepare it again: {_AGAIN}",
            )
        if full:
            if intact.sha256(path) != self.sha256:
                raise DataError(f"{path}: the shard is corrupt: its sha256 is not the manifest's", _AGAIN)


@dataclass(frozen=True)
class Manifest:
    """All shards of a data set.

    Args:
        splits: The shards by split ("train", "val", "test"), in order.
        facts: For the record: "format", "source", "bad_rows", "stats", ...
    """

    splits: dict[str, list[Shard]]
    facts: dict[str, Any] = field(default_factory=dict)

    def rows(self, split: str) -> int:
        """Return the number of rows of `split`, 0 if there is none."""
        return sum(shard.rows for shard in self.splits.get(split, ()))

    def save(self, directory: Path) -> None:
        """Write `directory`/manifest.json aside, to the disk, and rename it; it has a checksum, and the schema's."""
        splits = {name: [asdict(shard) for shard in shards] for name, shards in self.splits.items()}
        stored = {"version": _VERSION, **self.facts, "splits": splits}
        if (directory / SCHEMA).exists():
            stored[_OF_SCHEMA] = intact.sha256(directory / SCHEMA)
        aside = directory / (MANIFEST + ".part")
        with aside.open("w") as file:
            json.dump(intact.signed(stored), file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(directory / MANIFEST)

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Read `directory`/manifest.json.

        Raises:
            DataError: There is no finished data set in `directory`, or its manifest cannot be used, or its schema is
                not the one that was written.
        """
        path = directory / MANIFEST
        if not directory.is_dir():
            raise DataError(
                f"{directory}: there is no such directory",
                "Prepare the data first: recloom prepare FORMAT --input RAW --output DIR",
            )
        try:
            found = json.loads(path.read_text())
            found = intact.unsigned(found, path, _AGAIN)
            if found["version"] > _VERSION:
                raise DataError(f"{path}: version {found['version']} is newer than this recloom", "Update recloom.")
            splits = {name: [Shard(**shard) for shard in shards] for name, shards in found["splits"].items()}
        except FileNotFoundError:
            unfinished = (directory / UNFINISHED).exists()
            what = "`recloom prepare` has not finished here" if unfinished else "there is no data set here"
            raise DataError(f"{directory}: {what} (no {MANIFEST})", _AGAIN) from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a manifest of shards: {error!r}", _AGAIN) from error
        for shard in (shard for shards in splits.values() for shard in shards):
            intact.inside(directory, shard.file, path, _AGAIN)
        if _OF_SCHEMA in found and (directory / SCHEMA).exists():
            if intact.sha256(directory / SCHEMA) != found[_OF_SCHEMA]:
                raise DataError(f"{directory / SCHEMA}: it is not the one that was written (its sha256)", _AGAIN)
        return cls(splits, {key: value for key, value in found.items() if key not in _NOT_FACTS})
