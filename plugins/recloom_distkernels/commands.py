"""`recloom gram`, `recloom embed` and `recloom detect`: kernels of sets of points from files to files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recloom.errors import RecloomError
from recloom_distkernels import options
from recloom_distkernels.gram import SetGram
from recloom_distkernels.kernels import median_positive
from recloom_distkernels.mean_embedding import MeanEmbedding
from recloom_distkernels.options import say
from recloom_distkernels.samplesets import SampleSets

_NU = 0.5  # of the one-class machine: the authors' py-sdm tunes none


def gram(argv: list[str]) -> int:
    """Write the kernel matrix of sets of points, repaired to be positive semidefinite, for each divergence and k."""
    parser = options.parser(
        "gram", "Write the kernel matrix of sets of points.", ".npz: names, and gram/DIV/kK, divergence/DIV/kK"
    )
    options.add_kernel_options(parser, many=True)
    arguments = parser.parse_args(argv)
    _suffix(arguments.output, ".npz")
    wanted, ks = arguments.div.split(","), options.numbers(arguments.k)
    machines = {(name, k): SetGram(name, arguments.kernel, arguments.psd, k) for name in wanted for k in ks}
    sets = options.load(arguments)
    found = options.divergences(sets, arguments, wanted, ks)
    arrays: dict[str, Any] = {"names": np.array([str(name) for name in sets.names])}
    for (name, k), values in found.items():
        made = machines[name, k].fit_values(values)
        arrays[f"gram/{name}/k{k}"] = made.matrix()
        arrays[f"divergence/{name}/k{k}"] = values.numpy()
        print(
            f"{name} k={k}: median {median_positive(values):.4g}, "
            f"{made.psd.negative_share:.1%} of the eigenvalues negative before the repair"
        )
    _write(arguments.output, lambda file: np.savez(file, **arrays))
    print(f"{arguments.output}: {len(arrays) // 2} kernel matrices, {len(sets):,} x {len(sets):,}")
    return 0


def embed(argv: list[str]) -> int:
    """Write a vector for each set of points."""
    parser = options.parser("embed", "Write a vector for each set of points.", ".parquet: name, e0, e1, ...; or .npz")
    parser.add_argument(
        "--method",
        choices=("fourier", "kpca", "mds", "sliced"),
        default="fourier",
        help="fourier: random Fourier mean embedding, linear in the points (default); kpca, mds: of the divergences; "
        "sliced: quantiles of projections, whose distances are sliced Wasserstein's",
    )
    parser.add_argument(
        "--width", type=int, default=0, metavar="W", help="width (default: 500 fourier, 2 kpca and mds)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of what is drawn at random")
    options.add_kernel_options(parser, many=False)
    arguments = parser.parse_args(argv)
    _suffix(arguments.output, ".parquet", ".npz")
    vectors = _vectors(options.load(arguments), arguments)
    names, values = vectors
    if arguments.output.suffix == ".npz":
        _write(arguments.output, lambda file: np.savez(file, names=np.array([str(n) for n in names]), vectors=values))
    else:
        columns = {f"e{i}": values[:, i] for i in range(values.shape[1])}
        _write(arguments.output, lambda file: pq.write_table(pa.table({"name": _column(names), **columns}), file))
    print(f"{arguments.output}: {len(values):,} vectors of width {values.shape[1]}")
    return 0


def detect(argv: list[str]) -> int:
    """Rank sets of points by how unusual they are."""
    parser = options.parser(
        "detect", "Rank sets of points by how unusual they are.", ".parquet: name, score, outlier; most unusual first"
    )
    parser.add_argument("--share", type=float, default=0.1, help="of the sets that are called outliers (default: 0.1)")
    parser.add_argument(
        "--method",
        choices=("exact", "fourier"),
        default="exact",
        help="exact: one-class SVM on the kernel of --div (default); fourier: on mean embeddings, for many sets",
    )
    parser.add_argument("--show", type=int, default=10, metavar="N", help="print the N most unusual (default: 10)")
    options.add_kernel_options(parser, many=False)
    arguments = parser.parse_args(argv)
    _suffix(arguments.output, ".parquet")
    if not 0 < arguments.share < 1:
        raise RecloomError(f"--share {arguments.share} is no share", "Give a number between 0 and 1.")
    sets = options.load(arguments)
    scores = _scores(sets, arguments)
    scores -= np.quantile(scores, arguments.share)
    order = np.argsort(scores, kind="stable")
    names = [sets.names[i] for i in order]
    table = pa.table({"name": _column(names), "score": scores[order], "outlier": scores[order] < 0})
    _write(arguments.output, lambda file: pq.write_table(table, file))
    for name, score in list(zip(names, scores[order], strict=True))[: arguments.show]:
        print(f"{score:+.4f}  {name}")
    print(f"{arguments.output}: {int((scores < 0).sum()):,} of {len(sets):,} sets are outliers")
    return 0


def _vectors(sets: SampleSets, arguments: Any) -> tuple[list[Any], np.ndarray]:
    """Return the sets' names and vectors."""
    if arguments.method == "fourier":
        return sets.names, MeanEmbedding(arguments.width or 500, random_state=arguments.seed).fit_transform(sets)
    if arguments.method == "sliced":
        from recloom_distkernels.sliced import SlicedWasserstein

        sliced = SlicedWasserstein(seed=arguments.seed)
        with options.progress_bar("projections") as progress:
            return sets.names, sliced.embed(sets, progress).numpy()
    made, width = _gram(sets, arguments), arguments.width or 2
    if arguments.method == "mds":
        from sklearn.manifold import MDS

        values = ((made.values_ + made.values_.t()) / 2).numpy()
        scaling = MDS(width, metric="precomputed", n_init=4, init="random", random_state=arguments.seed)
        return sets.names, scaling.fit_transform(values)
    from sklearn.decomposition import KernelPCA

    return sets.names, KernelPCA(width, kernel="precomputed", eigen_solver="dense").fit_transform(made.matrix())


def _scores(sets: SampleSets, arguments: Any) -> np.ndarray:
    """Return S scores, lower for more unusual sets."""
    from sklearn.svm import OneClassSVM

    if arguments.method == "fourier":
        say("random Fourier mean embeddings, then a one-class SVM on their inner products")
        vectors = MeanEmbedding().fit_transform(sets)
        machine = OneClassSVM(kernel="rbf", gamma="scale", nu=_NU).fit(vectors)
        return machine.decision_function(vectors)
    matrix = _gram(sets, arguments).matrix()
    return OneClassSVM(kernel="precomputed", nu=_NU).fit(matrix).decision_function(matrix)


def _gram(sets: SampleSets, arguments: Any) -> SetGram:
    (k,) = options.numbers(arguments.k)[:1]
    made = SetGram(arguments.div, arguments.kernel, arguments.psd, k)
    return made.fit_values(options.divergences(sets, arguments, [arguments.div], [k])[arguments.div, k])


def _column(names: list[Any]) -> pa.Array:
    try:
        return pa.array(names)
    except (pa.ArrowException, TypeError):
        return pa.array([str(name) for name in names])


def _suffix(path: Path, *known: str) -> None:
    if path.suffix not in known:
        raise RecloomError(f"--output {path}: unknown kind of file", f"Name it *{' or *'.join(known)}.")


def _write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file aside, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    with aside.open("wb") as file:
        write(file)
    aside.replace(path)
