"""One-shot search: a policy learns on a supernet while it is trained, beside a baseline on the same rows."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from recloom import mention
from recloom.errors import RecloomError
from recloom.loading import instantiate_model
from recloom.model import RankingModule
from recloom.optim import build_optimizer
from recloom.search.evaluator import SearchContext
from recloom.search.evaluators.supernet import SupernetEvaluator
from recloom.search.method import Observation
from recloom.search.methods.joint import JointMethod, PathLearner
from recloom.search.methods.random import best_first
from recloom.search.policy import Policy
from recloom.search.space import Genotype

SMOOTH = 0.95  # of the running mean and variance of rewards


class CoTrained(PathLearner):
    """REINFORCE on training batches: a path's reward is how far its loss is below that of a baseline, on the same rows.

    The baseline is a model of its own that is trained on every batch, after both losses were taken, so that what is
    hard or new in a batch is so for both and cancels: reward = 1 - loss / baseline's loss - penalties.

    Args:
        policy: What paths are drawn from.
        seed: Seed of the draws.
        warmup: Steps of random paths.
        baseline: The baseline.
        context: The search's parts, for penalties on costs.
        lr: Step size of the policy.
        entropy: Weight of its entropy.
    """

    def __init__(
        self,
        policy: Policy,
        seed: int,
        warmup: int,
        baseline: RankingModule,
        context: SearchContext,
        lr: float,
        entropy: float,
    ) -> None:
        super().__init__(policy, seed, warmup)
        self.baseline, self.context, self.lr, self.entropy = baseline.train(), context, lr, entropy
        self.optimizer = build_optimizer(baseline, baseline.optimizer_config)[0]
        self.mean, self.square, self.count = 0.0, 0.0, 0
        self._penalties: dict[Genotype, float] = {}
        self._loss = math.nan

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the drawing of paths; bring the baseline to where the supernet is."""
        super().on_fit_start(trainer, pl_module)
        self.baseline.to(pl_module.device)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Train the baseline on the batch, and keep the loss that it had before."""
        loss = self.baseline.loss(self.baseline.logits(batch), batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._loss = float(loss.detach())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Reward the path of this step."""
        loss = float(outputs["loss"] if isinstance(outputs, dict) else outputs)
        if not math.isfinite(loss):
            return
        path: Genotype = pl_module.path  # type: ignore[assignment]
        reward = max(1 - loss / self._loss - self._penalty(path), -1.0)
        self.count += 1
        share = max(1 - SMOOTH, 1 / self.count)
        self.mean += share * (reward - self.mean)
        self.square += share * ((reward - self.mean) ** 2 - self.square)
        if self.step >= self.warmup:
            advantage = (reward - self.mean) / math.sqrt(self.square + 1e-12)
            amount = self.lr * float(np.clip(advantage, -3, 3))
            self.policy.reinforce(path, self.policy.space.matters(path), amount, self.lr * self.entropy)

    def _penalty(self, path: Genotype) -> float:
        objective = self.context.objective
        if path not in self._penalties:
            costs = self.context.price(path) if objective.penalties or objective.limits else {}
            found = sum(penalty(costs[name]) for name, penalty in objective.penalties.items() if name in costs)
            self._penalties[path] = found + objective.overshoot(costs)
        return self._penalties[path]

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned, and the baseline."""
        own = {"baseline": self.baseline.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**super().state_dict(), **own, "rewards": [self.mean, self.square, self.count]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        super().load_state_dict(state_dict)
        self.baseline.load_state_dict(state_dict["baseline"])
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.mean, self.square, self.count = state_dict["rewards"]


class OneShot(JointMethod):
    """One-shot search with weight sharing (Rankitect, arXiv 2311.08430, as far as its abstract tells).

    A supernet is trained once, on paths that a policy draws; the policy learns from the same batches (see `CoTrained`;
    ENAS, Pham et al. 2018, TuNAS, Bender et al. 2020). Then an evolution that starts from the policy's candidates
    ranks them by the supernet, its last layer fine-tuned, and the best are proposed, in order: with several things to
    minimise, by front and crowding. What is proposed is measured by the search's evaluator.

    Args:
        supernet: How the supernet is trained and measured. Unset: SupernetEvaluator with 50 steps of fine-tuning and
            10,000 validation rows.
        baseline: Model section of the co-trained baseline: {class_path: DLRM}. Unset: a random candidate's model.
        warmup: Share of the supernet's steps on random paths, from which the policy does not learn.
        lr: Step size of the policy.
        entropy: Weight of its entropy, against settling too early.
        explored: Candidates that are ranked by the supernet; half are the policy's, half mutations of the best.
        proposals: How many of them are proposed.
    """

    name = "oneshot"

    def __init__(
        self,
        supernet: SupernetEvaluator | None = None,
        baseline: dict[str, Any] | None = None,
        warmup: float = 0.3,
        lr: float = 0.02,
        entropy: float = 0.01,
        explored: int = 256,
        proposals: int = 64,
    ) -> None:
        if not 0 <= warmup < 1 or min(explored, proposals) < 1 or lr <= 0:
            raise RecloomError(f"one-shot search with warmup {warmup}, explored {explored}, lr {lr}", "See --help.")
        super().__init__(supernet)
        self.baseline, self.warmup, self.lr, self.entropy = baseline, warmup, lr, entropy
        self.explored, self.most = explored, proposals

    def learner(self) -> CoTrained:
        """Return the policy beside its baseline."""
        with torch.random.fork_rng():
            pl.seed_everything(self.seed, verbose=False)
            baseline = self._baseline()
        warmup = int(self.warmup * self.evaluator.steps)
        return CoTrained(self._policy(), self.seed, warmup, baseline, self.context, self.lr, self.entropy)

    def propose(self) -> list[Genotype]:
        """Return the best candidates by the supernet."""
        rng = np.random.default_rng([self.seed, 2])
        found: dict[Genotype, Observation] = {}
        while len(found) < self.explored:
            batch = self._batch(list(found.values()), min(32, self.explored - len(found)), set(found), rng)
            if not batch:
                break
            for genotype, metrics in zip(batch, self.evaluator.evaluate(batch), strict=True):
                together = {**self.context.price(genotype), **metrics}
                values = self.objective.values(together)
                found[genotype] = Observation(len(found), genotype, values, self.objective.excess(together))
        ranked = [o for o in found.values() if o.measured]
        return [ranked[place].genotype for place in best_first(ranked)[: self.most]] if ranked else []

    @property
    def samples_trained(self) -> int:  # type: ignore[override]
        """Samples that the supernet and the baseline have seen."""
        return 2 * self.evaluator.samples_trained

    def _batch(
        self, known: list[Observation], count: int, tried: set[Genotype], rng: np.random.Generator
    ) -> list[Genotype]:
        """Return new candidates that keep the limits: the policy's at first, then mutations of the best."""
        parents = (
            [known[place].genotype for place in best_first(known)[:16]] if len(known) >= self.explored // 2 else []
        )
        batch: dict[Genotype, None] = {}
        for _ in range(50 * count):
            if parents:
                new = self.space.mutate(parents[rng.integers(len(parents))], rng, 1)
            else:
                new = self.policy.sample(rng, explore=0.05)
            model = self.space.canonical(new)
            if model not in tried and self.objective.allows(self.context.price(model)):
                batch[model] = None
            if len(batch) == count:
                break
        return list(batch)

    def _baseline(self) -> RankingModule:
        if self.baseline is None:
            genotype = self.space.canonical(self.space.sample(np.random.default_rng([self.seed, 3])))
            return self.space.build(genotype, self.context.schema)
        mention.load_mentioned(list(mention.strings(self.baseline)))
        found: RankingModule = instantiate_model(self.baseline, self.context.schema)
        return found
