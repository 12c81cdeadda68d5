"""What methods have in common that train a supernet of their own and draw its paths while they learn which are good."""

from __future__ import annotations

import json
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from recloom.document import write_text
from recloom.search.evaluator import SearchContext
from recloom.search.evaluators.supernet import SupernetEvaluator
from recloom.search.method import History, SearchMethod
from recloom.search.policy import Policy
from recloom.search.space import Genotype
from recloom.search.supernet import Supernet


class PathLearner(Callback):
    """Draws the paths of a supernet's training; its state is kept in checkpoints.

    Args:
        policy: What paths are drawn from.
        seed: Seed of the draws.
        warmup: Steps of random paths at first, from which nothing is learned.
    """

    def __init__(self, policy: Policy, seed: int, warmup: int) -> None:
        self.policy, self.seed, self.warmup = policy, seed, warmup
        self.step = 0

    def draw(self, step: int) -> Genotype:
        """Return the canonical path of a step."""
        self.step = step
        rng = np.random.default_rng([self.seed, 1, step])
        space = self.policy.space
        return space.canonical(space.sample(rng) if step < self.warmup else self.drawn(rng))

    def drawn(self, rng: np.random.Generator) -> Genotype:
        """Return a path that the policy draws."""
        return self.policy.sample(rng)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the drawing of paths."""
        assert isinstance(pl_module, Supernet)
        pl_module.draw_path = self.draw

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave it."""
        assert isinstance(pl_module, Supernet)
        pl_module.draw_path = None

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned, as a checkpoint keeps it."""
        found = {"logits": torch.from_numpy(self.policy.logits.copy())}
        return found if self.policy.pairs is None else {**found, "pairs": torch.from_numpy(self.policy.pairs.copy())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what was learned."""
        self.policy.logits = state_dict["logits"].numpy().copy()
        if "pairs" in state_dict:
            self.policy.pairs = state_dict["pairs"].numpy().copy()


class JointMethod(SearchMethod):
    """A method with a supernet of its own: trained at the first proposal, once, and kept in the search's folder.

    Args:
        supernet: How the supernet is trained and measured. Unset: SupernetEvaluator with 50 steps of fine-tuning and
            10,000 validation rows, for it ranks hundreds of candidates.
    """

    name: str
    """Its folder."""

    def __init__(self, supernet: SupernetEvaluator | None) -> None:
        self.evaluator = supernet or SupernetEvaluator(finetune_steps=50, eval_rows=10_000)
        self.proposals: list[Genotype] | None = None

    def setup(self, context: SearchContext) -> None:
        """Prepare for a search; nothing is trained yet."""
        super().setup(context)
        self.folder = context.folder / self.name
        self.context = replace(context, folder=self.folder)
        self.proposals = None

    @property
    def samples_trained(self) -> int:  # type: ignore[override]
        """Samples that the supernet, and what is trained beside it, have seen."""
        return self.evaluator.samples_trained

    def ask(self, history: History, rng: np.random.Generator) -> Genotype:
        """Return the best proposal that was not tried; after them, what the policy draws."""
        if self.proposals is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(str(self.folder / "prepare.lock")):
                self.proposals = self._prepared()
        tried = {self.space.canonical(g) for g in [*(o.genotype for o in history.finished), *history.running]}
        for genotype in self.proposals:
            if genotype not in tried:
                return genotype
        return self.policy.sample(rng, explore=0.05)

    @abstractmethod
    def learner(self) -> PathLearner:
        """Return what draws and learns paths."""

    @abstractmethod
    def propose(self) -> list[Genotype]:
        """Return canonical candidates, best first, of the trained supernet and `policy`."""

    def _prepared(self) -> list[Genotype]:
        path = self.folder / "proposals.json"
        if path.exists():
            found = json.loads(path.read_text())
            self.policy = self._policy()
            self.policy.logits = np.array(found["logits"])
            return [tuple(genotype) for genotype in found["proposals"]]
        learner = self.learner()
        self.policy = learner.policy
        self.evaluator.callbacks = [learner, _Keeper(learner, self.folder / "policy.pt")]
        self.evaluator.setup(self.context)
        _restore(learner, self.folder / "policy.pt")
        proposals = self.propose()
        self.evaluator.release()
        write_text(path, json.dumps({"logits": self.policy.logits.tolist(), "proposals": proposals}))
        return proposals

    def _policy(self) -> Policy:
        return Policy(self.space, "independent", self.seed)


class _Keeper(Callback):
    """Writes what was learned at the end of the training, for a search that is interrupted after it.

    Args:
        learner: What learns.
        path: The file.
    """

    def __init__(self, learner: PathLearner, path: Path) -> None:
        self.learner, self.path = learner, path

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it."""
        aside = self.path.with_suffix(".part")
        torch.save(self.learner.state_dict(), aside)
        aside.replace(self.path)


def _restore(learner: PathLearner, path: Path) -> None:
    if path.exists():
        learner.load_state_dict(torch.load(path, weights_only=True))
