"""Zero-cost proxies: scores of untrained candidates, from one batch or none, adapted to models with embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from recloom.batch import Batch
from recloom.errors import unknown
from recloom.model import RankingModule
from recloom.optim import is_row_parameter
from recloom.search.evaluator import Evaluator, SearchContext
from recloom.search.space import Genotype
from recloom.search.training import candidate_seed


def synflow(module: RankingModule, batch: Batch) -> float:
    """Return log(1 + the sum of |w dR/dw|) over the dense weights, R being the summed logits (Tanaka et al. 2020).

    All weights are replaced by their magnitudes, all inputs and embeddings by ones, so that no data are needed, and
    normalisations are left out, for they would undo the magnitudes. Tables do not count: their size is no choice.
    Double precision, and the logarithm, for products of embeddings make the sum huge.
    """
    module.eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.abs())
            if _is_table(module, parameter):
                parameter.fill_(1.0)
            else:
                parameter.data = parameter.data.double()
    row = batch.rows(0, 1)
    one = replace(row, dense_features=torch.ones_like(row.dense_features, dtype=torch.float64))
    with _Linearised():
        module.logits(one).sum().backward()
    return math.log1p(sum(float((p.detach() * p.grad).abs().sum()) for p in _dense(module) if p.grad is not None))


def grad_norm(module: RankingModule, batch: Batch) -> float:
    """Return the norm of the loss's gradient by the dense weights, on one batch (Abdelfattah et al. 2021)."""
    module.train()
    module.loss(module.logits(batch), batch).backward()
    return math.sqrt(sum(float(p.grad.square().sum()) for p in _dense(module) if p.grad is not None))


def naswot(module: RankingModule, batch: Batch) -> float:
    """Return log |det (K + 1)|, where K_ij counts the units whose state samples i and j share (Mellor et al. 2021).

    The units are the outputs of every ReLU, in whatever form the model calls it: on or off. One is added to the
    published kernel's diagonal: ranking models are so narrow that many samples share all states, and the determinant
    would be zero. A model without a ReLU scores minus infinity.
    """
    codes = _Codes()
    with torch.no_grad(), codes:
        module.eval().logits(batch)
    if not codes.found:
        return -math.inf
    on = torch.cat(codes.found, dim=1).double()  # B x units, 0 or 1
    kernel = on @ on.t() + (1 - on) @ (1 - on).t()
    return float(torch.linalg.slogdet(kernel + torch.eye(len(kernel), device=kernel.device))[1])


PROXIES = {"synflow": synflow, "grad_norm": grad_norm, "naswot": naswot}


class ZeroCost(Evaluator):
    """Scores candidates without training them.

    Metrics: minus the score of each proxy, under its name, so that minimising finds the highest. What they are worth
    on a space and data of your own is seen from `correlate`. The published forms, adapted to tables of embeddings:
    `synflow` (Tanaka et al. 2020, arXiv 2006.05467), `grad_norm` (Abdelfattah et al. 2021, arXiv 2101.08134), `naswot`
    (Mellor et al. 2021, arXiv 2006.04647).

    Args:
        proxies: Which of them to compute.
        batch_size: Training rows that they see.
        repeats: Initial weights over which scores are averaged.
    """

    def __init__(
        self, proxies: Sequence[str] = ("synflow", "grad_norm", "naswot"), batch_size: int = 128, repeats: int = 1
    ) -> None:
        for name in proxies:
            if name not in PROXIES:
                raise unknown("proxy", name, PROXIES)
        self.proxies, self.batch_size, self.repeats = tuple(proxies), batch_size, repeats
        self.measures = (*self.proxies, "seconds")

    def setup(self, context: SearchContext) -> None:
        """Read the batch."""
        super().setup(context)
        block = context.data.source("train").load(0, 0)
        self._batch = block.rows(0, min(self.batch_size, len(block)))

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Return minus the scores."""
        return [self._scores(self.context.space.canonical(genotype)) for genotype in genotypes]

    def _scores(self, genotype: Genotype) -> dict[str, float]:
        found = dict.fromkeys(self.proxies, 0.0)
        for repeat in range(self.repeats):
            for name in self.proxies:
                with torch.random.fork_rng():
                    pl.seed_everything(candidate_seed(self.context.seed, genotype, repeat), verbose=False)
                    module = self.context.space.build(genotype, self.context.schema)
                    score = PROXIES[name](module, self._batch)
                found[name] -= score / self.repeats
        if lost := [name for name, value in found.items() if not math.isfinite(value)]:
            self.reasons[genotype] = f"no finite score: {', '.join(lost)}"
        return {name: value if math.isfinite(value) else math.nan for name, value in found.items()}


def _is_table(module: nn.Module, parameter: nn.Parameter) -> bool:
    return is_row_parameter(parameter) or any(
        parameter is m.weight for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)
    )


def _dense(module: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in module.parameters() if not _is_table(module, parameter))


class _Linearised(TorchFunctionMode):
    """Computes in double precision whatever tables give, and makes normalisations pass their input on."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (F.layer_norm, F.batch_norm, F.rms_norm):
            return args[0] if args else kwargs["input"]
        if torch.is_grad_enabled():
            args, kwargs = tree_map(_widened, (args, kwargs))
        return function(*args, **kwargs)


def _widened(value: Any) -> Any:
    computed = isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
    return value.double() if computed and value.dtype == torch.float32 else value


class _Codes(TorchFunctionMode):
    """Collects which outputs of ReLUs are positive: B x units each."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, Tensor.clamp_min):
            self.found.append((result > 0).flatten(1))
        return result
