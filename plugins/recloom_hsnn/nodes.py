"""The nodes that are learned with the towers: soft assignment, residual levels, losses against collapse.

Learning-to-index (arXiv 2408.06653, algorithm 1) in one file. Letters in shapes: B items, K nodes, D width of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from recloom.errors import RecloomError
from recloom_hsnn.settings import NodesConfig
from recloom_hsnn.tree import Tree, kmeans


@dataclass(frozen=True)
class Assigned:
    """Where items are at one level.

    Args:
        soft: B x D, the mean of the nodes by soft assignment.
        hard: B x D, the nearest node's vector.
        node: B numbers of the nearest node.
        weights: B x K soft assignment.
    """

    soft: Tensor
    hard: Tensor
    node: Tensor
    weights: Tensor


@dataclass
class IndexLosses:
    """What the nodes add to the loss, before the warm-up's weight; each a number."""

    parts: dict[str, Tensor] = field(default_factory=dict)

    def total(self) -> Tensor:
        """Return their sum."""
        return torch.stack([part for part in self.parts.values()]).sum()


class HierarchicalIndex(nn.Module):
    """1 to 3 levels of nodes in the space of items' codes.

    Args:
        config: How many, and how they are learned.
        dim: Width of a vector.
    """

    def __init__(self, config: NodesConfig, dim: int) -> None:
        super().__init__()
        sizes = list(config.sizes)
        if not 1 <= len(sizes) <= 3 or min(sizes) < 1 or (config.layout == "tree" and sizes != sorted(sizes)):
            raise RecloomError(f"nodes: sizes is {sizes}", "Give 1 to 3 numbers, growing in a tree.")
        self.config, self.dim = config, dim
        learned = config.source == "lti"
        self.levels = nn.ParameterList(
            [nn.Parameter(F.normalize(torch.randn(size, dim), dim=1), requires_grad=learned) for size in sizes]
        )
        for level, size in enumerate(sizes):
            self.register_buffer(f"use{level}", torch.full((size,), 1 / size))
            self.register_buffer(f"past{level}", torch.zeros(max(config.stacked - 1, 0), size))
            self.register_buffer(f"born{level}", torch.zeros(size))
        self.register_buffer("begun", torch.tensor(False))
        self.register_buffer("stacked_batches", torch.tensor(0))
        self.register_buffer("revived", torch.tensor(0))

    @property
    def ready(self) -> bool:
        """Whether the nodes have begun."""
        return bool(self.get_buffer("begun"))

    @torch.no_grad()
    def begin(self, vectors: Tensor, seed: int = 0) -> None:
        """Place the nodes by k-means on items' vectors, N x D; the same on all ranks."""
        rest = vectors.float().cpu().numpy()
        below: np.ndarray | None = None
        levels = list(self.levels) if self.config.layout == "residual" else list(reversed(list(self.levels)))
        for place, level in enumerate(levels):
            source = rest if below is None or self.config.layout == "residual" else below
            centres = kmeans(source, len(level), seed + place)
            if len(centres) < len(level):  # fewer distinct items than nodes: the others start anywhere near
                again = np.random.default_rng(seed).integers(len(centres), size=len(level) - len(centres))
                jitter = 1e-3 * np.random.default_rng(seed + 1).normal(size=(len(again), self.dim))
                centres = np.concatenate([centres, centres[again] + jitter]).astype(np.float32)
            level.copy_(torch.from_numpy(centres))
            below = centres
            if self.config.layout == "residual":
                rest = rest - centres[_assign(torch.from_numpy(rest), torch.from_numpy(centres)).numpy()]
        for level in range(len(self.levels)):
            self.get_buffer(f"use{level}").fill_(1 / len(self.levels[level]))
        self._share()
        self.get_buffer("begun").fill_(True)

    def assign(self, vectors: Tensor, alpha: float) -> list[Assigned]:
        """Return where B x D items are at each level; with residual codes, vectors are sums down to the level."""
        found: list[Assigned] = []
        rest, soft, hard = vectors, torch.zeros_like(vectors), torch.zeros_like(vectors)
        for level in self.levels:
            distances = torch.cdist(rest, level)  # B x K
            weights = torch.softmax(-alpha * distances, dim=1)
            node = distances.argmin(1)
            near, mean = level[node], weights @ level
            if self.config.layout == "residual":
                soft, hard = soft + mean, hard + near
                rest = rest - mean  # r_n = r_(n-1) - c_bar_(n-1)
            else:
                soft, hard = mean, near
            found.append(Assigned(soft, hard, node, weights))
        return found

    def losses(self, vectors: Tensor, assigned: list[Assigned]) -> IndexLosses:
        """Return reconstruction, commitment and balance of a batch; `vectors` B x D carry the tower's gradient."""
        found = IndexLosses()
        levels = assigned[-1:] if self.config.layout == "residual" else assigned
        if self.config.source == "lti":
            rebuilt = sum(_square(one.soft, vectors.detach()) for one in levels)
            if self.config.commitment is None:  # the paper's: one term, whose gradient moves items too
                rebuilt = sum(_square(one.soft, vectors) for one in levels)
            else:
                found.parts["commitment"] = self.config.commitment * sum(
                    (_square(vectors, one.soft.detach()) for one in levels), vectors.new_zeros(())
                )
            found.parts["reconstruction"] = rebuilt + vectors.new_zeros(())
        if self.config.balance and self.config.source == "lti":
            found.parts["balance"] = self.config.balance * self._flops(assigned)
        return found

    def _flops(self, assigned: list[Assigned]) -> Tensor:
        """Return the sum over levels of K sum_k (mean assignment to k over the stacked batches)^2: 1 when even."""
        total = assigned[0].soft.new_zeros(())
        stacked = int(self.get_buffer("stacked_batches"))
        for level, one in enumerate(assigned):
            past = self.get_buffer(f"past{level}")
            own = one.weights.mean(0)
            count = min(stacked, len(past))
            mean = (own + past[:count].sum(0)) / (count + 1)
            total = total + len(own) * (mean**2).sum()
            if len(past):
                past[stacked % len(past)] = _mean_over_ranks(own.detach())
        self.get_buffer("stacked_batches").add_(1)
        return total

    @torch.no_grad()
    def observe(self, vectors: Tensor, assigned: list[Assigned]) -> None:
        """After a step: count the use of nodes, move those of "ema", revive dead ones. The same on all ranks."""
        keep = self.config.decay
        for level, one in enumerate(assigned):
            size, use = len(self.levels[level]), self.get_buffer(f"use{level}")
            counts = torch.bincount(one.node, minlength=size).to(use.dtype)
            use.mul_(keep).add_(_mean_over_ranks(counts / len(vectors)), alpha=1 - keep)
            if self.config.source in ("ema", "natural") and self.config.layout == "tree":
                sums = torch.zeros_like(self.levels[level]).index_add_(0, one.node, vectors)
                sums, counts = _mean_over_ranks(sums), _mean_over_ranks(counts)
                step = (1 - keep) * counts / (use * len(vectors)).clamp(min=1e-6)
                target = sums / counts.clamp(min=1e-6)[:, None]
                self.levels[level].lerp_(target, step.clamp(max=1)[:, None])
            if self.config.revive and self.config.source in ("lti", "ema"):
                self._revive(level, vectors, use)

    def _revive(self, level: int, vectors: Tensor, use: Tensor) -> None:
        """Put nodes that are used too little on items of the batch, and give them time to be used."""
        born, size = self.get_buffer(f"born{level}"), len(use)
        born.add_(1)
        dead = ((use < self.config.revive / size) & (born > 2 / (1 - self.config.decay))).nonzero().squeeze(1)
        if not len(dead) or self.config.layout == "residual":
            return
        dead = dead[: len(vectors)]
        chosen = torch.randperm(len(vectors), device=vectors.device)[: len(dead)]
        places = vectors[chosen]
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(places, 0)
        self.levels[level][dead] = places
        use[dead], born[dead] = 1 / size, 0.0
        self.get_buffer("revived").add_(len(dead))

    def tree(self, column: int = -1) -> Tree:
        """Return the nodes as a tree: of residual codewords all sums, level by level."""
        levels = [level.detach().float().cpu().numpy() for level in self.levels]
        if self.config.layout == "residual":
            sums, parents = [levels[0]], []
            for words in levels[1:]:
                above = sums[-1]
                parents.append(np.repeat(np.arange(len(above)), len(words)))
                sums.append((above[:, None] + words[None]).reshape(-1, self.dim))
            return Tree(tuple(sums), tuple(parents), column, greedy=True)
        parents = [_assign(torch.from_numpy(low), torch.from_numpy(high)).numpy() for high, low in pairwise(levels)]
        return Tree(tuple(levels), tuple(parents), column)

    def _share(self) -> None:
        """Make all ranks' nodes those of rank 0."""
        if dist.is_available() and dist.is_initialized():
            for level in self.levels:
                dist.broadcast(level.data, 0)


def _assign(vectors: Tensor, nodes: Tensor) -> Tensor:
    return torch.cdist(vectors, nodes).argmin(1)


def _square(left: Tensor, right: Tensor) -> Tensor:
    return ((left - right) ** 2).sum(1).mean()


def _mean_over_ranks(values: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
        values = values / dist.get_world_size()
    return values


def usage(counts: Tensor) -> dict[str, float]:
    """Return how evenly nodes are used: shares of the nodes, and faiss's imbalance factor (1 when even)."""
    use = counts.double() / counts.sum().clamp(min=1)
    positive = use[use > 0]
    return {
        "used": float((use > 0).double().mean()),
        "perplexity": float(torch.exp(-(positive * positive.log()).sum())) / len(use),
        "largest": float(use.max()) * len(use),
        "imbalance": float(len(use) * (use**2).sum()),
    }
