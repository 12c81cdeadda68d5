"""Metrics against scikit-learn and against plain sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from recloom import metrics


def rows(count: int, seed: int = 0, levels: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, generator=generator) * 2
    if levels:
        logits = (logits * levels).round() / levels
    labels = (torch.rand(count, generator=generator) < torch.sigmoid(logits)).float()
    return logits, labels, torch.rand(count, generator=generator) + 0.1


@pytest.mark.parametrize("weighted", [False, True])
def test_against_scikit_learn_in_pieces(weighted: bool) -> None:
    logits, labels, weights = rows(5000, levels=3)
    weight = weights if weighted else None
    found = {
        "auc": metrics.AUROC(),
        "logloss": metrics.LogLoss(),
        "ne": metrics.NormalizedEntropy(),
        "cal": metrics.Calibration(),
    }
    for metric in found.values():
        for start in range(0, 5000, 700):
            part = slice(start, start + 700)
            metric.update(logits[part], labels[part], None if weight is None else weight[part])
    values = {name: float(metric.compute()) for name, metric in found.items()}
    probabilities = torch.sigmoid(logits.double()).numpy()
    sample_weight = None if weight is None else weight.double().numpy()
    loss = log_loss(labels.double().numpy(), probabilities, sample_weight=sample_weight)
    base = np.average(labels.double().numpy(), weights=sample_weight)
    assert values["auc"] == pytest.approx(roc_auc_score(labels, logits, sample_weight=sample_weight), abs=1e-9)
    assert values["logloss"] == pytest.approx(loss, abs=1e-9)
    assert values["ne"] == pytest.approx(loss / -(base * np.log(base) + (1 - base) * np.log(1 - base)), abs=1e-9)
    assert values["cal"] == pytest.approx(np.average(probabilities, weights=sample_weight) / base, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(0, 2**20), st.integers(1, 7))
def test_grouped_auc_is_the_weighted_mean_of_groups(count: int, seed: int, groups: int) -> None:
    logits, labels, weights = rows(count, seed, levels=1)
    group = torch.randint(groups, (count,), generator=torch.Generator().manual_seed(seed)) * 1000 - 2000
    total = areas = 0.0
    for value in group.unique():
        inside = group == value
        if labels[inside].min() == labels[inside].max():
            continue
        weight = float(weights[inside].double().sum())
        areas += weight * roc_auc_score(labels[inside], logits[inside], sample_weight=weights[inside].double())
        total += weight
    found = float(metrics.grouped_auroc(logits, labels, group, weights))
    if total:
        assert found == pytest.approx(areas / total, abs=1e-9)
    else:
        assert np.isnan(found)


def test_one_class_and_no_rows_are_nan_and_extremes_stay_finite() -> None:
    ones = torch.ones(4)
    assert torch.isnan(metrics.auroc(torch.arange(4.0), ones))
    assert torch.isnan(metrics.auroc(torch.empty(0), torch.empty(0)))
    loss = metrics.log_loss_sum(torch.tensor([200.0, -200.0]), torch.tensor([1.0, 0.0]))
    assert float(loss) == pytest.approx(0.0, abs=1e-80)
    assert float(metrics.log_loss_sum(torch.tensor([200.0]), torch.tensor([0.0]))) == pytest.approx(200.0)


def test_the_reliability_curve_adds_up() -> None:
    logits, labels, _ = rows(20_000)
    curve = metrics.ReliabilityCurve(bins=20)
    curve.update(logits, labels)
    found = curve.compute()
    assert float(found[:, 2].sum()) == 20_000
    assert torch.allclose((found[:, 1] * found[:, 2]).sum(), labels.double().sum())
    crowded = found[found[:, 2] > 1000]
    assert torch.allclose(crowded[:, 0], crowded[:, 1], atol=0.05)  # these labels are drawn from these probabilities
