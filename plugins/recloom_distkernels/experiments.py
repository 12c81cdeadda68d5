"""`recloom reproduce distkernels`: the paper's tasks on generated sets, baselines beside them, and what they cost."""

from __future__ import annotations

import functools
import statistics
import time
from typing import Any

import numpy as np

from recloom.document import Report
from recloom.experiment import Budget, Claim, Experiment, Lab

SIZES: dict[Budget, dict[str, tuple[int, int]]] = {
    "small": {"regression": (200, 500), "digits": (400, 500), "ring": (200, 200), "many": (10_000, 100)},
    "full": {"regression": (500, 500), "digits": (1797, 500), "ring": (800, 200), "many": (10_000, 500)},
}
DIVERGENCES = {"regression": ("kl", "renyi:0.9", "hellinger"), "digits": ("renyi:0.8", "kl", "hellinger")}
SCOPE: dict[Budget, str] = {
    "small": "Sets drawn from distributions whose answer is known, 200 to 400 of them, and scikit-learn's digits as "
    "noisy points. It shows that the estimators learn what depends on the whole distribution; it says nothing of the "
    "paper's images, which are not here, and whose published figures we could not read.",
    "full": "The same tasks with more sets: an hour on two cores.",
}


class DistKernelsExperiment(Experiment):
    """Support vector machines on k-NN divergences of sets, beside moments, histograms and mean embeddings."""

    paper = (
        "Poczos, Xiong, Sutherland and Schneider 2012, Support Distribution Machines / Kernels on Sample Sets via "
        "Nonparametric Divergence Estimates, arXiv 1202.0302"
    )
    summary = (
        "Regression of a distribution's skewness and entropy, classification of noisy digits, detection of unusual "
        "sets: 5-fold cross-validation, bandwidth and penalty by 3 inner folds on the grids of the authors' py-sdm, "
        "divergences computed once, k = 3 (5 for the unusual)."
    )
    scope = SCOPE

    def run(self, lab: Lab, report: Report) -> list[Claim]:
        """Measure everything; return the claims."""
        claims = [*_regression(lab, report), *_circle(lab, report), *_digits(lab, report), *_ring(lab, report)]
        return [*claims, *_many(lab, report)]


def _regression(lab: Lab, report: Report) -> list[Claim]:
    claims, rows = [], []
    titles = {"skewness": "skewness of Beta(a, 3)", "entropy": "entropy of a marginal of a rotated Gaussian"}
    for task, title in titles.items():
        found: dict[str, float] = {}
        for name in (*DIVERGENCES["regression"], "mean embedding", "histogram", "moments"):
            key = f"{task}-{name}".replace(":", "").replace(" ", "-")
            runs = lab.each_seed(key, functools.partial(regression_r2, lab.budget, task, name))
            found[name] = statistics.fmean(runs)
        rows += [(title, name, round(value, 4)) for name, value in found.items()]
        best = max(found[name] for name in DIVERGENCES["regression"])
        claims.append(Claim(task, f"{title}, learned from sets of points (R², best divergence)", best, ">= 0.985"))
    report.section("Regression")
    report.table(("target", "by", "R²"), rows, "Cross-validated; the lines below the divergences are baselines.")
    return claims


def regression_r2(budget: Budget, task: str, name: str, seed: int) -> float:
    """Return the cross-validated R² of a divergence, or of a baseline, on a task."""
    from sklearn.metrics import r2_score

    from recloom_distkernels import baselines
    from recloom_distkernels.machines import SetRegressor
    from recloom_distkernels.selection import cross_val_predict_sets

    sets, y = _draw(task, budget, "regression", seed)
    if name == "mean embedding":
        predicted = baselines.regress(baselines.embeddings(sets, 1.0), y, False, seed)
    elif name == "histogram":
        predicted = baselines.regress(baselines.histograms(sets), y, True, seed)
    elif name == "moments":
        predicted = baselines.regress(baselines.moments(sets), y, True, seed)
    else:
        predicted = cross_val_predict_sets(SetRegressor(name), sets, y, seed=seed)
    return float(r2_score(y, predicted))


def _circle(lab: Lab, report: Report) -> list[Claim]:
    found = {
        method: statistics.fmean(
            lab.each_seed(f"circle-{method}", functools.partial(circle_resultant, lab.budget, method))
        )
        for method in METHODS
    }
    report.section("Embedding")
    text = "Rotated Gaussians lie on a circle, once round for half a turn: mean resultant length of the angles' errors."
    report.table(("by", "resultant"), [(name, round(value, 4)) for name, value in found.items()], text)
    text = "kernel PCA and MDS lay the sets on the circle of their angles (resultant, the worse)"
    return [Claim("circle", text, min(found.values()), ">= 0.99")]


METHODS = ("kpca", "mds")


def circle_resultant(budget: Budget, method: Any, seed: int) -> float:
    """Return |mean exp(i (angle in the embedding - 2 theta))|, of the better of the two directions of turning."""
    from recloom_distkernels.estimators import SetEmbedding

    sets, angles = _draw("rotated", budget, "regression", seed)
    places = SetEmbedding("hellinger", method=method, random_state=seed).fit_transform(sets)
    places = places - places.mean(axis=0)
    turned = np.arctan2(places[:, 1], places[:, 0])
    return max(float(np.abs(np.exp(1j * (sign * turned - 2 * angles)).mean())) for sign in (1, -1))


def _digits(lab: Lab, report: Report) -> list[Claim]:
    names = [*DIVERGENCES["digits"], "renyi:0.8 without repair", "mean embedding", "histogram", "moments"]
    found = {}
    for name in names:
        key = f"digits-{name}".replace(":", "").replace(" ", "-")
        found[name] = statistics.fmean(lab.each_seed(key, functools.partial(digits_accuracy, lab.budget, name)))
    report.section("Noisy digits")
    report.table(
        ("by", "accuracy"),
        [(name, round(value, 4)) for name, value in found.items()],
        "Ten classes; those below the divergences are baselines.",
    )
    best = max(found[name] for name in DIVERGENCES["digits"])
    gain = found["renyi:0.8"] - found["renyi:0.8 without repair"]
    return [
        Claim("digits", "digits are told apart by sets of noisy points (accuracy, best divergence)", best, ">= 0.82"),
        Claim("clip", "clipping negative eigenvalues does not lose accuracy (clip - none)", gain, ">= 0"),
    ]


def digits_accuracy(budget: Budget, name: str, seed: int) -> float:
    """Return the cross-validated accuracy of a divergence, or of a baseline, on noisy digits."""
    import torch

    from recloom_distkernels import baselines
    from recloom_distkernels.machines import SetClassifier
    from recloom_distkernels.selection import cross_val_predict_sets

    sets, y = _draw("digits", budget, "digits", seed)
    if name == "mean embedding":
        predicted = baselines.classify(baselines.embeddings(sets), y, False, seed)
    elif name == "histogram":
        predicted = baselines.classify(baselines.histograms(sets), y, True, seed)
    elif name == "moments":
        predicted = baselines.classify(baselines.moments(sets), y, True, seed)
    else:
        divergence, _, rest = name.partition(" ")
        machine = SetClassifier(divergence, psd="no" if rest else "clip")
        predicted = cross_val_predict_sets(machine, sets.to(torch.float32), y, seed=seed)
    return float((predicted == y).mean())


def _ring(lab: Lab, report: Report) -> list[Claim]:
    names = ("kl", "renyi:0.8", "hellinger", "l2", "moments")
    found = {}
    for name in names:
        key = f"ring-{name}".replace(":", "")
        found[name] = statistics.fmean(lab.each_seed(key, functools.partial(ring_auc, lab.budget, name)))
    report.section("Unusual sets")
    text = "Rings are known, four blobs on a circle are to be found: AUC, k = 5, sigma the median, nu one half."
    report.table(("by", "AUC"), [(name, round(value, 4)) for name, value in found.items()], text)
    best = max(found[name] for name in names[:-1])
    return [Claim("ring", "sets with the same moments but another shape are found (AUC)", best, ">= 0.98")]


def ring_auc(budget: Budget, name: str, seed: int) -> float:
    """Return the AUC of finding blobs among further rings, having seen rings only."""
    from sklearn.metrics import roc_auc_score
    from sklearn.svm import OneClassSVM

    from recloom_distkernels import baselines
    from recloom_distkernels.estimators import SetOutlierDetector

    sets, y = _draw("ring", budget, "ring", seed)
    count = len(sets) // 2
    rings = np.flatnonzero(y == 0)
    train, test = rings[: count // 2], np.concatenate([rings[count // 2 :], np.flatnonzero(y == 1)])
    if name == "moments":
        features = baselines.moments(sets)
        features = (features - features[train].mean(axis=0)) / features[train].std(axis=0)
        scores = OneClassSVM(gamma="scale", nu=0.5).fit(features[train]).decision_function(features[test])
    else:
        scores = SetOutlierDetector(name, k=5).fit(sets.select(train)).decision_function(sets.select(test))
    return float(roc_auc_score(y[test], -scores))


def _many(lab: Lab, report: Report) -> list[Claim]:
    found = lab.once("many", lambda: many_sets(lab.budget))
    report.section("Many sets")
    report.facts(found)
    text = "mean embeddings of 10,000 sets, and a linear classifier on them"
    return [Claim("many", text, found["seconds of the mean embedding and a linear classifier"], "< 60", "s")]


def many_sets(budget: Budget) -> dict[str, float]:
    """Return what 10,000 sets cost, by mean embeddings measured and by the exact path estimated."""
    import torch
    from sklearn.linear_model import RidgeClassifier

    from recloom_distkernels.mean_embedding import MeanEmbedding
    from recloom_distkernels.pairwise import estimate_seconds

    sets, y = _draw("ring", budget, "many", 0)
    sets = sets.to(torch.float32)
    start = time.perf_counter()
    vectors = MeanEmbedding(500, scale=0.25).fit_transform(sets)
    half = len(y) // 2
    accuracy = RidgeClassifier().fit(vectors[:half], y[:half]).score(vectors[half:], y[half:])
    return {
        "seconds of the mean embedding and a linear classifier": time.perf_counter() - start,
        "its accuracy": float(accuracy),
        "points": sets.points,
        "seconds of exact KL, by the estimate that the commands print": estimate_seconds(sets),
    }


def _draw(task: str, budget: Budget, size: str, seed: int) -> Any:
    """Return the sets and labels of a task, in a size of the budget."""
    from recloom_distkernels import tasks

    count, points = SIZES[budget][size]
    drawn: tasks.Task = getattr(tasks, task)
    return drawn(count, points, seed)
