"""Last layers fine-tuned on features that are computed once: one logistic regression a candidate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Heads:
    """The last layers of several candidates, each a vector and a bias, trained by Adagrad on the log loss.

    The arithmetic is that of `torch.optim.Adagrad` on the mean cross-entropy of a batch; a step is three products of
    a matrix and a vector, without autograd.

    Args:
        heads: Weight (width) and bias (scalar) of each candidate; copied.
        lr: Learning rate.
        eps: Added to the root of Adagrad's state.
    """

    def __init__(self, heads: Sequence[tuple[Tensor, Tensor]], lr: float, eps: float) -> None:
        self.lr, self.eps = lr, eps
        self.weights = [weight.detach().clone() for weight, _ in heads]
        self.biases = [bias.detach().clone() for _, bias in heads]
        self._weight_states = [torch.zeros_like(weight) for weight in self.weights]
        self._bias_states = [torch.zeros_like(bias) for bias in self.biases]

    def logits(self, place: int, features: Tensor) -> Tensor:
        """Return candidate `place`'s logits (B) of its features (B x width)."""
        return torch.addmv(self.biases[place], features, self.weights[place])

    @torch.no_grad()
    def step(self, place: int, features: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Train candidate `place` on one batch.

        Args:
            place: The candidate.
            features: B x width.
            labels: B labels in [0, 1].
            weights: B sample weights, or None.
        """
        error = torch.sigmoid_(self.logits(place, features)).sub_(labels)  # B, the gradient of the logits' losses
        error = error.div_(len(labels)) if weights is None else error.mul_(weights / weights.sum())
        self._update(self.weights[place], torch.mv(features.t(), error), self._weight_states[place])
        self._update(self.biases[place], error.sum(), self._bias_states[place])

    def _update(self, parameter: Tensor, gradient: Tensor, state: Tensor) -> None:
        state.addcmul_(gradient, gradient)
        parameter.addcdiv_(gradient, state.sqrt().add_(self.eps), value=-self.lr)
