"""Distribution kernels (Poczos et al. 2012, arXiv 1202.0302): learning on sets of points by k-NN divergences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recloom import hookimpl

if TYPE_CHECKING:
    from recloom.catalog import Catalog


@hookimpl
def register(catalog: Catalog) -> None:
    """Register divergences, kernels, PSD repairs, k-NN engines, Lightning parts, commands, experiment, benchmark."""
    here = "recloom_distkernels"
    kernels = catalog.kernels
    for name, path, summary in (
        ("KL", "neighbours:KL", "divergence: Kullback-Leibler"),
        ("Renyi", "neighbours:Renyi", "divergence: Rényi-alpha"),
        ("Tsallis", "neighbours:Tsallis", "divergence: Tsallis-alpha"),
        ("Bhattacharyya", "neighbours:Bhattacharyya", "similarity: Bhattacharyya coefficient"),
        ("Hellinger", "neighbours:Hellinger", "divergence: Hellinger distance"),
        ("L2", "quadratic:L2", "divergence: L2 distance of the densities"),
        ("Linear", "quadratic:Linear", "similarity: inner product of the densities"),
        ("JensenShannon", "jensen_shannon:JensenShannon", "divergence: Jensen-Shannon"),
        ("MMD", "mmd:MMD", "divergence: maximum mean discrepancy"),
        ("MeanMap", "mmd:MeanMap", "similarity: inner product of RBF mean embeddings"),
        ("SlicedWasserstein", "sliced:SlicedWasserstein", "divergence: sliced 2-Wasserstein distance"),
        ("LinearKernel", "kernels:LinearKernel", "kernel: the similarity itself"),
        ("PolynomialKernel", "kernels:PolynomialKernel", "kernel: (similarity + c)^s"),
        ("GaussianKernel", "kernels:GaussianKernel", "kernel: exp(-D^2 / 2 sigma^2), median rule"),
        ("ClipPSD", "psd:ClipPSD", "PSD repair: negative eigenvalues become 0"),
        ("FlipPSD", "psd:FlipPSD", "PSD repair: negative eigenvalues change sign"),
        ("ShiftPSD", "psd:ShiftPSD", "PSD repair: the least eigenvalue becomes 0"),
        ("NoPSD", "psd:NoPSD", "PSD repair: none, for comparison"),
        ("SquarePSD", "psd:SquarePSD", "PSD repair: eigenvalues are squared"),
        ("NativeKnn", "knn_native:NativeKnn", "k-NN engine: compiled, CPU"),
        ("TorchKnn", "knn_torch:TorchKnn", "k-NN engine: torch, CPU and GPU"),
        ("FaissKnn", "knn_faiss:FaissKnn", "k-NN engine: faiss, float32"),
        ("TreeKnn", "knn_tree:TreeKnn", "k-NN engine: k-d tree, for large sets of few dimensions"),
    ):
        kernels.add(name, f"{here}.{path}", summary=summary)
    catalog.sequence_encoders.add(
        "FourierMeanEmbedding", f"{here}.group_feature:FourierMeanEmbedding", summary="a history as a distribution"
    )
    catalog.models.add("GroupModel", f"{here}.group_model:GroupModel", summary="encoder, then a head on sets")
    catalog.datamodules.add("SyntheticGroups", f"{here}.group_data:SyntheticGroups", summary="sets of drawn points")
    catalog.datamodules.add("ParquetGroups", f"{here}.group_data:ParquetGroups", summary="sets from Parquet files")
    catalog.commands.add("gram", f"{here}.commands:gram", summary="write the kernel matrix of groups of points")
    catalog.commands.add("embed", f"{here}.commands:embed", summary="write a vector for each group of points")
    catalog.commands.add("detect", f"{here}.commands:detect", summary="rank groups of points by how unusual they are")
    catalog.experiments.add(
        "distkernels", f"{here}.experiments:DistKernelsExperiment", summary="learning on sets of points"
    )
    catalog.benchmarks.add("distkernels", f"{here}.bench.search:main", summary="k-NN divergences of 300 sets")
