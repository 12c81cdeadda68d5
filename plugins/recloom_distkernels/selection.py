"""Cross-validation of machines on sets of points, with divergences that are computed once."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.model_selection import KFold, StratifiedKFold
from torch import Tensor

from recloom_distkernels.machines import SetClassifier, SetRegressor
from recloom_distkernels.pairwise import pairwise_divergences
from recloom_distkernels.samplesets import SampleSets


def set_divergences(machine: SetClassifier | SetRegressor, sets: SampleSets) -> Tensor:
    """Return the S x S divergences that `machine` would compute of all sets."""
    gram = machine._gram()
    found = pairwise_divergences(sets, None, [gram.divergence], [gram.k], gram.engine)
    (values,) = found.there.values()
    return values


def cross_val_predict_sets(
    machine: SetClassifier | SetRegressor, sets: Any, y: np.ndarray, cv: int = 5, seed: int = 0
) -> np.ndarray:
    """Return a prediction for each set by a machine fitted on the other folds.

    Bandwidths, the PSD repair and what is tuned come from the training folds alone (a data-driven bandwidth of MMD and
    the floor of distances come from all sets).

    Args:
        machine: The machine; copies of it are fitted.
        sets: SampleSets, a list of sets, or the S x S divergences of `set_divergences`.
        y: S targets.
        cv: Number of folds.
        seed: Seed of the folds.
    """
    values = sets if isinstance(sets, Tensor) else set_divergences(machine, SampleSets.of(sets))
    kind = StratifiedKFold if is_classifier(machine) else KFold
    found = np.empty(len(y), dtype=np.asarray(y).dtype)
    for train, held in kind(cv, shuffle=True, random_state=seed).split(y, y):
        rows = values[train]
        fitted = clone(machine).fit_divergences(rows[:, train], y[train])
        found[held] = fitted.predict_divergences(values[held][:, train], rows[:, held])
    return found
