"""An ensemble of small networks that rank candidates: learned from pairs of which is better."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
PAIRS = 2048  # compared in a step
SCALE = 0.25


class RankingEnsemble:
    """Networks with a hidden layer each; scores are lower for better candidates.

    Args:
        members: Number of networks. Each learns from a bootstrap sample: where they disagree is uncertain.
        hidden: Hidden units.
        steps: Steps of Adam.
        lr: Learning rate.
        decay: Weight decay.
    """

    def __init__(self, members: int, hidden: int, steps: int, lr: float = 0.01, decay: float = 1e-3) -> None:
        self.members, self.hidden, self.steps, self.lr, self.decay = members, hidden, steps, lr, decay

    def fit(self, features: Array, better: NDArray[np.int64], seed: int) -> None:
        """Learn from pairs.

        Args:
            features: N x F.
            better: P x 2 places: the first is better than the second.
            seed: Seed of weights, bootstrap samples and pairs.
        """
        generator = torch.Generator().manual_seed(seed)
        self._low = features.mean(0)
        spread = features.std(0)
        self._kept = spread > 0
        self._spread = np.where(self._kept, spread, 1.0)
        x = self._scaled(features)
        pairs = torch.from_numpy(better)
        counts = torch.zeros(self.members, len(x))
        drawn = torch.randint(len(x), (self.members, len(x)), generator=generator)
        counts.scatter_add_(1, drawn, torch.ones_like(counts))
        width = x.shape[1]
        self._w1 = torch.randn(self.members, width, self.hidden, generator=generator) / math.sqrt(max(width, 1))
        self._b1 = torch.zeros(self.members, 1, self.hidden)
        self._w2 = SCALE * torch.randn(self.members, self.hidden, 1, generator=generator) / math.sqrt(self.hidden)
        parameters = [tensor.requires_grad_() for tensor in (self._w1, self._b1, self._w2)]
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.decay)
        for _ in range(self.steps if len(pairs) else 0):
            chosen = pairs
            if len(pairs) > PAIRS:
                chosen = pairs[torch.randint(len(pairs), (PAIRS,), generator=generator)]
            scores = self._scores(x)  # M x N
            first, second = chosen.T
            weight = counts[:, first] * counts[:, second]
            loss = (weight * F.softplus(scores[:, first] - scores[:, second])).sum() / weight.sum().clamp(min=1.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            known = self._scores(x)
        self._mean, self._std = known.mean(1, keepdim=True), known.std(1, keepdim=True).clamp(min=1e-6)

    @torch.no_grad()
    def scores(self, features: Array) -> Array:
        """Return members x N scores of N x F; each member's have mean 0 and deviation 1 on what it learned from."""
        found = (self._scores(self._scaled(features)) - self._mean) / self._std
        return found.double().numpy()

    def _scaled(self, features: Array) -> Tensor:
        scaled = ((features - self._low) / self._spread)[:, self._kept]
        return torch.from_numpy(np.clip(scaled, -4, 4).astype(np.float32))

    def _scores(self, x: Tensor) -> Tensor:
        return (torch.tanh(x @ self._w1 + self._b1) @ self._w2).squeeze(2)


def pairs_of(values: Array, diverged: NDArray[np.bool_], group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return P x 2 places of pairs of which the first is known to be better.

    Args:
        values: N values to minimise; whatever where it diverged.
        diverged: Which of them diverged: all measured ones of its study are better, and nothing else is known.
        group: The study that each is of; only those of one study are compared.
    """
    with np.errstate(invalid="ignore"):
        less = (values[:, None] < values[None]) & ~diverged[:, None] & ~diverged[None]
    better = (less | (~diverged[:, None] & diverged[None])) & (group[:, None] == group[None])
    return np.argwhere(better)
