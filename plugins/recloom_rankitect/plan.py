"""From a graph to the steps that compute it: blocks at their sizes, and the adapters that make shapes fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from recloom.features import FeatureSchema
from recloom.search.block import Block, Shape
from recloom.search.program import Program
from recloom_rankitect.blocks.adapters import Project, ProjectTokens, to_kind, to_shape
from recloom_rankitect.graph import STEMS, Graph, Node, block_class


@dataclass(frozen=True)
class Limits:
    """How large results may get; what is larger is projected down.

    Args:
        features: Most features.
        tokens: Most tokens.
    """

    features: int = 512
    tokens: int = 32


@dataclass(frozen=True)
class Stem:
    """What a graph starts from.

    Args:
        features: Number of dense features; 1, of zeros, where there are none.
        tokens: Number of embedding vectors.
        dim: Their width, D.
    """

    features: int
    tokens: int
    dim: int

    @property
    def shapes(self) -> list[Shape]:
        """The shapes, in the order of `STEMS`."""
        return [Shape(self.dim, self.tokens), Shape(self.features)]


@dataclass(frozen=True)
class Step:
    """A block that is computed.

    Args:
        slot: Its name among all steps: the node's name and what it is there.
        block: The block.
        inputs: Places of its inputs: the stems, then earlier steps.
        node: The node that it is part of.
        last: Whether its result is the node's.
    """

    slot: str
    block: Block
    inputs: tuple[int, ...]
    node: Node
    last: bool

    @property
    def group(self) -> str:
        """The part of the architecture that it belongs to."""
        return self.node.group or self.node.name


@dataclass(frozen=True)
class Plan:
    """The steps of a graph.

    Args:
        steps: The steps, in an order in which they can run.
        head: Places of the results that make the logit.
        width: Number of all their values.
    """

    steps: tuple[Step, ...]
    head: tuple[int, ...]
    width: int


@lru_cache(maxsize=4096)
def plan(graph: Graph, stem: Stem, limits: Limits) -> Plan:
    """Return the steps of a graph: all of its nodes, dead ones too (see `Graph.pruned`)."""
    return _Planner(stem.shapes, stem.dim, limits).run(graph)


def steps_of(node: Node, shapes: Sequence[Shape], dim: int, limits: Limits) -> list[Step]:
    """Return the steps of one node whose sources, in order, have these shapes."""
    planner = _Planner(shapes, dim, limits)
    planner.node(node, range(len(node.sources)))
    return planner.steps


class _Planner:
    """Makes a plan.

    Args:
        shapes: The shapes of what is there.
        dim: Width of a token, D.
        limits: How large results may get.
    """

    def __init__(self, shapes: Sequence[Shape], dim: int, limits: Limits) -> None:
        self.dim, self.limits = dim, limits
        self.shapes = list(shapes)  # by place: stems, then steps
        self.steps: list[Step] = []

    def run(self, graph: Graph) -> Plan:
        """Return the plan."""
        places = list(range(len(STEMS)))
        for node in graph.nodes:
            places.append(self.node(node, [places[source] for source in node.sources]))
        head = tuple(places[source] for source in graph.head)
        return Plan(tuple(self.steps), head, sum(self.shapes[place].size for place in head))

    def node(self, node: Node, sources: Sequence[int]) -> int:
        """Add a node's steps; return the place of its result."""
        kind = block_class(node.block)
        inputs: list[int] = []
        for number, (port, place) in enumerate(zip(kind.inputs, sources, strict=True)):
            shape = self.shapes[place]
            if port == "same":
                adapters = to_shape(shape, self.shapes[inputs[0]], self.dim)
            elif port == "any":
                adapters = []
            else:
                adapters = to_kind(shape, self.shapes[inputs[0]].kind if port == "alike" else port, self.dim)
            inputs.append(self._chain(node, f"in{number}", adapters, place))
        block = kind([self.shapes[place] for place in inputs], node.width)
        after = self._limited(block.shape)
        place = self._step(node, node.block, block, tuple(inputs), not after)
        for adapter in after:
            place = self._step(node, f"out/{type(adapter).__name__.lower()}", adapter, (place,), True)
        return place

    def _limited(self, shape: Shape) -> list[Block]:
        if shape.tokens > self.limits.tokens:
            return [ProjectTokens([shape], self.limits.tokens)]
        if not shape.tokens and shape.width > self.limits.features:
            return [Project([shape], self.limits.features)]
        return []

    def _chain(self, node: Node, where: str, adapters: Sequence[Block], place: int) -> int:
        for adapter in adapters:
            place = self._step(node, f"{where}/{type(adapter).__name__.lower()}", adapter, (place,), False)
        return place

    def _step(self, node: Node, what: str, block: Block, inputs: tuple[int, ...], last: bool) -> int:
        self.steps.append(Step(f"{node.name}/{what}", block, inputs, node, last))
        self.shapes.append(block.shape)
        return len(self.shapes) - 1


def stem_of(schema: FeatureSchema, dim: int, histories: int = 0) -> Stem:
    """Return what graphs start from for data of `schema`, with `histories` encoded behaviour histories."""
    return Stem(max(1, len(schema.dense)), len(schema.sparse) + histories, dim)


def lower(found: Plan, stem: Stem, schema: FeatureSchema) -> Program:
    """Return what a plan's steps do for a sample."""
    rows = {feature.table_name: feature.num_embeddings for feature in schema.sparse}
    lookups = sum(max(1, feature.max_length) for feature in schema.sparse)
    program = Program(table_bytes=4 * stem.dim * sum(rows.values()))
    gather = program.add(
        "embedding", "gather", 1, stem.dim, lookups, group="stem", parameters=sum(rows.values()) * stem.dim
    )
    places = [gather, program.add("dense", "elementwise", 1, stem.features, group="stem")]
    for step in found.steps:
        inputs = list(dict.fromkeys(places[source] for source in step.inputs))
        places.append(step.block.lower(program, inputs, step.slot.replace("/", "."), step.group))
    head = list(dict.fromkeys(places[source] for source in found.head))
    program.add("head", "matmul", found.width, len(schema.labels), 1, head, "head", bias=True)
    return program
