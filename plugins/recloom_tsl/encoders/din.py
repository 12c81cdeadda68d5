"""Deep Interest Network (Zhou et al. 2018, arXiv 1706.06978): a step counts as much as it has to do with the candidate.

A small network, the local activation unit, gives each step a weight from the step and the candidate; the history's
vector is the weighted sum of its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom.gaps import GapFeatures
from recloom.sequence import SequenceEncoder
from recloom.tracing import is_exporting


class DIN(SequenceEncoder):
    """The sum of the steps, weighted by the local activation unit; zeros for an empty history.

    The unit's input is [h, q, h - q, h * q] of a step h and the candidate q. The paper draws the step, the candidate
    and their "out product"; difference and elementwise product are the form of the authors' code. The two differ in
    more: the paper gives up normalising the weights, and its activations are PReLU or Dice; the code divides scores by
    sqrt(W), takes a softmax, and uses sigmoids, of widths 80 and 40. Here: the paper's sum and Dice, the code's widths.

    Args:
        width: Width of a step's vector, W.
        max_length: The longest history there can be.
        hidden: Widths of the activation unit's hidden layers.
        activation: Their activations: dice, prelu, sigmoid or relu.
        softmax: Whether weights are a softmax of the scores over sqrt(W) (the code) or the scores (the paper).
        time: "none": order and time do not matter, as in the paper; "gap": gap features into the activation unit.
    """

    def __init__(
        self,
        width: int,
        max_length: int,
        hidden: Sequence[int] = (80, 40),
        activation: Literal["dice", "prelu", "sigmoid", "relu"] = "dice",
        softmax: bool = False,
        time: Literal["none", "gap"] = "none",
    ) -> None:
        super().__init__(width, max_length)
        self.output_dim = width
        self.softmax = softmax
        self.gap_features = GapFeatures() if time == "gap" else None
        extra = self.gap_features.output_dim if self.gap_features is not None else 0
        widths = [4 * width + extra, *hidden]
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in zip(widths, hidden, strict=False)])
        self.activations = nn.ModuleList([ACTIVATIONS[activation](channels) for channels in hidden])
        self.score = nn.Linear(widths[-1], 1)

    def forward(self, steps: Tensor, query: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        """Return B x W; see SequenceEncoder."""
        steps = steps.masked_fill(~mask[..., None], 0)
        features = None if self.gap_features is None else self.gap_features(gaps).to(steps.dtype)
        if is_exporting():  # without shapes that depend on data: all places
            owners = torch.arange(mask.shape[0], device=mask.device)[:, None].expand_as(mask).flatten()
            scores = self._scores(steps.flatten(0, 1), query, owners, features)
        else:
            places = mask.flatten().nonzero().squeeze(1)  # N
            rows = steps.flatten(0, 1).index_select(0, places)
            features = None if features is None else features.flatten(0, 1).index_select(0, places)
            found = self._scores(rows, query, places // mask.shape[1], features)
            scores = found.new_zeros(mask.numel()).index_copy(0, places, found)
        return torch.bmm(self._weights(scores.view_as(mask), mask)[:, None].to(steps.dtype), steps).squeeze(1)

    def _scores(self, rows: Tensor, query: Tensor, owners: Tensor, features: Tensor | None) -> Tensor:
        """Return the activation unit's N outputs.

        Args:
            rows: N x W steps.
            query: B x W.
            owners: The sample, 0..B-1, of each step.
            features: The steps' gap features, if time is "gap".
        """
        inputs = [rows, rows * query.index_select(0, owners)]  # [h, h * q]
        if features is not None:
            inputs.append(features.flatten(0, -2))
        first = self.layers[0] if len(self.layers) else self.score
        assert isinstance(first, nn.Linear)
        # A h + B q + C (h - q) + D (h * q) = (A + C) h + D (h * q) + (B - C) q: half the work, and q's part once a row
        a, b, c, rest = first.weight.split([self.width] * 3 + [first.in_features - 3 * self.width], dim=1)
        of_query = F.linear(query, b - c, first.bias)  # B x (first width)
        hidden = F.linear(torch.cat(inputs, dim=-1), torch.cat([a + c, rest], dim=1))
        hidden = hidden + of_query.index_select(0, owners)
        for index, activation in enumerate(self.activations):
            hidden = activation(hidden)
            hidden = self.layers[index + 1](hidden) if index + 1 < len(self.layers) else self.score(hidden)
        return hidden.squeeze(-1)

    def _weights(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Return B x L weights of B x L scores; 0 where there is no step."""
        if self.softmax:
            scores = scores.float() / self.width**0.5
            scores = scores.masked_fill(~mask, torch.finfo(torch.float32).min).softmax(dim=1)
        return scores.masked_fill(~mask, 0)


class Dice(nn.Module):
    """f(s) = p(s) s + (1 - p(s)) alpha s with p(s) = sigmoid((s - E[s]) / sqrt(Var[s] + eps)), a channel.

    E and Var are those of the batch's steps while training (places without a step are not among them), and their moving
    averages in evaluation, and for a batch with fewer than two steps. alpha starts at 0, as in the authors' code.

    Args:
        channels: Width of the input.
        eps: Added to the variance.
        momentum: Part of a batch's statistics in the moving averages.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, eps: float = 1e-8, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, s: Tensor) -> Tensor:
        """Return N x C of N x C."""
        of_batch = self.training and len(s) > 1
        dtype = self.mean.dtype
        normal = F.batch_norm(s.to(dtype), self.mean, self.variance, None, None, of_batch, self.momentum, self.eps)
        p = torch.sigmoid(normal).to(s.dtype)
        alpha = self.alpha.to(s.dtype)
        return s * torch.addcmul(alpha, 1 - alpha, p)  # alpha + (1 - alpha) p


ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "dice": Dice,
    "prelu": nn.PReLU,
    "sigmoid": lambda channels: nn.Sigmoid(),
    "relu": lambda channels: nn.ReLU(),
}
