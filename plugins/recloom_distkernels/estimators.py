"""scikit-learn estimators whose samples are sets of points: kernel rows, embeddings, and unusual sets."""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin, TransformerMixin
from sklearn.decomposition import KernelPCA
from sklearn.manifold import MDS
from sklearn.svm import OneClassSVM
from sklearn.utils import Tags
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from recloom.errors import RecloomError
from recloom_distkernels.gram import SetGram
from recloom_distkernels.inputs import as_sets
from recloom_distkernels.psd import PSDRepair
from recloom_distkernels.registry import parse


class SetEstimator(BaseEstimator):
    """What estimators on sets of points have in common; X is a list of n_i x d arrays, or SampleSets.

    Args:
        divergence: Name of a divergence or similarity, with its options: "renyi:0.8", "kl", "mmd", "linear".
        kernel: Name of a kernel: "gaussian", "polynomial:3:1", "linear".
        psd: Name of a PSD repair: "clip", "flip", "shift", "square", "no".
        k: The neighbour of k-NN divergences.
        engine: Name of a k-NN engine: "native", "torch", "faiss", "tree", or "auto".
    """

    def __init__(
        self,
        divergence: str = "renyi:0.8",
        kernel: str = "gaussian",
        psd: str = "clip",
        k: int = 3,
        engine: str = "auto",
    ) -> None:
        self.divergence = divergence
        self.kernel = kernel
        self.psd = psd
        self.k = k
        self.engine = engine

    def _gram(self) -> SetGram:
        return SetGram(self.divergence, self.kernel, self.psd, self.k, self.engine)

    def _rows(self, X: Any) -> np.ndarray:
        """Return R x S kernel values of the sets X with the training sets."""
        check_is_fitted(self)
        return self.gram_.rows(as_sets(self, X, reset=False).to(self.gram_.sets_.values.dtype))


class SetKernel(TransformerMixin, SetEstimator):
    """Maps sets to their kernel values with the training sets: a column a training set.

    `fit_transform` gives the repaired training matrix; `transform` gives rows repaired by the same transform, so that
    they are in keeping with it. For kernel="precomputed" of any scikit-learn machine.
    """

    def fit(self, X: Any, y: Any = None) -> Self:
        """Compute the training sets' kernel matrix."""
        self.gram_ = self._gram().fit(as_sets(self, X, reset=True))
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return R x S kernel values."""
        return self._rows(X)

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Return the S x S repaired kernel matrix of the training sets."""
        return self.fit(X).gram_.matrix()

    @property
    def _n_features_out(self) -> int:
        return len(self.gram_.sets_)


class GramRepair(TransformerMixin, BaseEstimator):
    """Repairs a precomputed Gram matrix: square when it is fitted, rows against the training samples afterwards.

    Args:
        psd: Name of a PSD repair: "clip", "flip", "shift", "square", "no".
    """

    def __init__(self, psd: str = "clip") -> None:
        self.psd = psd

    def fit(self, X: Any, y: Any = None) -> Self:
        """Decompose the S x S training matrix."""
        gram = validate_data(self, X, dtype=np.float64)
        if gram.shape[0] != gram.shape[1]:
            raise RecloomError(
                f"a Gram matrix is square, and this is {gram.shape[0]} x {gram.shape[1]}", "Fit it on S x S values."
            )
        self.repair_ = parse(self.psd, PSDRepair).fit(gram)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return R x S repaired rows."""
        check_is_fitted(self)
        return self.repair_.transform(validate_data(self, X, dtype=np.float64, reset=False))

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Return the S x S repaired matrix."""
        return self.fit(X).repair_.matrix()

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_

    def __sklearn_tags__(self) -> Tags:
        """Say that X is pairwise, so that cross-validation slices rows and columns."""
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = True
        return tags


class SetOutlierDetector(OutlierMixin, SetEstimator):
    """Finds sets that are unlike the training sets: a one-class SVM on the kernel of sets.

    Args:
        divergence: Name of a divergence or similarity.
        kernel: Name of a kernel.
        psd: Name of a PSD repair.
        k: The neighbour of k-NN divergences.
        engine: Name of a k-NN engine.
        nu: Upper bound on the share of training sets taken for outliers.
    """

    def __init__(
        self,
        divergence: str = "renyi:0.8",
        kernel: str = "gaussian",
        psd: str = "clip",
        k: int = 3,
        engine: str = "auto",
        nu: float = 0.5,
    ) -> None:
        super().__init__(divergence, kernel, psd, k, engine)
        self.nu = nu

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit the one-class SVM on the training sets."""
        self.gram_ = self._gram().fit(as_sets(self, X, reset=True))
        self.machine_ = OneClassSVM(kernel="precomputed", nu=self.nu).fit(self.gram_.matrix())
        self.offset_ = self.machine_.offset_
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Return R scores, lower for more unusual sets."""
        rows = self._rows(X)
        return self.machine_.score_samples(rows)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return R scores, negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Return 1 for sets like the training sets, -1 for outliers."""
        return np.where(self.decision_function(X) >= 0, 1, -1)


class SetEmbedding(TransformerMixin, SetEstimator):
    """A few coordinates for each set: kernel PCA on the kernel of sets, or multidimensional scaling of the divergences.

    Args:
        divergence: Name of a divergence or similarity.
        kernel: Name of a kernel.
        psd: Name of a PSD repair.
        k: The neighbour of k-NN divergences.
        engine: Name of a k-NN engine.
        components: Number of coordinates.
        method: "kpca" or "mds"; only kernel PCA places further sets.
        random_state: Seed of "mds".
    """

    def __init__(
        self,
        divergence: str = "renyi:0.8",
        kernel: str = "gaussian",
        psd: str = "clip",
        k: int = 3,
        engine: str = "auto",
        components: int = 2,
        method: Literal["kpca", "mds"] = "kpca",
        random_state: int | None = 0,
    ) -> None:
        super().__init__(divergence, kernel, psd, k, engine)
        self.components = components
        self.method = method
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Place the training sets: `embedding_`, S x components."""
        if self.method not in ("kpca", "mds"):
            raise RecloomError(f"there is no method {self.method!r}", "Use kpca or mds.")
        self.gram_ = self._gram().fit(as_sets(self, X, reset=True))
        if self.method == "mds":
            values = check_array(((self.gram_.values_ + self.gram_.values_.t()) / 2).numpy())
            scaling = MDS(
                self.components,
                metric="precomputed",
                n_init=4,
                init="random",
                random_state=self.random_state,
            )
            self.embedding_ = scaling.fit_transform(values)
            return self
        self.machine_ = KernelPCA(self.components, kernel="precomputed", eigen_solver="dense")
        self.embedding_ = self.machine_.fit_transform(self.gram_.matrix())
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return R x components coordinates of further sets."""
        check_is_fitted(self)
        if self.method == "mds":
            raise RecloomError("multidimensional scaling places no further sets", "Use kpca, or fit_transform.")
        return self.machine_.transform(self._rows(X))

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Return the S x components coordinates of the training sets."""
        return self.fit(X).embedding_

    @property
    def _n_features_out(self) -> int:
        return self.embedding_.shape[1]
