"""What scikit-learn hands to our estimators, as SampleSets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import validate_data
from torch import Tensor

from recloom.errors import DataError
from recloom_distkernels.samplesets import SampleSets


def as_sets(estimator: Any, given: Any, reset: bool) -> SampleSets:
    """Return the sets that a user gave to `estimator`, and check, or remember, the dimension of the points.

    A list (or array of objects) of arrays is a list of sets; a plain 2-d array, scikit-learn's S samples of d features,
    is S sets of one d-dimensional point.

    Args:
        estimator: Whose `n_features_in_` is set or compared.
        given: SampleSets, a list of sets, or a 2-d array.
        reset: Whether to set it: in `fit`.
    """
    if not isinstance(given, SampleSets) and not _is_list_of_sets(given):
        array = validate_data(estimator, given, reset=reset, dtype=(np.float64, np.float32))
        return SampleSets(torch.from_numpy(np.array(array)), torch.arange(len(array) + 1))
    sets = SampleSets.of(given)
    if reset:
        estimator.n_features_in_ = sets.dim
    elif sets.dim != estimator.n_features_in_:
        raise DataError(
            f"points have {sets.dim} dimensions, those that {type(estimator).__name__} was fitted on "
            f"{estimator.n_features_in_}",
            "Use the same columns for both.",
        )
    return sets


def _is_list_of_sets(given: Any) -> bool:
    if isinstance(given, np.ndarray):
        if given.dtype != object or given.ndim != 1:
            return given.ndim == 3
        return len(given) > 0 and isinstance(given[0], np.ndarray | Tensor)
    if not isinstance(given, Sequence) or isinstance(given, str) or not len(given):
        return isinstance(given, Tensor) and given.ndim == 3
    return isinstance(given[0], np.ndarray | Tensor) or np.ndim(given[0]) == 2
