"""An architecture of NASRec's space: what each block does, which parts of it matter, and how it is written down.

Source 0 is the stem (dense features, embedding vectors); source i is block i, from 1. The last block feeds the head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from recloom.errors import DataError, unknown

DENSE_OPS = ("fc", "dot", "gating", "sum")
SPARSE_OPS = ("efc", "transformer")
PAIRED = ("gating", "sum")  # operators of a left and a right input
MAX_CONNECTIONS = 4


@dataclass(frozen=True)
class Block:
    """A block. In a model it has one operator of each kind; in a supernet's warm-up all of them, and results add up.

    Args:
        dense_ops: Operators that give its features.
        sparse_ops: Operators that give its tokens.
        dense_dim: Width of its features.
        sparse_dim: Number of its tokens.
        dense_from: Sources of features for `fc` and `dot`, ascending.
        sparse_from: Sources of tokens, ascending.
        left: Sources of the left features of `gating` and `sum`: one in a model.
        right: Sources of the right ones.
        interact: Whether 8 more tokens are made of the features (the dense-to-sparse merger).
        fm: Whether a factorization machine of the tokens is added to the features (the sparse-to-dense merger).
    """

    dense_ops: tuple[str, ...]
    sparse_ops: tuple[str, ...]
    dense_dim: int
    sparse_dim: int
    dense_from: tuple[int, ...]
    sparse_from: tuple[int, ...]
    left: tuple[int, ...] = (0,)
    right: tuple[int, ...] = (0,)
    interact: bool = False
    fm: bool = False

    @property
    def uses_dense(self) -> bool:
        """Whether an operator takes the features of `dense_from`."""
        return bool({"fc", "dot"} & set(self.dense_ops))

    @property
    def uses_pair(self) -> bool:
        """Whether an operator takes the features of `left` and `right`."""
        return bool(set(PAIRED) & set(self.dense_ops))


Architecture = tuple[Block, ...]


@dataclass
class Live:
    """Which results of a block reach the head: its features and tokens, and those of its operators before mergers."""

    features: bool = False
    tokens: bool = False
    dense: bool = False
    sparse: bool = False


def liveness(architecture: Architecture) -> list[Live]:
    """Return what reaches the head, of the stem (place 0) and of each block."""
    live = [Live() for _ in range(len(architecture) + 1)]
    live[-1].features = live[-1].tokens = True
    for place in range(len(architecture), 0, -1):
        block, mine = architecture[place - 1], live[place]
        mine.dense = mine.features or (mine.tokens and block.interact)
        mine.sparse = mine.tokens or (mine.features and block.fm)
        features: set[int] = set()
        if mine.dense:
            features |= set(block.dense_from) if block.uses_dense else set()
            features |= {*block.left, *block.right} if block.uses_pair else set()
        tokens = set(block.sparse_from) if mine.sparse or (mine.dense and "dot" in block.dense_ops) else set()
        for source in features:
            live[source].features = True
        for source in tokens:
            live[source].tokens = True
    return live


def pruned(architecture: Architecture, smallest: Block, shortcut: int) -> Architecture:
    """Return the architecture with the values of `smallest` for all that does not matter.

    Args:
        architecture: An architecture with one operator of each kind a block.
        smallest: The values that stand for "none".
        shortcut: The width of features that become tokens without a projection, 8 D: there, in a model of its own, the
            tokens are made after the factorization machine was added.
    """
    found = []
    for block, live in zip(architecture, liveness(architecture)[1:], strict=True):
        late = live.tokens and block.interact and block.dense_dim == shortcut
        kept = replace(
            smallest,
            interact=block.interact and live.tokens,
            fm=block.fm and (live.features or late),
        )
        if live.dense:
            kept = replace(kept, dense_ops=block.dense_ops, dense_dim=block.dense_dim)
            if block.uses_dense:
                kept = replace(kept, dense_from=block.dense_from)
            if block.uses_pair:
                pair = (block.left, block.right)
                left, right = sorted(pair) if block.dense_ops == ("sum",) else pair
                kept = replace(kept, left=left, right=right)
        if live.sparse:
            kept = replace(kept, sparse_ops=block.sparse_ops, sparse_dim=block.sparse_dim)
        if live.sparse or (live.dense and "dot" in block.dense_ops):
            kept = replace(kept, sparse_from=block.sparse_from)
        found.append(kept)
    return tuple(found)


def to_document(architecture: Architecture) -> dict[str, dict[str, Any]]:
    """Return an architecture with one operator of each kind a block as {"block1": {"dense_op": "fc", ...}, ...}."""
    return {
        f"block{place}": {
            "dense_op": block.dense_ops[0],
            "dense_dim": block.dense_dim,
            "dense_from": list(block.dense_from),
            "left": block.left[0],
            "right": block.right[0],
            "sparse_op": block.sparse_ops[0],
            "sparse_dim": block.sparse_dim,
            "sparse_from": list(block.sparse_from),
            "interact": block.interact,
            "fm": block.fm,
        }
        for place, block in enumerate(architecture, start=1)
    }


_DEFAULTS = {"left": 0, "right": 0, "interact": False, "fm": False}


def from_document(document: Any, where: str = "architecture") -> Architecture:
    """Return the architecture that `to_document` wrote.

    Raises:
        DataError: A block or a value is missing, unknown or out of its range; the message names it and `where`.
    """
    if not isinstance(document, dict) or not document:
        raise DataError(f"{where}: no architecture", "Write block1: {dense_op: fc, ...}, block2: ...")
    names = [f"block{place}" for place in range(1, len(document) + 1)]
    if set(names) != set(document):
        wrong = sorted(set(map(str, document)) - set(names))
        raise DataError(f"{where}: {wrong[0]!r} is no block", f"The blocks must be {', '.join(names)}.")
    return tuple(_block(document[name], place, f"{where}: {name}") for place, name in enumerate(names, start=1))


def load(source: dict[str, Any] | str) -> Architecture:
    """Return the architecture of a dictionary, of a YAML or JSON file, or a published one by its name.

    Raises:
        RecloomError: There is no such file or name, or something is wrong in it.
    """
    if not isinstance(source, str):
        return from_document(source)
    path = Path(source)
    if path.suffix:
        if not path.is_file():
            raise DataError(f"{source}: there is no such architecture file", "It is read relative to where you are.")
        text = path.read_text(encoding="utf-8")
    elif source in published():
        text = (resources.files("recloom_nasrec") / "architectures" / f"{source}.yaml").read_text(encoding="utf-8")
    else:
        raise unknown("published architecture", source, published())
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{source}: not YAML or JSON: {error}", "Write it with `recloom search`.") from error
    return from_document(document, source)


def published() -> list[str]:
    """Return the names of the published architectures."""
    folder = resources.files("recloom_nasrec") / "architectures"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _block(document: Any, place: int, where: str) -> Block:
    keys = list(to_document((Block(("fc",), ("efc",), 16, 16, (0,), (0,)),))["block1"])
    values = {**_DEFAULTS, **document} if isinstance(document, dict) else {}
    for key in values:
        if key not in keys:
            raise DataError(f"{where}: {key!r} is no choice", f"The choices of a block: {', '.join(keys)}.")
    for key in keys:
        if key not in values:
            raise DataError(f"{where} has no {key!r}", f"The choices of a block: {', '.join(keys)}.")
        _check(key, values[key], place, where)
    return Block(
        dense_ops=(values["dense_op"],),
        sparse_ops=(values["sparse_op"],),
        dense_dim=values["dense_dim"],
        sparse_dim=values["sparse_dim"],
        dense_from=tuple(sorted(values["dense_from"])),
        sparse_from=tuple(sorted(values["sparse_from"])),
        left=(values["left"],),
        right=(values["right"],),
        interact=values["interact"],
        fm=values["fm"],
    )


def _check(key: str, value: Any, place: int, where: str) -> None:
    ops = {"dense_op": DENSE_OPS, "sparse_op": SPARSE_OPS}
    if key in ops:
        good, expected = value in ops[key], f"one of {', '.join(ops[key])}"
    elif key.endswith("_dim"):
        good, expected = type(value) is int and value > 0, "a positive number"
    elif key in ("interact", "fm"):
        good, expected = isinstance(value, bool), "true or false"
    else:
        several = key.endswith("_from")
        sources = value if several and isinstance(value, list | tuple) else [None if several else value]
        good = all(type(source) is int and 0 <= source < place for source in sources)
        good = good and 1 <= len(set(sources)) == len(sources)
        expected = f"{'a list of different sources, ' if several else ''}0 (the stem) to {place - 1}"
    if not good:
        raise DataError(f"{where}: {key} is {value!r}", f"It must be {expected}.")
