"""Vectors of nodes from elsewhere, such as a model of an event stream, as part of another model's embeddings.

DIR/nodes.json       up to which time the vectors know what happened, and the tables: rows and widths
DIR/TABLE.npy        float32, a row for each id
DIR/files.json       their checksums (`recloom.intact`)

Whoever writes them says what they know (`as_of`); a model that reads them is not fitted to rows from before that time,
where the data module says when its first row is (`first_time`): what the vectors know of later events would leak.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recloom import intact
from recloom.embedding import EmbeddingBagCollection, EmbeddingBagConfig, FusedEmbeddingBag
from recloom.errors import DataError, RecloomError, unknown

FACTS = "nodes.json"


@dataclass(frozen=True)
class NodeVectors:
    """Vectors of the nodes of one or more kinds.

    Args:
        tables: For each kind ("source", "destination") its nodes' vectors, n x width, float32.
        as_of: Unix seconds of the last event that they know.
        info: Facts for people.
    """

    tables: dict[str, Tensor]
    as_of: int
    info: dict[str, Any] = field(default_factory=dict)

    def save(self, directory: Path | str) -> None:
        """Write the folder, its checksums last; what is there is replaced."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, vectors in self.tables.items():
            aside = directory / f"{name}.npy.part"
            with aside.open("wb") as file:
                np.save(file, vectors.detach().cpu().float().numpy())
            aside.replace(directory / f"{name}.npy")
        facts = {"version": 1, "as_of": self.as_of, "info": self.info}
        sizes = {name: list(vectors.shape) for name, vectors in self.tables.items()}
        aside = directory / f"{FACTS}.part"
        aside.write_text(json.dumps({**facts, "tables": sizes}, indent=1) + "\n", encoding="utf-8")
        aside.replace(directory / FACTS)
        intact.seal(directory)

    @classmethod
    def load(cls, directory: Path | str) -> NodeVectors:
        """Read a folder.

        Raises:
            DataError: There is none, or a file is missing, damaged or of another size than nodes.json says.
        """
        path = Path(directory) / FACTS
        if not path.exists():
            hint = "Write them first, such as with EDGE's callback ExportNodes."
            raise DataError(f"{path}: there are no node vectors here", hint)
        intact.check(Path(directory), "Write the node vectors again.")
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            sizes, as_of = dict(facts["tables"]), int(facts["as_of"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not a description of node vectors: {error!r}", "Write them again.") from error
        hint = "Write the node vectors again."
        tables = {
            name: _read(intact.inside(path.parent, f"{name}.npy", path, hint), size) for name, size in sizes.items()
        }
        return cls(tables, as_of, facts.get("info", {}))


def _read(path: Path, size: list[int]) -> Tensor:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}", "Write the node vectors again.") from error
    if list(values.shape) != size or values.dtype != np.float32 or not np.isfinite(values).all():
        what = f"{values.dtype} of {list(values.shape)}, where {FACTS} says finite float32 of {size}"
        raise DataError(f"{path}: {what}", "Write the node vectors again.")
    return torch.from_numpy(values)


class NodeEmbeddingBag(EmbeddingBagCollection):
    """Tables of its own, and for some of them a learned projection of node vectors added: row i + W vector i.

    Vectors are pooled as rows are. A frozen vector stays what it is, and its projection is learned; a trainable one is
    where the learning of a table begins.

    Args:
        tables: The tables, all of one width.
        path: Folder of the node vectors, see `recloom.nodes`.
        nodes: For each table that gets vectors, the kind of node: {user: source, item: destination}.
        trainable: Whether the vectors are learned too.
        own: Whether those tables have rows of their own beside the vectors; without, an id is its vector alone.
        seed: Seed of the tables' initial values; by default the global seed.
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingBagConfig],
        path: str = "build/nodes",
        nodes: dict[str, str] | None = None,
        trainable: bool = False,
        own: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__(tables)
        known = {table.name: table for table in self.tables}
        chosen = {name: kind for name, kind in (nodes or {}).items() if name in known}
        if not chosen:
            hint = f"Name one at least, such as --model.embedding.nodes '{{{self.tables[0].name}: source}}'."
            raise RecloomError(f"none of the tables {', '.join(known)} gets node vectors", hint)
        found = NodeVectors.load(path)
        self.as_of, self.path = found.as_of, path
        self.own = FusedEmbeddingBag(self.tables, seed)
        self.output_dim = self.own.output_dim
        self.vectors, self.projections = nn.ModuleDict(), nn.ModuleDict()
        for name, kind in chosen.items():
            if kind not in found.tables:
                raise unknown("kind of node", kind, found.tables)
            self._add(known[name], found.tables[kind], trainable)
            if not own:
                self.own.table_weight(name).zero_()
        self._silent = set() if own else set(chosen)
        ends = list(itertools.accumulate(len(table.feature_names) for table in self.tables))
        spans = zip(self.tables, [0, *ends], ends, strict=False)
        self._spans = {table.name: (first, last) for table, first, last in spans if table.name in chosen}

    def _add(self, table: EmbeddingBagConfig, values: Tensor, trainable: bool) -> None:
        if len(values) != table.num_embeddings:
            what = f"table {table.name!r} has {table.num_embeddings:,} ids, and there are {len(values):,} vectors"
            raise DataError(
                f"{self.path}: {what}", "Ids are to be numbers of nodes: is this the stream of the vectors?"
            )
        width = values.shape[1]
        bag = FusedEmbeddingBag(
            [EmbeddingBagConfig(table.name, width, len(values), table.feature_names, table.pooling)]
        )
        with torch.no_grad():
            bag.weight.copy_(values)
        bag.weight.requires_grad_(trainable)
        projection = nn.Linear(width, self.output_dim, bias=False)
        with torch.no_grad():  # vectors may be of any size: what they add begins small, as rows do
            projection.weight.mul_(0.1 / max(float(values.square().mean()) ** 0.5, 1e-6))
        self.vectors[table.name], self.projections[table.name] = bag, projection

    def forward(self, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Return the pooled rows, B x F x D; see the base class."""
        rows = list(self.own(values, offsets, weights).unbind(1))
        samples = len(rows[0])
        for name, (first, last) in self._spans.items():
            span = slice(first * samples, last * samples)
            bounds = None
            if offsets is not None:
                bounds = offsets[first * samples : last * samples + 1]
                span = slice(int(bounds[0]), int(bounds[-1]))
                bounds = bounds - bounds[0]
            part = None if weights is None else weights[span]
            added = self.projections[name](self.vectors[name](values[span], bounds, part))
            for place in range(first, last):
                rows[place] = added[:, place - first] + (0 if name in self._silent else rows[place])
        return torch.stack(rows, dim=1)

    def lookup(self, feature: str, ids: Tensor) -> Tensor:
        """Return the rows of `ids`; see the base class."""
        rows = self.own.lookup(feature, ids)
        table = next(table for table in self.tables if feature in table.feature_names)
        if table.name not in self.vectors:
            return rows
        vectors = self.vectors[table.name]
        assert isinstance(vectors, FusedEmbeddingBag)
        added: Tensor = self.projections[table.name](vectors.lookup(feature, ids))
        return added if table.name in self._silent else added + rows

    def table_weight(self, name: str) -> Tensor:
        """Return the table's own rows, without what vectors add; see the base class."""
        return self.own.table_weight(name)


def refuse_leaks(module: nn.Module, data: Any) -> None:
    """Raise DataError if `module` has node vectors that know of events after the first training row of `data`.

    `data.first_time`, in unix seconds, says when that is; data without it get a warning.
    """
    sources = [part for part in module.modules() if isinstance(part, NodeEmbeddingBag)]
    first = getattr(data, "first_time", None)
    for source in sources:
        if first is None:
            what = f"{source.path}: these vectors know of events up to {source.as_of}; do the training rows come after?"
            warnings.warn(f"{what} {type(data).__name__} does not say.", stacklevel=2)
        elif source.as_of > first:
            what = f"the vectors know of events up to {source.as_of}, and the first training row is from {first}"
            raise DataError(f"{source.path}: {what}", "They would tell the future: export them as of an earlier time.")
