"""An index in a folder, with the exported programs that make codes and scores: no Lightning, no model's code.

retriever = Retriever.load(Path("runs/hsnn-synthetic/index"))
found = retriever.search(retriever.read_users(Path("users.parquet")), k=100)
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from recloom import archives, intact, programs
from recloom.batch import Batch
from recloom.errors import DataError, RecloomError, unknown
from recloom.features import FeatureSchema
from recloom.plugins import catalog
from recloom.retrieval import snapshot
from recloom.retrieval.index import Filter, Floats, Found, Ids, Parts, RetrievalIndex, Scorer
from recloom.retrieval.rows import Rows

MANIFEST, TABLES = "manifest.json", "tables.npz"
BLOCK = 4096
_PLAIN: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str}


class Deferred:
    """An exported program that is read when it is first run: to change an index takes few of them.

    Args:
        path: Its file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._run: Callable[..., Tensor] | None = None

    def __call__(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """Return what the program returns."""
        if self._run is None:
            self._run = load_program(self.path)
        return self._run(*inputs, **named)


@dataclass
class Program:
    """An exported encoder of one side's features.

    Args:
        run: Maps named inputs to codes.
        description: What `recloom export` wrote beside it.
    """

    run: Callable[..., Tensor]
    description: dict[str, Any]

    @classmethod
    def load(cls, path: Path, lazy: bool = False) -> Self:
        """Read an exported program, if `lazy` when it is first run, and its description."""
        run = Deferred(path) if lazy else load_program(path)
        return cls(run, json.loads(path.with_name(path.name + ".json").read_text()))

    def codes(self, rows: Rows) -> Floats:
        """Return N x (width of the code)."""
        with torch.no_grad():
            parts = [self.run(**named_inputs(part.batch, self.description)) for part in rows.chunks(BLOCK)]
        width = len(self.description["schema"]["labels"])
        return torch.cat(parts).numpy() if parts else np.empty((0, width), np.float32)


class Retriever:
    """A model's programs and an index of its items.

    Args:
        folder: Where it was built (`recloom index build`), and where `save` writes.
        manifest: What is in the folder.
        user: Encoder of users.
        item: Encoder of items.
        index: The index.
    """

    def __init__(
        self, folder: Path, manifest: dict[str, Any], user: Program, item: Program, index: RetrievalIndex
    ) -> None:
        self.folder, self.manifest, self.index = folder, manifest, index
        self._user, self._item = user, item
        self.user_schema, self.item_schema = (
            FeatureSchema.from_dict({**program.description["schema"], "labels": []}) for program in (user, item)
        )

    @classmethod
    def load(cls, folder: Path, lazy: bool = False) -> Self:
        """Read the newest snapshot.

        Args:
            folder: Where it was built.
            lazy: Whether programs are read when they are first run, not now.

        Raises:
            DataError: Names the file that is missing or damaged.
        """
        path = folder / MANIFEST
        if not path.exists():
            raise DataError(f"{folder}: there is no index here", "Build one: recloom index build --out ...")
        intact.check(folder, snapshot.AGAIN)
        manifest = json.loads(path.read_text(encoding="utf-8"))
        read: Callable[[Path], Scorer] = Deferred if lazy else load_program
        index = make_index(folder, manifest, {name: read(folder / f"{name}.pt2") for name in manifest["scorers"]})
        index.load(snapshot.current(folder))
        user, item = (Program.load(folder / f"{side}.pt2", lazy) for side in ("user", "item"))
        return cls(folder, manifest, user, item, index)

    def read_users(self, path: Path) -> Rows:
        """Read users from a Parquet file: a column "id" and the features of their side."""
        return Rows.load(path, self.user_schema)

    def read_items(self, path: Path) -> Rows:
        """Read items from a Parquet file: a column "id" and the features of their side."""
        return Rows.load(path, self.item_schema)

    def search(self, users: Rows, k: int, filter: Filter | None = None) -> Found:
        """Return the best `k` items for each user."""
        return self.index.search(self._user.codes(users), k, filter)

    def upsert(self, items: Rows) -> None:
        """Add items, or replace those that are there: the next search sees them."""
        self.index.upsert(items.ids.numpy(), self._item.codes(items))

    def delete(self, ids: Ids) -> int:
        """Remove items; return how many were there."""
        return self.index.delete(ids)

    def save(self) -> Path:
        """Write a new snapshot and make it the current one; return its folder."""
        return snapshot.write(self.folder, self.index.save)


def make_index(folder: Path, manifest: dict[str, Any], scorers: Mapping[str, Scorer]) -> RetrievalIndex:
    """Return the empty index that a manifest describes.

    Args:
        folder: Where the manifest and the tables lie.
        manifest: What it says.
        scorers: The exported scorers by name.
    """
    tables = archives.read_arrays(folder / TABLES, snapshot.AGAIN)
    facts = manifest["facts"]
    if "first_dim" in facts:
        scorers = {"score": _rest(scorers["score"], manifest["first_user_dim"], facts["first_dim"])}
    parts = Parts(
        manifest["user_dim"], manifest["item_dim"], manifest["inner_product"], scorers, tables, manifest["facts"]
    )
    kind: Any = check_options(manifest["index"], manifest["options"])
    return kind(parts, **manifest["options"])


def check_options(name: str, options: Mapping[str, Any]) -> type[RetrievalIndex]:
    """Return the index named `name`; RecloomError about one of its `options` that it lacks or whose type is wrong."""
    kind = catalog().indexes.load(name)
    known = dict(list(inspect.signature(kind).parameters.items())[1:])
    for option, value in options.items():
        if option not in known:
            raise unknown(f"option of {name}", option, known)
        hint = known[option].annotation  # a string where annotations are not evaluated
        wanted = hint if isinstance(hint, str) else getattr(hint, "__name__", "")
        fits = isinstance(value, _PLAIN.get(wanted, object))
        if not fits or (isinstance(value, bool) and wanted in ("int", "float")):
            raise RecloomError(f"{name}: {option} is {value!r}", f"Its type is {wanted}.")
    return kind


def load_program(path: Path) -> Callable[..., Tensor]:
    """Return an exported program as a function; DataError if it cannot be read."""
    return programs.load(path)


def named_inputs(batch: Batch, description: dict[str, Any]) -> dict[str, Tensor]:
    """Return the inputs that an exported encoder takes, of a batch of its side."""
    sparse, found = batch.sparse_features, {}
    for part in description["inputs"]:
        name = part["name"]
        if name == "sparse":
            found[name] = sparse.values.view(len(sparse.keys), -1).t()
        elif name == "values":
            found[name] = sparse.values
        elif name == "lengths":
            found[name] = sparse.lengths.view(len(sparse.keys), -1)
        elif name == "weights":
            found[name] = torch.ones(len(sparse.values)) if sparse.weights is None else sparse.weights
        elif name == "dense":
            found[name] = batch.dense_features
        else:
            found[name] = _history(batch, part)
    return found


def _history(batch: Batch, part: dict[str, Any]) -> Tensor:
    """Return one of a history's inputs: ids, lengths or gaps."""
    history = batch.sequences[part["history"]]
    if "keys" in part:
        return history.padded(part["shape"][1])[0]
    if "unit" in part:
        assert batch.timestamps is not None, "the data have times"
        return history.gaps(batch.timestamps, part["shape"][1])
    return history.lengths


def _rest(score: Callable[..., Tensor], user: int, item: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda users, items: score(users[:, user:].contiguous(), items[..., item:].contiguous())
