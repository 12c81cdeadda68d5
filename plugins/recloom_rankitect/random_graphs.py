"""Random graphs of blocks, checked: they run, they train, and their canonical form is the same model."""

from __future__ import annotations

import time

import numpy as np
import torch

from recloom_rankitect.network import GraphNetwork
from recloom_rankitect.plan import Stem, plan
from recloom_rankitect.space import BlockSpace


def random_graphs(count: int, nodes: int) -> dict[str, float]:
    """Return how many random graphs run, train and have an equal canonical form, and the milliseconds of sampling."""
    space, stem = BlockSpace(nodes), Stem(5, 6, 16)
    rng = np.random.default_rng(0)
    dense, tokens = torch.randn(8, stem.features).double(), 0.3 * torch.randn(8, stem.tokens, stem.dim).double()
    seconds, good = [], 0
    for number in range(count):
        start = time.perf_counter()
        genotype = space.sample(rng)
        seconds.append(time.perf_counter() - start)
        graph = space.graph(genotype)
        torch.manual_seed(number)
        network = GraphNetwork(plan(graph, stem, space.limits)).double()
        logits = network(dense, tokens)
        logits.square().mean().backward()
        good += int(bool(torch.isfinite(logits).all()) and _same(space, genotype, network, stem, (dense, tokens)))
    return {"good": float(good), "sample_ms": 1e3 * float(np.median(seconds))}


@torch.no_grad()
def _same(
    space: BlockSpace, genotype: tuple[int, ...], whole: GraphNetwork, stem: Stem, inputs: tuple[torch.Tensor, ...]
) -> bool:
    """Return whether the canonical graph, with the same weights, gives the same logits."""
    graph = space.graph(genotype)
    pruned = GraphNetwork(space.plan(space.canonical(genotype), stem)).double()
    names = [node.name for node, alive in zip(graph.nodes, graph.live(), strict=True) if alive]
    for slot, step in pruned.steps.items():
        node, slash, rest = slot.partition("/")
        step.load_state_dict(whole.steps[f"{names[int(node[1:]) - 1]}{slash}{rest}"].state_dict())
    found = plan(graph, stem, space.limits)
    shapes = [*stem.shapes, *(step.block.shape for step in found.steps)]
    columns = list(torch.split(whole.head.weight, [shapes[place].size for place in found.head], 1))
    if len(set(graph.head)) < len(graph.head):  # the head reads a result twice: its weights add up
        columns, order = [columns[0] + columns[1]], [0]
    else:
        order = sorted(range(len(graph.head)), key=lambda place: -graph.head[place])
    pruned.head.weight.copy_(torch.cat([columns[place] for place in order], 1))
    pruned.head.bias.copy_(whole.head.bias)
    a, b = whole.eval()(*inputs), pruned.eval()(*inputs)
    return bool(torch.allclose(a, b, rtol=1e-6, atol=1e-8))
