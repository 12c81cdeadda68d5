"""The walk that computes what a path needs of the blocks, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from recloom.search.operators import Piece
from recloom_nasrec.architecture import Architecture
from recloom_nasrec.blocks import ChoiceBlock, Node
from recloom_nasrec.dense_operators import FC
from recloom_nasrec.mergers import SPLITS, DeepFM, DenseTokens
from recloom_nasrec.token_operators import EFC, first


class Walk:
    """The results of blocks along a path, each computed when it is asked for, once.

    Results that depend on the same part of an architecture have one key, also in walks of other paths with the same
    `memory`. With `uses`, a result is forgotten when all that need it are there.

    Args:
        blocks: The blocks.
        path: What each of them does.
        stem: B x (dense features) and B x D x (sparse features).
        masked: Whether blocks are computed at their full width, with zeros for what is not chosen, as published.
        lead: Columns for tokens made of features that a source's tokens have in front, whether it has them or not.
        memory: Results by key.
        keys: Keys, which have to go with `memory`.
        uses: How often results are still needed, by key.
        gate: Gives the factor of a choice by its name, "block1.dense_op", for gradient-based search; there is no other
            path with the same memory then.
    """

    def __init__(
        self,
        blocks: Sequence[ChoiceBlock],
        path: Architecture,
        stem: tuple[Tensor, Tensor],
        masked: bool = False,
        lead: int = 0,
        memory: dict[int, Tensor] | None = None,
        keys: Keys | None = None,
        uses: dict[int, int] | None = None,
        gate: Callable[[str], Tensor] | None = None,
    ) -> None:
        self.gate = gate
        self.blocks, self.path, self.stem = blocks, path, stem
        self.masked, self.lead = masked, lead
        self.memory = {} if memory is None else memory
        self.keys = (Keys() if keys is None else keys).of(path)
        self.uses = uses

    def __call__(self, node: Node) -> Tensor:
        """Return a result."""
        kind, place = node
        if place == 0:
            return self.stem[kind == "tokens"]
        key, needed = self.keys[node]
        if key in self.memory:
            return self.memory[key]
        compute = {"features": self._features, "tokens": self._tokens, "dense": self._dense, "sparse": self._sparse}
        self.memory[key] = value = compute[kind](place)
        for other in needed if self.uses is not None else ():
            self.done(other)
        return value

    def done(self, key: int) -> None:
        """Note that a result was used for the last time by one that needs it."""
        assert self.uses is not None
        self.uses[key] -= 1
        if not self.uses[key]:
            del self.memory[key]

    def _features(self, place: int) -> Tensor:
        block, made = self.path[place - 1], self.blocks[place - 1]
        found = self(("dense", place))
        if not block.fm:
            return found
        tokens = self(("sparse", place))
        added = cast(DeepFM, made.fm)([Piece(0, tokens.shape[2], tokens)], width=found.shape[1])
        added = self._gated(added, place, "fm")
        return found + (added * first(block.dense_dim, added) if self.masked else added)

    def _tokens(self, place: int) -> Tensor:
        """Return B x D x tokens; those made of features come first (the reference implementation has them last)."""
        block, made = self.path[place - 1], self.blocks[place - 1]
        found = self(("sparse", place))
        if block.interact:
            features = self(("features" if made.shortcut else "dense", place))
            more = cast(DenseTokens, made.interact)([Piece(0, features.shape[1], features)])
            more = self._gated(more, place, "interact")
        elif self.masked:
            more = found.new_zeros(*found.shape[:2], SPLITS)
        else:
            return found
        return torch.cat([more, found], dim=2)

    def _dense(self, place: int) -> Tensor:
        block, made = self.path[place - 1], self.blocks[place - 1]
        width = made_width(made.dense_ops) if self.masked else block.dense_dim
        found: list[Tensor] = []
        for name in block.dense_ops:
            if name in ("fc", "dot"):
                inputs = [self._pieces("features", block.dense_from, made.columns.dense, f"block{place}.dense_from.")]
                if name == "dot":
                    choice = f"block{place}.sparse_from."
                    inputs.append(self._pieces("tokens", block.sparse_from, made.columns.sparse, choice))
            else:
                inputs = [self._pieces("features", block.left, made.columns.left, f"block{place}.left")]
                inputs.append(self._pieces("features", block.right, made.columns.right, f"block{place}.right"))
            found.append(made.dense_ops[name](*inputs, width=width))
        out = self._gated(_sum(found), place, "dense_op", "dense_dim")
        return out * first(block.dense_dim, out) if self.masked else out

    def _sparse(self, place: int) -> Tensor:
        block, made = self.path[place - 1], self.blocks[place - 1]
        tokens = self._pieces("tokens", block.sparse_from, made.columns.sparse, f"block{place}.sparse_from.")
        width = made_width(made.sparse_ops) if self.masked else block.sparse_dim
        options = {"keep": block.sparse_dim} if self.masked else {}
        found = [
            made.sparse_ops[name](tokens, width=width, **(options if name == "transformer" else {}))
            for name in block.sparse_ops
        ]
        out = self._gated(_sum(found), place, "sparse_op", "sparse_dim")
        return out * first(block.sparse_dim, out) if self.masked else out

    def _gated(self, value: Tensor, place: int, *keys: str) -> Tensor:
        """Return a result of a block times the factors of the choices that decide it."""
        for key in keys if self.gate is not None else ():
            value = value * cast(Callable[[str], Tensor], self.gate)(f"block{place}.{key}")
        return value

    def _pieces(self, kind: str, sources: Sequence[int], columns: Mapping[int, int], choice: str) -> list[Piece]:
        """Return an input: the sources' results; if masked, zeros for the other sources that have columns.

        `choice` is the choice that decides the source, or if it ends with a dot, one a source.
        """
        found = []
        for source, start in columns.items():
            if source in sources:
                values = self((kind, source))
                if self.gate is not None:
                    values = values * self.gate(f"{choice}{source}" if choice.endswith(".") else choice)
                skipped = self.lead if kind == "tokens" and source and not self._has_lead(source) else 0
                found.append(Piece(start + skipped, values.shape[-1], values))
            elif self.masked:
                found.append(self._zeros(kind, source, start))
        return found

    def _has_lead(self, source: int) -> bool:
        return self.masked or self.path[source - 1].interact

    def _zeros(self, kind: str, source: int, start: int) -> Piece:
        features, tokens = self.stem
        if kind == "features":
            width = made_width(self.blocks[source - 1].dense_ops) if source else features.shape[1]
            return Piece(start, width, features.new_zeros(len(features), width))
        width = self.lead + made_width(self.blocks[source - 1].sparse_ops) if source else tokens.shape[2]
        return Piece(start, width, tokens.new_zeros(*tokens.shape[:2], width))


def made_width(operators: nn.ModuleDict) -> int:
    """Return the width that the operators of a block were built with."""
    for operator in operators.values():
        if isinstance(operator, FC | EFC):
            return operator.linear.out_features
    raise AssertionError("a supernet's blocks have these operators")


def _sum(found: list[Tensor]) -> Tensor:
    out = found[0]
    for other in found[1:]:
        out = out + other
    return out


class Keys:
    """Numbers for results: two have the same one if they are computed from the same by the same part of a block."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[object, ...], int] = {}

    def of(self, path: Architecture) -> dict[Node, tuple[int, tuple[int, ...]]]:
        """Return for each result of a path its number, and the numbers of those it is computed from."""
        found: dict[Node, tuple[int, tuple[int, ...]]] = {("features", 0): (-1, ()), ("tokens", 0): (-2, ())}

        def add(node: Node, what: tuple[object, ...], *needed: Node) -> None:
            numbers = tuple(found[n][0] for n in needed)
            key = self._numbers.setdefault((node[0], node[1], *what, *numbers), len(self._numbers))
            found[node] = (key, tuple({n for n in numbers if n >= 0}))

        for place, block in enumerate(path, start=1):
            sources: list[Node] = []
            split = (len(block.dense_from) * block.uses_dense, len(block.left) * block.uses_pair)
            if block.uses_dense:
                sources += [("features", source) for source in block.dense_from]
            if block.uses_pair:
                sources += [("features", source) for source in (*block.left, *block.right)]
            tokens: list[Node] = [("tokens", source) for source in block.sparse_from]
            if "dot" in block.dense_ops:
                sources += tokens
            add(("dense", place), (block.dense_ops, block.dense_dim, *split), *sources)
            add(("sparse", place), (block.sparse_ops, block.sparse_dim), *tokens)
            add(("features", place), (block.fm,), ("dense", place), *([("sparse", place)] * block.fm))
            add(("tokens", place), (block.interact,), ("sparse", place), *([("dense", place)] * block.interact))
        return found
