"""Supernets: one network that shares the weights of all models of a space."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from recloom.batch import Batch
from recloom.model import RankingModule
from recloom.optim import clip_dense_norm, scheduled
from recloom.search.slices import SlicedOptimizer, build_sliced_optimizer, can_slice
from recloom.search.space import Genotype, SearchSpace


class Supernet(RankingModule):
    """A RankingModule that computes one path at a time; each training step draws another.

    A subclass computes `forward` along `self.path`, and gives `features` and `head` for ranking: the head alone is
    fine-tuned for each candidate. Its operators take their weights by `recloom.search.slices.part`, so that a step
    costs what the path costs.

    Args:
        space: The space whose models it holds.
        schema: Feature schema of the data.
        seed: Seed of the paths.
        options: What `RankingModule` takes besides (`optimizer`).
    """

    draw_path: Callable[[int], Any] | None = None
    """Gives a step's path instead of `sample_path`: set by methods that learn which paths to train."""
    relaxed: bool = False
    """Whether its paths honour `gates`: what gradient-based search (`DNAS`) needs."""
    gates: Tensor | None = None
    """Factors of value 1, one a choice. Where they are given, each part of a path is multiplied by those of the choices
    that decide it, so that their gradients say whether the loss wants more or less of what was chosen."""

    def __init__(self, space: SearchSpace, schema: dict[str, Any], seed: int = 0, optimizer: Any = None) -> None:
        super().__init__(schema, optimizer)
        self.space = space
        self.seed = seed
        self.path: Any = space.sample(np.random.default_rng(seed))

    def sample_path(self, step: int) -> Any:
        """Return the path of optimizer step `step`, a function of the seed and the step: resuming repeats it.

        A path is a genotype, or what else the subclass's `forward` understands: all of a supernet at once, say.
        """
        return self.space.sample(np.random.default_rng([self.seed, step]))

    @abstractmethod
    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return what every path starts from (dense inputs, embedding vectors): to be computed once for many paths."""

    @abstractmethod
    def features(
        self, inputs: tuple[Tensor, ...], paths: Sequence[Genotype], memory: dict[Any, Any] | None = None
    ) -> list[Tensor]:
        """Return for each path the B x width input of its last layer; parts that paths share are computed once.

        Args:
            inputs: What `embed` returned.
            paths: Canonical genotypes.
            memory: Filled with results by the part of the architecture, for further calls with the same inputs.
        """

    @abstractmethod
    def head(self, path: Genotype) -> tuple[Tensor, Tensor]:
        """Return the weight (width) and the bias (scalar) that make the logit of `features`."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Draw the path of this step."""
        self.path = (self.draw_path or self.sample_path)(self.trainer.global_step)

    def configure_model(self) -> None:
        """Let plugins wrap layers; then leave the exchange of gradients to the optimizer, which knows the slices.

        DistributedDataParallel keeps one parameter, since it needs one: the last, of the head.
        """
        super().configure_model()
        if can_slice(self.optimizer_config):
            names = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
            ignored = [*getattr(self, "_ddp_params_and_buffers_to_ignore", []), *names[:-1]]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, sorted(set(ignored)))

    def configure_optimizers(self) -> Any:
        """Return an optimizer that updates only the slices that a step used, where its kind allows that."""
        return scheduled(*build_sliced_optimizer(self, self.optimizer_config))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip dense gradients, those of slices too (`--trainer.gradient_clip_val`)."""
        inner = getattr(optimizer, "optimizer", optimizer)
        if not gradient_clip_val or not isinstance(inner, SlicedOptimizer):
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(inner.gradients(), gradient_clip_val)
        else:
            inner.merge()
            clip_dense_norm(inner.gradients(), gradient_clip_val)

    def on_fit_end(self) -> None:
        """Make slices ordinary views again."""
        for optimizer in self.trainer.optimizers:
            if isinstance(optimizer, SlicedOptimizer):
                optimizer.release()
