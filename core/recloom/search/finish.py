"""After the trials: the best retrained from scratch, baselines, rank correlations, one look at the test rows."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recloom import mention
from recloom.errors import DataError, RecloomError
from recloom.loading import instantiate_model
from recloom.model import RankingModule
from recloom.search.evaluator import Evaluator, SearchContext
from recloom.search.evaluators.scratch import FromScratch
from recloom.search.journal import Facts, Journal, fingerprint
from recloom.search.space import Genotype
from recloom.search.training import candidate_seed


@dataclass
class Trained:
    """A model trained from scratch with one or several seeds.

    Args:
        name: Its name in the report.
        key: Its name in the journal and of its files; a seed's number is added.
        build: Makes it, with fresh weights.
        genotype: The candidate; empty for a baseline.
        costs: Its costs; empty for a baseline whose work is not known.
        runs: Validation metrics of each seed; NaN for one that diverged.
        reasons: Why seeds diverged.
        logits: Validation logits of each seed.
        test: Test metrics of each seed; empty if it was not tested.
        test_logits: Test logits of each seed.
    """

    name: str
    key: str
    build: Callable[[], RankingModule]
    genotype: Genotype = ()
    costs: dict[str, float] = field(default_factory=dict)
    runs: list[dict[str, float]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    test: list[dict[str, float]] = field(default_factory=list)
    test_logits: list[NDArray[np.float32]] = field(default_factory=list)

    def mean(self, metric: str, stage: str = "val") -> float:
        """Return the mean of a metric over the seeds; NaN if it was not measured."""
        runs = self.runs if stage == "val" else self.test
        return float(np.mean([run.get(metric, math.nan) for run in runs])) if runs else math.nan


@dataclass
class Finished:
    """What came after the trials.

    Args:
        retrained: Retrained candidates, best first on the validation rows.
        baselines: Baselines, in the order given, and the best of the random candidates of `correlation`.
        correlation: Values of the same random candidates, by source ("evaluator", "scratch") and metric.
    """

    retrained: list[Trained] = field(default_factory=list)
    baselines: list[Trained] = field(default_factory=list)
    correlation: dict[str, dict[str, list[float]]] = field(default_factory=dict)


class Finish:
    """Trains what is left to train, each model and seed once, whatever interrupts it.

    Args:
        context: The search's parts.
        journal: Where results are kept.
        scratch: How models are trained, set up.
    """

    def __init__(self, context: SearchContext, journal: Journal, scratch: FromScratch) -> None:
        self.context, self.journal, self.scratch = context, journal, scratch
        self._how = f"{context.seed}-{fingerprint(scratch)}"

    def retrain(self, genotypes: Sequence[Genotype], seeds: int) -> list[Trained]:
        """Train candidates from scratch; return them best first by the mean validation NE."""
        found = [self._candidate(genotype, f"candidate {place + 1}") for place, genotype in enumerate(genotypes)]
        with self.journal.phase("retraining", lambda: self.scratch.samples_trained):
            for trained in found:
                self._train(trained, seeds)
        found.sort(key=lambda t: (math.isnan(t.mean("ne")), t.mean("ne")))
        for loser in found[1:]:
            for repeat in range(seeds):
                self.weights(loser, repeat).unlink(missing_ok=True)
        return found

    def train_baselines(self, sections: Mapping[str, dict[str, Any]], seeds: int) -> list[Trained]:
        """Train other models as candidates are retrained."""
        found = []
        with self.journal.phase("baselines", lambda: self.scratch.samples_trained):
            for name, section in sections.items():
                mention.load_mentioned(list(mention.strings(section)))
                digest = hashlib.sha256(repr(sorted(section.items(), key=str)).encode()).hexdigest()[:8]
                key = f"baseline-{re.sub(r'[^0-9A-Za-z]+', '-', name)}-{digest}-{self._how}"
                found.append(Trained(name, key, lambda s=section: instantiate_model(s, self.context.schema)))  # type: ignore[misc]
                found[-1].costs = self._price(found[-1])
                self._train(found[-1], seeds)
        return found

    def _price(self, baseline: Trained) -> dict[str, float]:
        """Return the costs of a baseline; none if its work cannot be read off its graph."""
        from recloom.search.lowering import lower

        try:
            model = baseline.build()
            own = getattr(model, "program", None)  # of a model that says itself what it does
            program = own() if callable(own) else lower(model)
        except RecloomError as error:
            self.context.say(f"{baseline.name} has no costs: {error.message}")
            return {}
        costs = [cost(program, (), self.context) for cost in self.context.costs if cost.by_program]
        return {name: value for found in costs for name, value in found.items()}

    def correlate(self, evaluator: Evaluator, count: int, finished: Finished) -> None:
        """Evaluate `count` random candidates by `evaluator` and from scratch; note both, and the best of them."""
        candidates = [self._candidate(genotype, "") for genotype in self._random(count)]

        def quick() -> tuple[Facts, NDArray[np.float32]]:
            values = evaluator.evaluate([c.genotype for c in candidates])
            return {"values": values}, np.empty(0, np.float32)

        with self.journal.phase("correlation", lambda: evaluator.samples_trained + self.scratch.samples_trained):
            quickly = self.journal.once(f"evaluator-{count}-{self.context.seed}-{fingerprint(evaluator)}", quick)[0][
                "values"
            ]
            for candidate in candidates:
                self._train(candidate, 1, keep=False)
        finished.correlation = {"evaluator": _columns(quickly), "scratch": _columns([c.runs[0] for c in candidates])}
        best = min(candidates, key=lambda c: (math.isnan(c.mean("ne")), c.mean("ne")))
        finished.baselines.append(replace(best, name=f"best of {count} random candidates"))

    def test(self, finished: Finished) -> None:
        """Measure the best retrained candidate and the baselines on the test rows, if the data have some."""
        try:
            rows = sum(self.context.data.source("test").block_rows(0))
        except DataError:
            rows = 0
        with self.journal.phase("test"):
            for trained in [*finished.retrained[:1], *finished.baselines] if rows else []:
                if not math.isnan(trained.mean("ne")):
                    self._test(trained)

    def weights(self, trained: Trained, repeat: int) -> Path:
        """Return where the weights of a seed's training are."""
        return self.context.folder / "weights" / f"{trained.key}-{repeat}.ckpt"

    def _candidate(self, genotype: Genotype, name: str) -> Trained:
        canonical = self.context.space.canonical(genotype)
        digest = hashlib.sha256(repr(tuple(map(int, canonical))).encode()).hexdigest()[:12]
        return Trained(
            name,
            f"candidate-{digest}-{self._how}",
            lambda: self.context.space.build(canonical, self.context.schema),
            canonical,
            self.context.price(canonical),
        )

    def _random(self, count: int) -> list[Genotype]:
        """Return random candidates of which no two are the same model, and none is above a limit on costs."""
        rng = np.random.default_rng([self.context.seed, 0xC0])
        found: dict[Genotype, None] = {}
        for _ in range(1000 * count):
            genotype = self.context.space.canonical(self.context.space.sample(rng))
            if genotype not in found and self.context.objective.allows(self.context.price(genotype)):
                found[genotype] = None
            if len(found) == count:
                return list(found)
        raise RecloomError(
            f"correlate: there are not {count} different candidates that keep the limits", "Give a smaller number."
        )

    def _train(self, trained: Trained, seeds: int, keep: bool = True) -> None:
        for repeat in range(seeds):
            facts, logits = self.journal.once(f"{trained.key}-{repeat}", lambda r=repeat: self._run(trained, r, keep))  # type: ignore[misc]
            trained.runs.append(facts["metrics"])
            trained.logits.append(logits)
            trained.reasons += [facts["reason"]] if facts["reason"] else []
        if trained.name:
            told = f"diverged: {trained.reasons[0]}" if trained.reasons else f"validation NE {trained.mean('ne'):.5f}"
            self.context.say(f"{trained.name}, from scratch: {told}")

    def _run(self, trained: Trained, repeat: int, keep: bool) -> tuple[Facts, NDArray[np.float32]]:
        key = trained.genotype or tuple(trained.name.encode())
        outcome = self.scratch.run(trained.build, candidate_seed(self.context.seed, key, repeat))
        if keep and not outcome.reason:
            path = self.weights(trained, repeat)
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(".part")
            state = {"state_dict": outcome.module.state_dict()}
            torch.save({**state, "hyper_parameters": {"schema": self.context.schema.to_dict()}}, aside)
            aside.replace(path)
        facts = {"metrics": outcome.metrics, "reason": outcome.reason, "seconds": outcome.seconds}
        return facts, outcome.logits.numpy()

    def _test(self, trained: Trained) -> None:
        for repeat in range(len(trained.runs)):

            def once(repeat: int = repeat) -> tuple[Facts, NDArray[np.float32]]:
                from recloom import checkpoint

                weights = self.weights(trained, repeat)
                if not weights.exists():  # it was trained for the correlation, or once was not the best
                    self._run(trained, repeat, keep=True)
                module = trained.build()
                module.configure_model()
                checkpoint.load_weights(module, weights)
                metrics, logits = self.scratch.measure(module, "test")
                return {"metrics": metrics}, logits.numpy()

            facts, logits = self.journal.once(f"test-{trained.key}-{repeat}", once)
            trained.test.append(facts["metrics"])
            trained.test_logits.append(logits)


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: [row[name] for row in rows] for name in names}
