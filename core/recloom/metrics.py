"""Metrics of click models as torchmetrics: they take logits, sum in double precision, and add up over ranks.

Every metric's `update(logits, labels, weights=None)` takes B logits (or B x T, counted as one list), B labels in
[0, 1] and optional B weights. The pure functions below them do the same for tensors at hand.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric


def log_loss_sum(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the summed cross-entropy (nats) in double precision: softplus(z) - y z."""
    logits, labels = logits.double(), labels.double()
    losses = F.softplus(logits) - labels * logits
    return losses.sum() if weights is None else (losses * weights.double()).sum()


def entropy(mean_label: Tensor) -> Tensor:
    """Return the entropy (nats) of a Bernoulli variable with that mean."""
    p = mean_label.double()
    return -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p))


def auroc(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the area under the ROC curve, ties counted half; NaN when there is only one class.

    Args:
        scores: N scores; any increasing function of them gives the same result.
        labels: N labels in [0, 1]; a fractional label counts as that share of a positive.
        weights: N weights or None.
    """
    return grouped_auroc(scores, labels, torch.zeros(len(scores), dtype=torch.int64, device=scores.device), weights)


def grouped_auroc(scores: Tensor, labels: Tensor, groups: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean over groups of their AUROC, weighted by each group's summed weight (GAUC of DIN, eq. 7).

    Groups with only one class have no AUROC and are left out; NaN when all are.

    Args:
        scores: N scores.
        labels: N labels in [0, 1].
        groups: N integer group ids (users, sessions), in any order.
        weights: N weights or None.
    """
    weight = torch.ones_like(labels, dtype=torch.float64) if weights is None else weights.double()
    order = torch.argsort(scores)
    order = order[torch.argsort(groups[order], stable=True)]
    scores, groups, weight, labels = scores[order], groups[order], weight[order], labels.double()[order]
    if len(scores) == 0:
        return torch.tensor(torch.nan, dtype=torch.float64)
    positive, negative = weight * labels, weight * (1 - labels)
    # runs of equal (group, score): a tie's negatives count half
    change = (scores[1:] != scores[:-1]) | (groups[1:] != groups[:-1])
    run = torch.cat([change.new_zeros(1, dtype=torch.int64), change.cumsum(0)])
    runs = int(run[-1]) + 1
    run_positive = positive.new_zeros(runs).index_add_(0, run, positive)
    run_negative = negative.new_zeros(runs).index_add_(0, run, negative)
    first = torch.cat([change.new_ones(1), change]).nonzero().view(-1)
    _, run_group = torch.unique_consecutive(groups[first], return_inverse=True)
    count = int(run_group[-1]) + 1

    def per_group(values: Tensor) -> Tensor:
        return values.new_zeros(count).index_add_(0, run_group, values)

    below = run_negative.cumsum(0) - run_negative
    group_negative, group_positive = per_group(run_negative), per_group(run_positive)
    below = below - (group_negative.cumsum(0) - group_negative)[run_group]
    area = per_group(run_positive * (below + 0.5 * run_negative))
    defined = (group_positive > 0) & (group_negative > 0)
    total = (group_positive + group_negative)[defined]
    return (area[defined] / (group_positive * group_negative)[defined] * total).sum() / total.sum()


class _Sums(Metric):
    """Weighted sums over rows: loss, label, probability, weight."""

    full_state_update = False
    higher_is_better: bool | None = False
    loss: Tensor
    label: Tensor
    probability: Tensor
    weight: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("loss", "label", "probability", "weight"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Add rows."""
        labels = labels.double()
        self.loss += log_loss_sum(logits, labels, weights)
        if weights is None:
            self.label += labels.sum()
            self.probability += torch.sigmoid(logits.double()).sum()
            self.weight += labels.numel()
        else:
            weights = weights.double().expand_as(labels)
            self.label += (labels * weights).sum()
            self.probability += (torch.sigmoid(logits.double()) * weights).sum()
            self.weight += weights.sum()


class LogLoss(_Sums):
    """Mean cross-entropy in nats."""

    def compute(self) -> Tensor:
        """Return the mean."""
        return self.loss / self.weight


class NormalizedEntropy(_Sums):
    """Mean cross-entropy divided by the entropy of the mean label of the same rows (He et al. 2014, eq. 3).

    1 is a model that knows only the base rate; smaller is better. NaN when all labels are alike.
    """

    def compute(self) -> Tensor:
        """Return NE."""
        return self.loss / self.weight / entropy(self.label / self.weight)


class Calibration(_Sums):
    """Mean predicted probability over mean label; 1 is best."""

    higher_is_better = None

    def compute(self) -> Tensor:
        """Return the ratio."""
        return self.probability / self.label


class AUROC(Metric):
    """Area under the ROC curve over all rows, exact, ties counted half. Keeps 12 to 16 bytes a row."""

    full_state_update = False
    higher_is_better = True
    scores: list[Tensor]
    labels: list[Tensor]
    weights: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("scores", "labels", "weights"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Add rows."""
        self.scores.append(logits.detach().float().reshape(-1))
        self.labels.append(labels.float().reshape(-1))
        filled = torch.ones_like(labels) if weights is None else weights.expand_as(labels)
        self.weights.append(filled.float().reshape(-1))

    def compute(self) -> Tensor:
        """Return the area."""
        return auroc(_join(self.scores), _join(self.labels), _join(self.weights))


class GroupedAUROC(Metric):
    """Mean AUROC of groups (users, sessions), weighted by their rows; groups with one class are left out."""

    full_state_update = False
    higher_is_better = True
    scores: list[Tensor]
    labels: list[Tensor]
    groups: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("scores", "labels", "groups"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor, groups: Tensor) -> None:
        """Add rows with their group ids."""
        self.scores.append(logits.detach().float().reshape(-1))
        self.labels.append(labels.float().reshape(-1))
        self.groups.append(groups.long().reshape(-1))

    def compute(self) -> Tensor:
        """Return the weighted mean."""
        return grouped_auroc(_join(self.scores), _join(self.labels), _join(self.groups))


class ReliabilityCurve(Metric):
    """Predicted against observed rates in bins of equal width in the logit: what a calibration plot shows.

    Args:
        bins: Number of bins between logits -10 and 10; what lies outside falls into the outer ones.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self, bins: int = 100, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bins = bins
        self.add_state("sums", torch.zeros(bins, 3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Add rows."""
        logits, labels = logits.detach().double().reshape(-1), labels.double().reshape(-1)
        index = ((logits + 10) * (self.bins / 20)).long().clamp(0, self.bins - 1)
        weight = torch.ones_like(labels) if weights is None else weights.double().reshape(-1)
        rows = torch.stack([torch.sigmoid(logits) * weight, labels * weight, weight], dim=1)
        self.sums.index_add_(0, index, rows)

    def compute(self) -> Tensor:
        """Return (filled bins) x 3: mean prediction, mean label, weight."""
        filled = self.sums[self.sums[:, 2] > 0]
        return torch.cat([filled[:, :2] / filled[:, 2:], filled[:, 2:]], dim=1)


def _join(parts: list[Tensor] | Tensor) -> Tensor:
    if isinstance(parts, Tensor):
        return parts
    return torch.cat(parts) if parts else torch.empty(0)
