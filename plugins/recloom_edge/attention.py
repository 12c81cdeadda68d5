"""TGN's layers: an encoding of time, and attention over recent neighbours as a message passing on DGL graphs."""

from __future__ import annotations

import os

os.environ.setdefault("DGLBACKEND", "pytorch")  # or dgl asks, and writes a file to the home folder

import dgl
import torch
from dgl.nn.functional import edge_softmax
from torch import Tensor, nn

from recloom.errors import RecloomError


class TimeEncoding(nn.Module):
    """cos(t w + b), with w from 1 down to 1e-9 a second at the start, as in TGAT and TGN."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rate = nn.Parameter(1 / 10 ** torch.linspace(0, 9, width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, seconds: Tensor) -> Tensor:
        """Map n spans of time (float64) to n x width."""
        return torch.cos(seconds[:, None].float() * self.rate + self.shift)


def neighbour_graph(row: Tensor, nodes: int) -> dgl.DGLGraph:
    """Return `nodes` nodes, and an edge to node row[i] for each i: of a neighbour, whose values lie on the edge."""
    return dgl.graph((row, row), num_nodes=nodes, device=row.device)


class NeighbourAttention(nn.Module):
    """One layer of attention of a node over its recent neighbours: a message passing on a DGL graph.

    Args:
        width: Width of a memory.
        time: Width of the time encoding.
        features: Width of an event's features.
        heads: Number of heads.
    """

    def __init__(self, width: int, time: int, features: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise RecloomError(f"{heads} heads of a width of {width}", "The width must be a multiple.")
        self.heads, self.width = heads, width
        self.query = nn.Linear(width + time, width)
        self.key = nn.Linear(width + time + features, width)
        self.value = nn.Linear(width + time + features, width)
        self.merge = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, graph: dgl.DGLGraph, node: Tensor, zero: Tensor, neighbour: Tensor, edge: Tensor) -> Tensor:
        """Return n x width embeddings.

        Args:
            graph: n nodes, and an edge to each of them from every one of its neighbours.
            node: n x width memories.
            zero: n x time, the encoding of no time.
            neighbour: Memory of every edge's source, m x width.
            edge: Time encoding and features of every edge, m x (time + features).
        """
        told = torch.cat([neighbour, edge], dim=1)
        shape = (-1, self.heads, self.width // self.heads)
        query = self.query(torch.cat([node, zero], dim=1)).view(shape)
        key, value = self.key(told).view(shape), self.value(told).view(shape)
        place = graph.edges()[1]
        score = (query[place] * key).sum(-1, keepdim=True) / shape[-1] ** 0.5  # m x heads x 1
        weight = edge_softmax(graph, score)
        with graph.local_scope():
            graph.edata["message"] = weight * value
            graph.update_all(dgl.function.copy_e("message", "m"), dgl.function.sum("m", "sum"))
            gathered = graph.ndata["sum"].flatten(1)
        return self.merge(torch.cat([node, gathered], dim=1))
