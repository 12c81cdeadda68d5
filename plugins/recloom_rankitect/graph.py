"""Architectures as graphs: nodes that are blocks, each of one or two earlier results, and a head that reads some."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from recloom.errors import RecloomError, unknown
from recloom.plugins import catalog
from recloom.search.block import Block

STEMS = ("sparse", "dense")
"""What graphs start from: the embeddings, B x N x D, and the dense features, B x d."""


@dataclass(frozen=True)
class Node:
    """A block in a graph.

    Args:
        block: Its name in the catalog.
        sources: Places of its inputs: 0 the embeddings, 1 the dense features, 2 + i node i.
        width: The width that was chosen for it; 0 if none matters.
        name: Its name, for weights, drawings and costs: a supernet's weights are found by it.
        group: The part of the architecture that it belongs to; empty: its own.
        gates: Groups of choices that decide its result.
    """

    block: str
    sources: tuple[int, ...]
    width: int = 0
    name: str = ""
    group: str = ""
    gates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """An architecture.

    Args:
        nodes: The nodes; each source is earlier than what needs it.
        head: Places of the results that the logit is made of, as in `Node.sources`.
    """

    nodes: tuple[Node, ...]
    head: tuple[int, ...]

    def live(self) -> list[bool]:
        """Return which nodes reach the head."""
        found = [False] * (len(self.nodes) + len(STEMS))
        for place in self.head:
            found[place] = True
        for place in range(len(self.nodes) - 1, -1, -1):
            if found[place + len(STEMS)]:
                for source in self.nodes[place].sources:
                    found[source] = True
        return found[len(STEMS) :]

    def pruned(self) -> Graph:
        """Return the graph without what does not reach the head; names stay."""
        live = self.live()
        places = list(range(len(STEMS)))
        for alive in live:
            places.append(len(STEMS) + sum(p >= len(STEMS) for p in places) if alive else -1)
        nodes = [
            replace(n, sources=tuple(places[source] for source in n.sources))
            for n, alive in zip(self.nodes, live, strict=True)
            if alive
        ]
        return Graph(tuple(nodes), tuple(places[source] for source in self.head))


@cache
def block_class(name: str) -> type[Block]:
    """Return the block registered under `name`."""
    found: type[Block] = catalog().blocks.load(name)
    return found


def to_document(graph: Graph) -> dict[str, Any]:
    """Return a graph as a config has it: nodes by name, and the head's inputs."""
    names = [*STEMS, *(node.name for node in graph.nodes)]
    nodes: dict[str, Any] = {}
    for node in graph.nodes:
        nodes[node.name] = {"block": node.block, "inputs": [names[source] for source in node.sources]}
        if block_class(node.block).sized:
            nodes[node.name]["width"] = node.width
    return {"nodes": nodes, "head": [names[source] for source in graph.head]}


def from_document(document: Mapping[str, Any]) -> Graph:
    """Return the graph that `to_document` wrote.

    Raises:
        RecloomError: A node, its block or an input is unknown, or a number of inputs is wrong.
    """
    places = {name: place for place, name in enumerate(STEMS)}

    def sources(names: Sequence[str], where: str) -> tuple[int, ...]:
        for name in names:
            if name not in places:
                raise unknown(f"input of {where}", name, places)
        return tuple(places[name] for name in names)

    for key in ("nodes", "head"):
        if key not in document:
            raise RecloomError(f"architecture: there is no {key!r}", "It needs `nodes:` by name, and `head:`, a list.")
    nodes = []
    for name, given in document["nodes"].items():
        nodes.append(_node(name, given, sources))
        places[name] = len(places)
    if not document["head"]:
        raise RecloomError("architecture: the head has no inputs", f"It reads some of: {', '.join(places)}")
    return Graph(tuple(nodes), sources(document["head"], "the head"))


def _node(name: str, given: Mapping[str, Any], sources: Callable[[Sequence[str], str], tuple[int, ...]]) -> Node:
    where = f"architecture: node {name!r}"
    for key in given:
        if key not in ("block", "inputs", "width"):
            raise unknown(f"key of {where}", key, ("block", "inputs", "width"))
    if "block" not in given:
        raise RecloomError(f"{where} has no block", "Name one: `recloom components block` lists them.")
    kind = block_class(given["block"])
    inputs = given.get("inputs", [])
    if len(inputs) != len(kind.inputs):
        raise RecloomError(f"{where} has {len(inputs)} inputs", f"{given['block']} takes {len(kind.inputs)}.")
    width = given.get("width", 0)
    if kind.sized and (not isinstance(width, int) or width < 1):
        raise RecloomError(f"{where} has width {width!r}", f"{given['block']} needs one, 1 or more.")
    return Node(given["block"], sources(inputs, where), width if kind.sized else 0, name)
