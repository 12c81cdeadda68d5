"""Attention over recent neighbours as a message passing on DGL graphs; TGN's encoding of time, EDGE's messages."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from recloom.errors import ComponentImportError, RecloomError

os.environ.setdefault("DGLBACKEND", "pytorch")  # or dgl asks, and writes a file to the home folder

try:
    import dgl
except ModuleNotFoundError as error:
    if sys.version_info < (3, 12):
        raise
    this = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise ComponentImportError(
        f"TGN and EDGE's neighbours need DGL 1, which is built for Python 3.11 and earlier, and this is Python {this}",
        "Use Python 3.11 and pip install 'recloom[edge]'; EDGE without neighbours, and JODIE, work here.",
    ) from error
import dgl.function as fn
import torch
from dgl.nn.functional import edge_softmax
from torch import Tensor, nn

from recloom_edge.head import Rolled
from recloom_edge.neighbours import Near
from recloom_edge.query import TIME_FEATURES, time_features
from recloom_edge.versions import newest_rows


class TimeEncoding(nn.Module):
    """cos(t w + b), with w from 1 down to 1e-9 a second at the start, as in TGAT and TGN."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rate = nn.Parameter(1 / 10 ** torch.linspace(0, 9, width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, seconds: Tensor) -> Tensor:
        """Map n spans of time (float64) to n x width."""
        return torch.cos(seconds[:, None].float() * self.rate + self.shift)


def neighbour_graph(neighbour: Tensor, node: Tensor, neighbours: int, nodes: int) -> dgl.DGLGraph:
    """Return a DGL block: an edge from neighbour[i] (of u) to node[i] (of n) for each i of m."""
    sizes = {"num_src_nodes": neighbours, "num_dst_nodes": nodes}
    return dgl.create_block((neighbour, node), **sizes, device=node.device)


class NeighbourAttention(nn.Module):
    """Attention of nodes over their recent neighbours; what is the same for all edges of a neighbour is made once.

    Args:
        query: Width of what a node asks with.
        neighbour: Width of what is known of a neighbour.
        edge: Width of what is known of an event: its age and features.
        width: Width of the result.
        heads: Number of heads.
        dropout: Share of the attention that is dropped in training.
    """

    def __init__(self, query: int, neighbour: int, edge: int, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise RecloomError(f"{heads} heads of a width of {width}", "The width must be a multiple.")
        self.heads, self.width, self.dropout = heads, width, nn.Dropout(dropout)
        self.query = nn.Linear(query, width)
        self.neighbour, self.edge = nn.Linear(neighbour, 2 * width), nn.Linear(edge, 2 * width, bias=False)

    def forward(self, graph: dgl.DGLGraph, asked: Tensor, neighbour: Tensor, edge: Tensor) -> Tensor:
        """Return n x width: the sum of the neighbours' values by attention; zeros where there are none.

        Args:
            graph: A block of `neighbour_graph`.
            asked: n x query.
            neighbour: u x neighbour.
            edge: m x edge.
        """
        shape = (self.heads, self.width // self.heads)
        with graph.local_scope():
            graph.srcdata["known"] = self.neighbour(neighbour)
            graph.edata["event"] = self.edge(edge)
            graph.apply_edges(fn.u_add_e("known", "event", "told"))
            key, value = graph.edata["told"].unflatten(1, (2, *shape)).unbind(1)
            graph.edata["key"], graph.dstdata["asked"] = key, self.query(asked).unflatten(1, shape)
            graph.apply_edges(fn.e_dot_v("key", "asked", "score"))  # m x heads x 1
            attention = self.dropout(edge_softmax(graph, graph.edata["score"] / shape[1] ** 0.5))
            graph.edata["message"] = attention * value
            graph.update_all(fn.copy_e("message", "message"), fn.sum("message", "sum"))
            return graph.dstdata["sum"].flatten(1)


class SourceMessages(nn.Module):
    """What a source's newest events tell it before each event: attention over their other ends, on a DGL graph.

    A neighbour is known by its newest state before the event and its static embedding; an event by its age and
    features. The result begins as zeros, so that a model with neighbours begins as one without.

    Args:
        width: d, the width of a state.
        static: s, the width of a static embedding.
        features: Width of an event's features.
        heads: Number of heads.
    """

    def __init__(self, width: int, static: int, features: int, heads: int = 2) -> None:
        super().__init__()
        self.attention = NeighbourAttention(
            width + TIME_FEATURES, width + static, TIME_FEATURES + features, static - static % heads, heads
        )
        self.out = nn.Linear(static - static % heads, static, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, rolled: Rolled, near: Near, static: Callable[[Tensor], Tensor], offset: int, ticks: int
    ) -> Tensor:
        """Return E x s.

        Args:
            rolled: The window; neighbours have rows at its start.
            near: The sources' newest events before each of the window's.
            static: Gives the static embeddings of destinations.
            offset: What brings a destination's number to its node.
            ticks: Ticks of a second.
        """
        window, states = rolled.window, rolled.states
        event, column = (near.node >= 0).nonzero(as_tuple=True)
        node = near.node[event, column]
        rows, place = newest_rows(rolled.plan, window, offset, event, node).unique(return_inverse=True)
        nodes = torch.empty_like(rows).index_copy(0, place, node)
        known = torch.cat([states.index_select(0, rows), static(nodes - offset)], dim=1)
        ages = time_features(window.time[event] - near.at[event, column], ticks)
        own = states.index_select(0, rolled.plan.seen[:, 0].to(states.device).long())
        graph = neighbour_graph(place, event, len(rows), len(window))
        edge = torch.cat([ages, near.told[event, column]], dim=1)
        return self.out(self.attention(graph, torch.cat([own, rolled.gaps[:, 0]], dim=1), known, edge))
