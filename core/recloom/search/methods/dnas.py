"""Differentiable search: Gumbel-softmax over the choices, trained by gradients together with a supernet."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from recloom.errors import RecloomError
from recloom.search.evaluator import SearchContext
from recloom.search.evaluators.supernet import SupernetEvaluator
from recloom.search.methods.joint import JointMethod, PathLearner
from recloom.search.policy import Array, Policy, softmax
from recloom.search.space import Genotype
from recloom.search.supernet import Supernet

COST_SAMPLES = 128  # genotypes that the cost's linear model is fitted to
COST_EVERY = 50  # steps between fits


class Relaxed(PathLearner):
    """Learns logits of all options by the gradients of gates.

    A step draws a path by Gumbel-softmax, hard forward and soft backward (GDAS, Dong and Yang 2019): the gate of choice
    c has the value 1 and stands for y_c[k], the softmax of (logits + noise) / temperature at the option k that was
    drawn; the loss's gradient by it moves the logits. So a step costs what its path costs.

    The cost's expectation E[F] under the probabilities p is that of a linear model of F, fitted every 50 steps to
    candidates drawn from p: its gradient is the best linear estimate of the true one. What is added to the loss is
    weight * log E[F].

    Args:
        policy: What paths are drawn from: independent choices.
        seed: Seed of the draws.
        warmup: Steps of random paths.
        steps: Steps in all.
        context: The search's parts, for costs.
        lr: Learning rate of the logits (Adam).
        temperatures: At the first step and at the last one, falling geometrically.
        cost: The cost.
        weight: Weight of the logarithm of its expectation.
    """

    def __init__(
        self,
        policy: Policy,
        seed: int,
        warmup: int,
        steps: int,
        context: SearchContext,
        lr: float,
        temperatures: tuple[float, float],
        cost: str,
        weight: float,
    ) -> None:
        super().__init__(policy, seed, warmup)
        self.steps, self.context, self.lr, self.temperatures = steps, context, lr, temperatures
        self.cost, self.weight = cost, weight
        self.noise = np.zeros_like(policy.logits)
        self.moments = np.zeros((2, len(policy.logits)))
        self._linear: tuple[Array, float] | None = None

    @property
    def temperature(self) -> float:
        """The temperature of this step."""
        first, last = self.temperatures
        done = max(self.step - self.warmup, 0) / max(self.steps - self.warmup, 1)
        return first * (last / first) ** done

    def drawn(self, rng: np.random.Generator) -> Genotype:
        """Return the path that Gumbel noise and the logits choose."""
        self.noise = rng.gumbel(size=len(self.policy.logits))
        total = self.policy.logits + self.noise
        starts = self.policy.starts
        options = [int(np.argmax(total[a:b])) for a, b in pairwise(starts)]
        return self.policy.space.repair(tuple(options))

    def draw(self, step: int) -> Genotype:
        """Return the path of a step; give the supernet gates of one."""
        path = super().draw(step)
        learning = step >= self.warmup
        self.supernet.gates = (
            torch.ones(len(path), requires_grad=True, device=self.supernet.device) if learning else None
        )
        return path

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the drawing of paths."""
        super().on_fit_start(trainer, pl_module)
        assert isinstance(pl_module, Supernet)
        if not pl_module.relaxed:
            raise RecloomError(
                f"{type(pl_module).__name__} cannot be searched by gradients", "Its paths must honour Supernet.gates."
            )
        self.supernet = pl_module

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave it."""
        super().on_fit_end(trainer, pl_module)
        self.supernet.gates = None

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Move the logits."""
        gates = self.supernet.gates
        if gates is None or gates.grad is None:
            return
        gradient = self.loss_gradient(self.supernet.path, gates.grad.double().cpu().numpy())
        gradient += self.cost_gradient()
        if not np.isfinite(gradient).all():
            return
        count = self.step - self.warmup + 1
        for moment, rate, new in zip(self.moments, (0.5, 0.999), (gradient, gradient**2), strict=True):
            moment += (1 - rate) * (new - moment)
        mean, square = self.moments[0] / (1 - 0.5**count), self.moments[1] / (1 - 0.999**count)
        self.policy.logits -= self.lr * mean / (np.sqrt(square) + 1e-8)

    def loss_gradient(self, path: Genotype, gates: Array) -> Array:
        """Return the loss's gradient by the logits, of its gradient by the gates."""
        found = np.zeros_like(self.policy.logits)
        temperature, starts = self.temperature, self.policy.starts
        for place, matters in enumerate(self.policy.space.matters(path)):
            if matters:
                here = slice(int(starts[place]), int(starts[place + 1]))
                soft = softmax((self.policy.logits[here] + self.noise[here]) / temperature)
                chosen = np.eye(len(soft))[path[place]]
                found[here] = gates[place] * soft[path[place]] * (chosen - soft) / temperature
        return found

    def cost_gradient(self) -> Array:
        """Return weight * the gradient of log E[F] by the logits."""
        found = np.zeros_like(self.policy.logits)
        if not self.weight:
            return found
        if self._linear is None or (self.step - self.warmup) % COST_EVERY == 0:
            self._linear = self.fit_cost()
        slopes, mean = self._linear
        starts = self.policy.starts
        for first, end in pairwise(starts):
            p = softmax(self.policy.logits[first:end])
            found[first:end] = p * (slopes[first:end] - (p * slopes[first:end]).sum())
        return self.weight * found / max(mean, 1e-9)

    def fit_cost(self) -> tuple[Array, float]:
        """Return the slopes of a ridge regression of the cost on the options, and its mean."""
        rng = np.random.default_rng([self.seed, 4, self.step])
        drawn = [self.policy.sample(rng, explore=0.1) for _ in range(COST_SAMPLES)]
        values = np.array([self.context.price(self.policy.space.canonical(g))[self.cost] for g in drawn])
        x = np.zeros((COST_SAMPLES, len(self.policy.logits)))
        np.put_along_axis(x, np.array(drawn) + self.policy.starts[:-1], 1.0, axis=1)
        x -= x.mean(0)
        dual = np.linalg.solve(x @ x.T + np.eye(COST_SAMPLES), values - values.mean())
        return x.T @ dual, float(values.mean())

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned."""
        return {**super().state_dict(), "moments": torch.from_numpy(self.moments.copy())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        super().load_state_dict(state_dict)
        self.moments = state_dict["moments"].numpy().copy()


class DNAS(JointMethod):
    """Differentiable architecture search (DNAS, arXiv 2110.14812) on any space whose supernet is `relaxed`.

    A supernet is trained on paths drawn by Gumbel-softmax, and the gradients of its gates train the probabilities of
    all options (see `Relaxed`), with a temperature that falls and a term for the expected cost. The most likely
    candidate is proposed first, then what the learned probabilities draw. Where the cost is minimised beside something
    else, one training serves the whole front: candidates are drawn as if `weight` had been larger or smaller, by moving
    each option's logit along what it adds to the cost.

    Args:
        supernet: How the supernet is trained: `steps`, `optimizer`, ... Unset: SupernetEvaluator with its 2,000 steps.
        warmup: Share of the steps on random paths, before probabilities are learned.
        lr: Learning rate of the logits.
        temperature: Temperature of the Gumbel-softmax at first.
        final_temperature: At the end.
        cost: The cost whose expectation is penalised.
        weight: Weight of the logarithm of the expected cost, added to the loss; 0: none.
        proposals: How many candidates are drawn for proposals.
        spread: How far logits are moved along costs, up and down, for a front: by so much for an option that alone adds
            the mean cost of all that is drawn.
    """

    name = "dnas"

    def __init__(
        self,
        supernet: SupernetEvaluator | None = None,
        warmup: float = 0.3,
        lr: float = 0.02,
        temperature: float = 2.0,
        final_temperature: float = 0.3,
        cost: str = "macs",
        weight: float = 0.002,
        proposals: int = 64,
        spread: float = 4.0,
    ) -> None:
        if not 0 <= warmup < 1 or min(temperature, final_temperature, lr) <= 0 or proposals < 1:
            raise RecloomError(f"DNAS with warmup {warmup}, temperature {temperature}, lr {lr}", "See --help.")
        super().__init__(supernet)
        self.warmup, self.lr, self.temperatures = warmup, lr, (temperature, final_temperature)
        self.cost, self.weight, self.most, self.spread = cost, weight, proposals, spread

    def learner(self) -> Relaxed:
        """Return what learns the probabilities."""
        steps = self.evaluator.steps
        warmup = int(self.warmup * steps)
        return Relaxed(
            self._policy(), self.seed, warmup, steps, self.context, self.lr, self.temperatures, self.cost, self.weight
        )

    def propose(self) -> list[Genotype]:
        """Return the most likely candidate, then others as they are drawn, that keep the limits."""
        rng = np.random.default_rng([self.seed, 2])
        found: dict[Genotype, None] = {}
        for genotype in self._drawn(rng):
            model = self.space.canonical(genotype)
            if self.objective.allows(self.context.price(model)):
                found[model] = None
        return list(found)[: self.most]

    def _drawn(self, rng: np.random.Generator) -> Iterator[Genotype]:
        """Yield the most likely candidate, then random ones; for a front, with logits moved along costs."""
        yield self.policy.best()
        moved = self._policy()
        slopes = np.zeros_like(moved.logits)
        if len(self.objective.minimize) > 1:
            learner = self.learner()
            learner.policy = self.policy
            found, mean = learner.fit_cost()
            slopes = found / max(mean, 1e-9)
        for _ in range(4 * self.most):
            moved.logits = self.policy.logits - rng.uniform(-self.spread, self.spread) * slopes
            yield moved.sample(rng)
