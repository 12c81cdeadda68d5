"""Labelled sets of points of known distributions: the tasks of the experiment, and of SyntheticGroups."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recloom_distkernels.samplesets import SampleSets

LabelledSets = tuple[SampleSets, np.ndarray]
Task = Callable[[int, int, int], LabelledSets]


def skewness(count: int, points: int, seed: int) -> LabelledSets:
    """Return sets from Beta(a, 3), a ~ U[3, 20], and the distributions' skewness."""
    generator = np.random.default_rng([seed, 1])
    a, b = generator.uniform(3, 20, count), 3.0
    sets = [generator.beta(value, b, (points, 1)) for value in a]
    return SampleSets.from_list(sets), 2 * (b - a) * np.sqrt(a + b + 1) / ((a + b + 2) * np.sqrt(a * b))


def entropy(count: int, points: int, seed: int) -> LabelledSets:
    """Return sets from one 2-d Gaussian turned by angles in [0, pi), and the entropy of the first marginal."""
    sets, angles = rotated(count, points, seed)
    variance = np.cos(angles) ** 2 * 4.0 + np.sin(angles) ** 2 * 0.25
    return sets, 0.5 * np.log(2 * np.pi * np.e * variance)


def rotated(count: int, points: int, seed: int) -> LabelledSets:
    """Return sets from N(0, R diag(4, 1/4) R') and the angles of R, in [0, pi)."""
    generator = np.random.default_rng([seed, 2])
    angles = generator.uniform(0, np.pi, count)
    turns = np.stack([np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)], axis=1).reshape(-1, 2, 2)
    drawn = generator.standard_normal((count, points, 2)) * [2.0, 0.5]
    return SampleSets.from_list(list(drawn @ turns.transpose(0, 2, 1))), angles


def digits(count: int, points: int, seed: int) -> LabelledSets:
    """Return scikit-learn's 8 x 8 digits, each as noisy 2-d points drawn from its ink, and the digits.

    Noise is Gaussian of half a pixel's width; a tenth of the points is uniform over the image.
    """
    from sklearn.datasets import load_digits

    generator = np.random.default_rng([seed, 3])
    images, labels = load_digits(return_X_y=True)
    chosen = generator.permutation(len(images))[:count]
    sets = []
    for image in images[chosen]:
        pixels = generator.choice(64, points, p=image / image.sum())
        places = np.stack([pixels % 8, pixels // 8], axis=1) + generator.uniform(0, 1, (points, 2))
        places += generator.normal(0, 0.5, (points, 2))
        stray = generator.random(points) < 0.1
        places[stray] = generator.uniform(0, 8, (int(stray.sum()), 2))
        sets.append(places)
    return SampleSets.from_list(sets), labels[chosen].astype(np.float64)


def ring(count: int, points: int, seed: int) -> LabelledSets:
    """Return rings (label 0) and four blobs on a circle (label 1), with the same mean and about the same covariance."""
    generator = np.random.default_rng([seed, 4])
    labels = np.arange(count) % 2
    sets = []
    for label in labels:
        angles = generator.uniform(0, 2 * np.pi, points)
        if label:
            angles = generator.integers(0, 4, points) * np.pi / 2 + generator.normal(0, 0.25, points)
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        sets.append(circle + generator.normal(0, 0.15, (points, 2)))
    return SampleSets.from_list(sets), labels.astype(np.float64)


TASKS: dict[str, Task] = {"skewness": skewness, "entropy": entropy, "digits": digits, "ring": ring}
