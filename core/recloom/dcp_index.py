"""The index of a sharded checkpoint, which torch.distributed.checkpoint keeps as a pickle, read without running it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as dcpmeta

from recloom import intact
from recloom.errors import DataError

INDEX = ".metadata"

# torch.distributed.checkpoint keeps its index as a pickle, which could run any code when read. This is all that such
# an index is made of; the tensors themselves are read with weights_only=True, and pickled objects are refused.
_ALLOWED = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        *("Metadata", "MetadataIndex", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata"),
        *("StorageMeta", "_MEM_FORMAT_ENCODING"),
    )
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    *(("torch", str(dtype).removeprefix("torch.")) for dtype in (torch.float32, torch.float16, torch.bfloat16)),
    *(("torch", str(dtype).removeprefix("torch.")) for dtype in (torch.float64, torch.int64, torch.int32)),
}


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = "pathlib" if module == "pathlib._local" else module  # where Python 3.13 has it
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no index of shards needs")
        return super().find_class(module, name)


def read_index(folder: Path) -> dcpmeta.Metadata:
    """Return the index of the shards in `folder`; DataError if there is none, or it holds more than an index."""
    try:
        with (folder / INDEX).open("rb") as file:
            found = _IndexUnpickler(file).load()
    except FileNotFoundError:
        raise DataError(
            f"{folder}: the shards of this checkpoint are not here", "Copy the .ckpt.shards folder beside the file."
        ) from None
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise DataError(f"{folder}: not an index that can be read safely: {error}", "Use an earlier one.") from error
    if not isinstance(found, dcpmeta.Metadata):
        raise DataError(f"{folder}: its {INDEX} is not an index of shards", "Use an earlier checkpoint.")
    for stored in (found.storage_data or {}).values():
        intact.inside(folder, str(stored.relative_path), folder / INDEX, "Use an earlier checkpoint.")
    return found
