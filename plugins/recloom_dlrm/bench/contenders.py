"""The models that `recloom bench dlrm` compares, each as a function that makes one training step on a batch."""

from __future__ import annotations

import functools
import itertools
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom.features import DenseFeature, FeatureSchema, SparseFeature
from recloom.optim import OptimizerConfig, build_optimizer
from recloom_dlrm.interactions import ConcatInteraction, DotInteraction
from recloom_dlrm.layers import MLP
from recloom_dlrm.model import DLRM

LR = 0.01
KAGGLE_ROWS = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10),
    *(5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)


@dataclass(frozen=True)
class Inputs:
    """One batch: B x dense, N key-major ids, F*B+1 offsets, B labels, number of features."""

    dense: Tensor
    ids: Tensor
    offsets: Tensor
    labels: Tensor
    features: int

    @functools.cached_property
    def by_feature(self) -> tuple[list[Tensor], list[Tensor]]:
        """A list of offsets and one of ids, an item a feature: what the reference's data loader hands over."""
        offsets = self.offsets[: len(self.labels)].clone()
        return [offsets] * self.features, list(self.ids.view(self.features, -1))


Step = Callable[[Inputs], None]


@dataclass(frozen=True)
class Shape:
    """A DLRM: rows of the tables, width, ids a bag; dense = (inputs, *bottom widths); over = top widths, 1 is added."""

    name: str
    rows: tuple[int, ...]
    width: int
    lookups: int
    dense: tuple[int, ...]
    over: tuple[int, ...]
    dot: bool

    @property
    def interaction_width(self) -> int:
        """Width of what the over arch takes."""
        vectors = len(self.rows) + 1
        return self.width + vectors * (vectors - 1) // 2 if self.dot else vectors * self.width

    def mlp_flops(self) -> int:
        """Floating-point operations of both MLPs, forward, one sample."""
        widths = [*self.dense, 0, self.interaction_width, *self.over, 1]
        return sum(2 * a * b for a, b in itertools.pairwise(widths))


SHAPES = {
    shape.name: shape
    for shape in (
        # Criteo Kaggle with its real numbers of rows, as in the reference's bench/dlrm_s_criteo_kaggle.sh
        Shape("kaggle", KAGGLE_ROWS, 16, 1, (13, 512, 256, 64, 16), (512, 256), dot=True),
        # RMC1 of arXiv 1906.03109, section 5.1
        Shape("rmc1-small", (100_000,) * 5, 32, 80, (128, 128, 64, 32), (128, 32), dot=False),
        # RM1 of DeepRecSys, with tables of 500,000 instead of 4 million rows: 0.5 GB
        Shape("rmc1", (500_000,) * 8, 32, 80, (128, 128, 64, 32), (256, 64), dot=False),
    )
}


def contenders(shape: Shape, dlrm_path: Path | None, only: list[str] | None) -> dict[str, Step]:
    """Build the contenders; those whose packages are missing are left out with a message."""
    steps: dict[str, Step] = {}
    for build in (recloom, reference, fbgemm):
        try:
            steps |= build(shape, dlrm_path)
        except (ImportError, FileNotFoundError) as error:
            print(f"{build.__name__} is left out: {error}", file=sys.stderr)
    return {name: step for name, step in steps.items() if not only or name in only}


def recloom(shape: Shape, unused: Path | None) -> dict[str, Step]:
    """Our DLRM with SGD on both dense parameters and rows."""
    sparse = [SparseFeature(f"C{i}", rows, max_length=shape.lookups) for i, rows in enumerate(shape.rows)]
    schema = FeatureSchema(tuple(DenseFeature(f"I{i}") for i in range(shape.dense[0])), tuple(sparse))
    model = DLRM(
        schema.to_dict(),
        embedding_dim=shape.width,
        dense_arch=shape.dense[1:-1],
        over_arch=shape.over,
        interaction=DotInteraction if shape.dot else ConcatInteraction,
    )
    optimizer, _ = build_optimizer(model, OptimizerConfig(dense_lr=LR, sparse_lr=LR))

    def step(batch: Inputs, bf16: bool = False) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(batch.dense, batch.ids, None if shape.lookups == 1 else batch.offsets)
        F.binary_cross_entropy_with_logits(logits.float(), batch.labels).backward()
        optimizer.step()

    return {"recloom": step, "recloom bf16": lambda batch: step(batch, bf16=True)}


def reference(shape: Shape, path: Path | None) -> dict[str, Step]:
    """facebookresearch/dlrm: DLRM_Net, BCELoss and SGD as dlrm_s_pytorch.py's `run` puts them together."""
    if path is None or not (path / "dlrm_s_pytorch.py").exists():
        raise FileNotFoundError("give --dlrm-path, a checkout of facebookresearch/dlrm")
    import numpy

    sys.path.insert(0, str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import dlrm_s_pytorch
    top = numpy.array([shape.interaction_width, *shape.over, 1])
    model = dlrm_s_pytorch.DLRM_Net(
        shape.width,
        numpy.ones(len(shape.rows), dtype=int),
        numpy.array(shape.dense),
        top,
        "dot" if shape.dot else "cat",
        sigmoid_top=top.size - 2,
    )
    for index, rows in enumerate(shape.rows):  # tables as its own, drawn by torch: NumPy needs twice the memory
        model.emb_l[index] = nn.EmbeddingBag(rows, shape.width, mode="sum", sparse=True)
        nn.init.uniform_(model.emb_l[index].weight, -(rows**-0.5), rows**-0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    def step(batch: Inputs, bf16: bool = False) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            probabilities = model(batch.dense, *batch.by_feature)
        loss = model.loss_fn(probabilities.float(), batch.labels.view(-1, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return {"dlrm": step, "dlrm bf16": lambda batch: step(batch, bf16=True)}


def fbgemm(shape: Shape, unused: Path | None) -> dict[str, Step]:
    """FBGEMM's table-batched embeddings: in TorchRec's DLRM ("torchrec"), and with nothing around them ("tbe")."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from torchrec import KeyedJaggedTensor
        from torchrec.models import dlrm
        from torchrec.modules.embedding_configs import EmbeddingBagConfig
        from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
    logging.disable(logging.NOTSET)
    names = [f"C{i}" for i in range(len(shape.rows))]
    bags = FusedEmbeddingBagCollection(
        [
            EmbeddingBagConfig(name=n, embedding_dim=shape.width, num_embeddings=rows, feature_names=[n])
            for n, rows in zip(names, shape.rows, strict=True)
        ],
        optimizer_type=torch.optim.SGD,
        optimizer_kwargs={"lr": LR},
        location=None,
    )
    tables = bags._emb_modules[0]._emb_module
    assert tables.optimizer == EmbOptimType.EXACT_SGD

    def train(forward: Callable[[Inputs], Tensor], dense: list[nn.Module]) -> Callable[..., None]:
        optimizer = torch.optim.SGD([p for module in dense for p in module.parameters()], lr=LR)

        def step(batch: Inputs, bf16: bool) -> None:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = forward(batch)
            F.binary_cross_entropy_with_logits(logits.float().squeeze(-1), batch.labels).backward()
            optimizer.step()

        return step

    def pooled(batch: Inputs) -> Tensor:
        return tables(batch.ids, batch.offsets).view(-1, len(names), shape.width)

    if shape.dot:
        dense_arch, inter_arch = dlrm.DenseArch(shape.dense[0], list(shape.dense[1:])), dlrm.InteractionArch(len(names))
        over_arch = dlrm.OverArch(shape.interaction_width, [*shape.over, 1])
        sparse_arch = dlrm.SparseArch(bags)

        def whole(batch: Inputs) -> Tensor:
            ids = KeyedJaggedTensor(names, batch.ids, offsets=batch.offsets)
            return over_arch(inter_arch(dense_arch(batch.dense), sparse_arch(ids)))

        bare = train(lambda b: over_arch(inter_arch(dense_arch(b.dense), pooled(b))), [dense_arch, over_arch])
        steps = {"torchrec": train(whole, [dense_arch, over_arch]), "tbe": bare}
    else:  # TorchRec has no concatenation: FBGEMM's tables between our MLPs
        bottom = MLP(shape.dense[0], shape.dense[1:], last_relu=True)
        top = MLP(shape.interaction_width, [*shape.over, 1], last_relu=False)

        def concatenated(batch: Inputs) -> Tensor:
            pieces = [bottom(batch.dense), tables(batch.ids, batch.offsets)]
            return top(torch.cat(pieces, 1))

        steps = {"tbe": train(concatenated, [bottom, top])}
    fp32: dict[str, Step] = {name: functools.partial(step, bf16=False) for name, step in steps.items()}
    return fp32 | {f"{name} bf16": functools.partial(step, bf16=True) for name, step in steps.items()}
