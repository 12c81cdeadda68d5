"""What distribution kernels are compared with: moments, histograms and random-feature mean embeddings of sets."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

from recloom_distkernels.mean_embedding import MeanEmbedding
from recloom_distkernels.samplesets import SampleSets

PENALTIES: list[float] = [1.0, 10.0, 100.0]
LOGISTIC_PENALTIES: list[float] = [1e-3, 1e-2, 1e-1, 1.0]
SVR_WIDTHS: list[float | str] = [0.01, 0.1, "scale"]
SVC_WIDTHS: list[float | str] = [0.003, 0.01, 0.03, "scale"]
_FOLDS = 5


def moments(sets: SampleSets) -> np.ndarray:
    """Return S x (d + d(d+1)/2) means and covariances."""
    rows, columns = np.tril_indices(sets.dim)
    found = []
    for points in sets:
        values = points.double().numpy()
        covariance = np.cov(values.T).reshape(sets.dim, sets.dim)
        found.append(np.concatenate([values.mean(axis=0), covariance[rows, columns]]))
    return np.stack(found)


def histograms(sets: SampleSets, bins: int = 8) -> np.ndarray:
    """Return S x bins^d shares of the points in boxes between the extremes of all sets (d of 1 or 2)."""
    values = sets.values.double().numpy()
    bounds = list(zip(values.min(axis=0), values.max(axis=0), strict=True))
    counts = [np.histogramdd(points.double().numpy(), bins, bounds)[0].ravel() / len(points) for points in sets]
    return np.stack(counts)


def embeddings(sets: SampleSets, scale: float = 0.25) -> np.ndarray:
    """Return S x 500 random Fourier mean embeddings."""
    return MeanEmbedding(500, scale=scale).fit_transform(sets)


def regress(features: np.ndarray, y: np.ndarray, kernel: bool, seed: int) -> np.ndarray:
    """Return cross-validated predictions of a number, by an RBF SVR or by ridge regression, tuned."""
    from sklearn.model_selection import KFold

    if kernel:
        grid = {"svr__C": PENALTIES, "svr__gamma": SVR_WIDTHS}
        machine = GridSearchCV(make_pipeline(StandardScaler(), SVR(epsilon=0.01)), grid, cv=3)
    else:
        machine = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-6, 4, 21)))
    scale = y.std()
    return scale * cross_val_predict(machine, features, y / scale, cv=KFold(_FOLDS, shuffle=True, random_state=seed))


def classify(features: np.ndarray, y: np.ndarray, kernel: bool, seed: int) -> np.ndarray:
    """Return cross-validated predictions of a class, by an RBF SVM or by logistic regression, tuned."""
    from sklearn.model_selection import StratifiedKFold

    if kernel:
        grid = {"svc__C": PENALTIES, "svc__gamma": SVC_WIDTHS}
        machine = GridSearchCV(make_pipeline(StandardScaler(with_std=False), SVC()), grid, cv=3)
        features = features / features.std()
    else:
        machine = make_pipeline(
            StandardScaler(), GridSearchCV(LogisticRegression(max_iter=300), {"C": LOGISTIC_PENALTIES}, cv=3)
        )
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    return cross_val_predict(machine, features, y, cv=folds)
