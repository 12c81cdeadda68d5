"""Support vector machines on sets of points, tuned on divergences that are computed once."""

from __future__ import annotations

import itertools
import warnings
from abc import abstractmethod
from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.svm import SVC, SVR
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d
from torch import Tensor

from recloom.errors import RecloomError
from recloom_distkernels.estimators import SetEstimator
from recloom_distkernels.gram import SetGram
from recloom_distkernels.inputs import as_sets
from recloom_distkernels.kernels import GaussianKernel

SCALES = tuple(2.0**e for e in range(-4, 11, 2))  # py-sdm's grid of sigma, times the median
PENALTIES = tuple(2.0**e for e in range(-9, 19, 3))  # and of C
_TUNING_ITERATIONS = 1000


class _SetMachine(SetEstimator):
    """A support vector machine on the kernel of sets.

    "auto" for C or scale tries the grids of the authors' py-sdm by cross-validation among the training sets. Their
    divergences are computed once; in each fold, bandwidth and PSD repair are fitted on the fold's training block, and
    the rows held out go through the repair's transform.
    """

    def __init__(
        self,
        divergence: str = "renyi:0.8",
        kernel: str = "gaussian",
        psd: str = "clip",
        k: int = 3,
        engine: str = "auto",
        C: float | str = "auto",
        scale: float | str = "auto",
        cv: int = 3,
        random_state: int | None = 0,
    ) -> None:
        super().__init__(divergence, kernel, psd, k, engine)
        self.C = C
        self.scale = scale
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on sets X with targets y."""
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        sets = as_sets(self, X, reset=True)
        check_consistent_length(sets, y)
        targets = self._targets(column_or_1d(y, warn=True))
        gram = self._gram()
        return self._fit_gram(gram, gram.measure(sets), targets)

    def predict(self, X: Any) -> np.ndarray:
        """Return R predictions."""
        rows = self._rows(X)
        return self._outputs(self.machine_.predict(rows))

    def fit_divergences(self, values: Tensor, y: Any) -> Self:
        """Fit on the S x S divergences of the training sets, instead of the sets."""
        return self._fit_gram(self._gram(), values, self._targets(column_or_1d(y)))

    def predict_divergences(self, there: Tensor, back: Tensor) -> np.ndarray:
        """Return R predictions, given R x S divergences of sets from the training sets, and S x R of the other way."""
        check_is_fitted(self)
        return self._outputs(self.machine_.predict(self.gram_.rows_of_values(there, back)))

    @abstractmethod
    def _targets(self, y: np.ndarray) -> np.ndarray:
        """Return the targets as the machine takes them."""

    @abstractmethod
    def _outputs(self, predicted: np.ndarray) -> np.ndarray:
        """Return what the machine predicts as targets."""

    @abstractmethod
    def _machine(self, penalty: float, iterations: int) -> Any:
        """Return the machine to fit on a kernel matrix."""

    @abstractmethod
    def _folds(self, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the folds of the search; none if there are too few sets."""

    @abstractmethod
    def _score(self, machine: Any, rows: np.ndarray, y: np.ndarray) -> float:
        """Return how good a machine is on rows held out."""

    def _fit_gram(self, gram: SetGram, values: Tensor, y: np.ndarray) -> Self:
        scales = self._grid(self.scale, SCALES if isinstance(gram.kernel, GaussianKernel) else (1.0,), "scale")
        penalties = self._grid(self.C, PENALTIES, "C")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the search stops at 1,000 iterations on purpose
            self.best_scale_, self.best_C_, self.scores_ = self._tune(values, y, scales, penalties)
        self.gram_ = self._rescaled(gram, self.best_scale_).fit_values(values)
        self.machine_ = self._machine(self.best_C_, -1).fit(self.gram_.matrix(), y)
        return self

    def _grid(self, given: float | str, grid: tuple[float, ...], name: str) -> tuple[float, ...]:
        if given == "auto":
            return grid
        if isinstance(given, str) or given <= 0:
            raise RecloomError(f"{name} is {given!r}", 'Give a positive number, or "auto".')
        return (float(given),)

    def _rescaled(self, gram: SetGram, scale: float) -> SetGram:
        if isinstance(gram.kernel, GaussianKernel):
            gram.kernel = GaussianKernel(scale * gram.kernel.scale, gram.kernel.sigma and scale * gram.kernel.sigma)
        return gram

    def _tune(
        self, values: Tensor, y: np.ndarray, scales: tuple[float, ...], penalties: tuple[float, ...]
    ) -> tuple[float, float, dict[tuple[float, float], float]]:
        """Return the best scale and C, and the mean score of each pair; ties go to the smoother one."""
        choices = list(itertools.product(scales, penalties))
        folds = self._folds(y) if len(choices) > 1 else []
        if not folds:  # nothing to choose, or too few sets to choose by
            return *_nearest_to_one(choices), {}
        scores = dict.fromkeys(choices, 0.0)
        for train, held in folds:
            rows = values[train]
            block, there, back = rows[:, train], values[held][:, train], rows[:, held]
            for scale in scales:
                gram = self._rescaled(self._gram(), scale).fit_values(block)
                matrix, tested = gram.matrix(), gram.rows_of_values(there, back)
                for penalty in penalties:
                    machine = self._machine(penalty, _TUNING_ITERATIONS).fit(matrix, y[train])
                    scores[scale, penalty] += self._score(machine, tested, y[held]) / len(folds)
        best = max(choices, key=lambda choice: (scores[choice], choice[0], -choice[1]))
        return *best, scores


class SetClassifier(ClassifierMixin, _SetMachine):
    """Classifies sets of points: an SVM on the kernel of sets.

    Args:
        divergence: Name of a divergence or similarity.
        kernel: Name of a kernel.
        psd: Name of a PSD repair.
        k: The neighbour of k-NN divergences.
        engine: Name of a k-NN engine.
        C: Penalty, or "auto".
        scale: Bandwidth of a Gaussian kernel in medians of the training sets' divergences, or "auto".
        cv: Folds of the search for "auto".
        random_state: Seed of the folds.
    """

    def decision_function(self, X: Any) -> np.ndarray:
        """Return R scores, or R x classes."""
        rows = self._rows(X)
        return self.machine_.decision_function(rows)

    def _targets(self, y: np.ndarray) -> np.ndarray:
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise RecloomError(f"all sets are of class {self.classes_[0]!r}: 1 class", "Give sets of two classes.")
        return codes

    def _outputs(self, predicted: np.ndarray) -> np.ndarray:
        return self.classes_[predicted]

    def _machine(self, penalty: float, iterations: int) -> SVC:
        return SVC(C=penalty, kernel="precomputed", max_iter=iterations)

    def _folds(self, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        folds = min(self.cv, int(np.bincount(y).min()))
        if folds < 2:
            return []
        return list(StratifiedKFold(folds, shuffle=True, random_state=self.random_state).split(y, y))

    def _score(self, machine: SVC, rows: np.ndarray, y: np.ndarray) -> float:
        return float((machine.predict(rows) == y).mean())


class SetRegressor(RegressorMixin, _SetMachine):
    """Predicts a number from a set of points: support vector regression on the kernel of sets.

    Args:
        divergence: Name of a divergence or similarity.
        kernel: Name of a kernel.
        psd: Name of a PSD repair.
        k: The neighbour of k-NN divergences.
        engine: Name of a k-NN engine.
        C: Penalty in standard deviations of the target, or "auto".
        scale: Bandwidth of a Gaussian kernel in medians of the training sets' divergences, or "auto".
        cv: Folds of the search for "auto".
        random_state: Seed of the folds.
        epsilon: Half width of the tube without loss, in standard deviations of the target.
    """

    def __init__(
        self,
        divergence: str = "renyi:0.8",
        kernel: str = "gaussian",
        psd: str = "clip",
        k: int = 3,
        engine: str = "auto",
        C: float | str = "auto",
        scale: float | str = "auto",
        cv: int = 3,
        random_state: int | None = 0,
        epsilon: float = 0.01,
    ) -> None:
        super().__init__(divergence, kernel, psd, k, engine, C, scale, cv, random_state)
        self.epsilon = epsilon

    def _targets(self, y: np.ndarray) -> np.ndarray:
        y = y.astype(np.float64)
        if not np.isfinite(y).all():
            raise RecloomError("a target is NaN or infinite", "Leave such sets out.")
        self.mean_, self.deviation_ = float(y.mean()), float(y.std()) or 1.0
        return (y - self.mean_) / self.deviation_

    def _outputs(self, predicted: np.ndarray) -> np.ndarray:
        return self.mean_ + self.deviation_ * predicted

    def _machine(self, penalty: float, iterations: int) -> SVR:
        return SVR(C=penalty, epsilon=self.epsilon, kernel="precomputed", max_iter=iterations)

    def _folds(self, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        folds = min(self.cv, len(y))
        return list(KFold(folds, shuffle=True, random_state=self.random_state).split(y)) if folds > 1 else []

    def _score(self, machine: SVR, rows: np.ndarray, y: np.ndarray) -> float:
        return -float(np.square(machine.predict(rows) - y).mean())


def _nearest_to_one(choices: list[tuple[float, float]]) -> tuple[float, float]:
    return min(choices, key=lambda choice: abs(np.log(choice[0])) + abs(np.log(choice[1])))
