"""Edits of graphs: what a mutation of BlockSpace does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recloom_rankitect.graph import STEMS

if TYPE_CHECKING:
    from recloom_rankitect.space import BlockSpace

Nodes = list[list[int]]
"""For each node: block, width, left source, right source."""

EDITS = ("choice", "insert", "remove", "head")
OFTEN = (0.5, 0.2, 0.15, 0.15)


def mutated(space: BlockSpace, nodes: Nodes, head: list[int], rng: np.random.Generator) -> tuple[Nodes, list[int]]:
    """Return an edited copy of a canonical graph, whose live nodes come first."""
    live = sum(space._live(nodes, head))
    edit = str(rng.choice(EDITS, p=OFTEN))
    if live == 0 or (edit == "insert" and live < len(nodes)):
        return insert(space, nodes, head, live, rng)
    if edit == "remove" and live > 1:
        return remove(nodes, head, int(rng.integers(live)))
    if edit == "head":
        field = ("head.left", "head.right")[rng.integers(2)]
        option = space.sample_field(field, None, rng)[0]
        if field == "head.left":
            return nodes, [int(rng.integers(live)) + len(STEMS), *head[1:]]
        return nodes, [head[0], *([option - 1] if 0 < option <= live + len(STEMS) else [])]
    return choose(space, nodes, int(rng.integers(live)), rng), head


def choose(space: BlockSpace, nodes: Nodes, place: int, rng: np.random.Generator) -> Nodes:
    """Return the nodes with one choice of a node, that matters there, drawn anew."""
    block = nodes[place][0]
    fields = ["block", *(["width"] if space.sized[block] else []), "left", *(["right"] if space.binary[block] else [])]
    what = fields[rng.integers(len(fields))]
    option = space.sample_field(f"n{place + 1}.{what}", None, rng)[0]
    column = ("block", "width", "left", "right").index(what)
    node = [option if i == column else value for i, value in enumerate(nodes[place])]
    return [*nodes[:place], node, *nodes[place + 1 :]]


def insert(
    space: BlockSpace, nodes: Nodes, head: list[int], live: int, rng: np.random.Generator
) -> tuple[Nodes, list[int]]:
    """Return the graph with a random node on a random edge; the last, dead node makes room."""
    edges = [(i, port) for i in range(live) for port in ((2, 3) if space.binary[nodes[i][0]] else (2,))]
    edges += [(live, port) for port in range(len(head))]
    consumer, port = edges[rng.integers(len(edges))]
    source = head[port] if consumer == live else nodes[consumer][port]
    here = consumer + len(STEMS)  # the new node's place; what was there and later moves on
    right = space.sample_field(f"n{consumer + 1}.right", None, rng)[0]
    new = [
        space.sample_field(f"n{consumer + 1}.block", None, rng)[0],
        int(rng.integers(len(space.widths))),
        source,
        right,
    ]
    moved = [[block, width, _after(left, here), _after(right, here)] for block, width, left, right in nodes[:-1]]
    head = [_after(place, here) for place in head]
    if consumer == live:
        head[port] = here
    else:
        moved[consumer][port] = here
    return [*moved[:consumer], new, *moved[consumer:]], head


def remove(nodes: Nodes, head: list[int], place: int) -> tuple[Nodes, list[int]]:
    """Return the graph without a node: what read it reads its first input."""
    here, left = place + len(STEMS), nodes[place][2]

    def source(old: int) -> int:
        return left if old == here else old - (old > here)

    rest = [[block, width, source(a), source(b)] for block, width, a, b in (*nodes[:place], *nodes[place + 1 :])]
    return [*rest, [0, 0, 0, 0]], [source(old) for old in head]


def _after(place: int, here: int) -> int:
    return place + (place >= here)
