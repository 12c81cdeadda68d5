"""Several candidates trained from scratch in one loop: what the loop costs, and each batch, is shared by all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from recloom.batch import Batch
from recloom.errors import RecloomError
from recloom.model import RankingModule
from recloom.optim import build_optimizer
from recloom.plugins import host
from recloom.search.evaluator import Evaluator, SearchContext
from recloom.search.evaluators.scratch import FromScratch
from recloom.search.space import Genotype
from recloom.search.training import METRICS, candidate_seed, diverged, fit

_OWN_LOOP = (
    "training_step",
    "backward",
    "configure_optimizers",
    "optimizer_step",
    "optimizer_zero_grad",
    "lr_scheduler_step",
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
)
"""Methods of a module that Lightning calls while it trains, and that a group does not call of its members."""


class Together(Evaluator):
    """Trains candidates as FromScratch does, several at once in one process, with the results that it has.

    A step is one of every candidate on the same batch: the batch is read once, and the training loop's own work, which
    is a good part of a small model's step, is done once. Each candidate keeps its weights, its optimizer, its clipping
    and its random numbers; one that diverges is left out from then on. It pays for candidates whose step takes a few
    milliseconds, and needs the memory of all that are trained at once. Models that change the training loop by methods
    of their own (an `optimizer_step`, an `on_train_batch_start`, ...) are refused: these would be left out.

    Metrics: those of FromScratch.

    Args:
        size: Most candidates that are trained at once; the search's `batch` should be a multiple.
        scratch: How they are trained. Unset: FromScratch with its defaults.
    """

    measures = (*METRICS, "seconds")

    def __init__(self, size: int = 8, scratch: FromScratch | None = None) -> None:
        if size < 1:
            raise RecloomError(f"Together: size is {size}", "It must be at least 1.")
        self.size, self.scratch = size, scratch or FromScratch()

    def setup(self, context: SearchContext) -> None:
        """Prepare for a search."""
        super().setup(context)
        self.scratch.setup(context)

    @property
    def samples_trained(self) -> int:  # type: ignore[override]
        """Samples that went through training so far, candidates counted."""
        return self.scratch.samples_trained

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Train and measure the candidates."""
        canonical = [self.context.space.canonical(genotype) for genotype in genotypes]
        different = list(dict.fromkeys(canonical))
        found: dict[Genotype, dict[str, float]] = {}
        for start in range(0, len(different), self.size):
            part = different[start : start + self.size]
            found.update(zip(part, self._evaluate(part), strict=True))
        return [found[genotype] for genotype in canonical]

    def release(self) -> None:
        """Forget the rows in memory."""
        self.scratch.release()

    def _evaluate(self, genotypes: list[Genotype]) -> list[dict[str, float]]:
        start = time.perf_counter()
        group = self._trained(genotypes)
        seconds = (time.perf_counter() - start) / len(genotypes)
        self.scratch.samples_trained += self.scratch.samples * len(genotypes)
        found = []
        for genotype, module, reason in zip(genotypes, group.members, group.reasons, strict=True):
            metrics = {} if reason else self.scratch.measure(cast(RankingModule, module))[0]
            if reason := diverged(reason, metrics, self.scratch.ne_bound):
                self.reasons[genotype] = reason
                metrics = dict.fromkeys(METRICS, math.nan)
            found.append({**metrics, "seconds": seconds})
        return found

    def _trained(self, genotypes: Sequence[Genotype]) -> Group:
        members, states = [], []
        with torch.random.fork_rng():
            for genotype in genotypes:
                pl.seed_everything(candidate_seed(self.context.seed, genotype), verbose=False)
                members.append(self.context.space.build(genotype, self.context.schema))
                if self.scratch.optimizer is not None:
                    members[-1].optimizer_config = self.scratch.optimizer
                refuse_own_loop(members[-1])
                states.append(torch.get_rng_state())
            group = Group(members, states)
            options = {"max_epochs": self.scratch.epochs, "max_steps": self.scratch.max_steps, **self.scratch.trainer}
            fit(group, self.scratch.loader(), options)
        return group


def refuse_own_loop(module: RankingModule) -> None:
    """Raise RecloomError if `module` has a training loop that is not RankingModule's."""
    kind = type(module)
    own = [name for name in _OWN_LOOP if getattr(kind, name) is not getattr(RankingModule, name)]
    if own:
        raise RecloomError(
            f"Together: {kind.__name__} has its own {', '.join(own)}, which training side by side would leave out",
            "Use the evaluator FromScratch.",
        )


class Group(pl.LightningModule):
    """Models that are trained side by side, each as if it were alone.

    Args:
        members: The models.
        states: The random state that each one's training starts from.

    Attributes:
        reasons: Why each diverged; empty if it did not.
    """

    def __init__(self, members: Sequence[RankingModule], states: Sequence[Tensor]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.reasons = [""] * len(members)
        self._states = list(states)
        self._updates = 0

    def configure_model(self) -> None:
        """Let plugins wrap the members' layers."""
        for member in self._models():
            member.configure_model()

    def configure_optimizers(self) -> Optimizer:
        """Return the members' optimizers behind one."""
        built = [build_optimizer(member, member.optimizer_config) for member in self._models()]
        return SideBySide([optimizer for optimizer, _ in built], [policy for _, policy in built])

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each member's gradients on their own (`--trainer.gradient_clip_val`)."""
        inner = cast(SideBySide, getattr(optimizer, "optimizer", optimizer))
        for member, own in zip(self._models(), inner.optimizers, strict=True):
            member.configure_gradient_clipping(own, gradient_clip_val, gradient_clip_algorithm)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the losses of those that have not diverged: gradients of one know nothing of the others."""
        losses = []
        for place, member in enumerate(self._models()):
            if self.reasons[place]:
                continue
            torch.set_rng_state(self._states[place])
            _, loss = member.training_loss(batch)
            self._states[place] = torch.get_rng_state()
            if math.isfinite(float(loss.detach())):
                losses.append(loss)
            else:
                self.reasons[place] = f"the loss is {float(loss.detach())} after {self.trainer.global_step} steps"
        self.trainer.should_stop = not losses
        return torch.stack(losses).sum() if losses else torch.zeros((), device=self.device, requires_grad=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then tell plugins of the members that were updated."""
        super().optimizer_step(*args, **kwargs)
        self._updates += 1
        for place, member in enumerate(self._models()):
            if not self.reasons[place]:
                host().hook.on_parameters_updated(module=member, step=self._updates)

    def _models(self) -> list[RankingModule]:
        return [cast(RankingModule, member) for member in self.members]


class SideBySide(Optimizer):
    """Optimizers of different parameters, which step together.

    Args:
        optimizers: The optimizers.
        policies: For each the factor of its learning rates at a step, or one a group of parameters; None: 1.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        policies: Sequence[Callable[[int], float] | list[Callable[[int], float]] | None],
    ) -> None:
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self.optimizers = list(optimizers)
        self._schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, policy)
            for optimizer, policy in zip(optimizers, policies, strict=True)
            if policy is not None
        ]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Compute the losses, and step with all optimizers."""
        loss = closure() if closure is not None else None
        for optimizer in self.optimizers:
            optimizer.step()
        for schedule in self._schedules:
            schedule.step()
        return loss
