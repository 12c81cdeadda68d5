"""A search from its start to its report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from recloom.data.module import BlockDataModule
from recloom.errors import RecloomError, suggest
from recloom.features import FeatureSchema
from recloom.search.choose import best_line, ranked
from recloom.search.evaluator import CostModel, Evaluator, SearchContext
from recloom.search.evaluators.scratch import FromScratch
from recloom.search.finish import Finish, Finished
from recloom.search.journal import Journal
from recloom.search.method import SearchMethod
from recloom.search.objective import Objective
from recloom.search.progress import SearchProgress
from recloom.search.space import SearchSpace
from recloom.search.study import Asked, Study

_BY_NE = Objective()
_MOST_FAILURES = 4  # of the first candidates: then the fault is not a candidate's


@dataclass
class SearchRun:
    """What a search's parts share while it runs, and what its outputs are made from.

    Args:
        context: The space, the data, the costs, ...
        study: Its trials.
        journal: Its measurements and times.
        progress: Its bar.
        config: The whole configuration as it was given, for the outputs.
        scratch: How models are trained from scratch.
        finished: What came after the trials.
        report: The report, once it is written.
    """

    context: SearchContext
    study: Study
    journal: Journal
    progress: SearchProgress
    config: dict[str, Any]
    scratch: FromScratch
    finished: Finished = field(default_factory=Finished)
    report: Path | None = None


class Search:
    """Tries candidates of a space, retrains the best from scratch, and writes what was found.

    Args:
        space: What is searched.
        data: The data; candidates are trained on its training rows and compared on its validation rows.
        method: Proposes candidates. Unset: RegularizedEvolution.
        evaluator: Measures them. Unset: FromScratch.
        objective: What is minimised, penalties, limits.
        costs: Cost models; their costs can be part of the objective. Unset: AnalyticCost.
        trials: Candidates to try in all.
        batch: Candidates that are asked for, and evaluated, together.
        seed: Seed of the search.
        retrain: How many of the best candidates are trained from scratch at the end; 0: none.
        retrain_seeds: Trainings of each; their mean is ranked.
        scratch: How candidates are retrained, baselines trained, and correlations measured. Unset: FromScratch.
        baselines: Model sections by name, trained like the candidates for the report: {DLRM: {class_path: DLRM}}.
        correlate: Random candidates evaluated both ways, by the evaluator and from scratch, for rank correlations;
            the best of them stands beside the baselines.
        storage: Where the study is kept: a file, or a database URL that workers on many machines can share. Unset:
            study.db in the search's folder.
        name: Name of the study in the storage.
    """

    def __init__(
        self,
        space: SearchSpace,
        data: BlockDataModule,
        method: SearchMethod | None = None,
        evaluator: Evaluator | None = None,
        objective: Objective = _BY_NE,
        costs: Sequence[CostModel] | None = None,
        trials: int = 100,
        batch: int = 8,
        seed: int = 0,
        retrain: int = 5,
        retrain_seeds: int = 1,
        scratch: FromScratch | None = None,
        baselines: Mapping[str, dict[str, Any]] | None = None,
        correlate: int = 0,
        storage: str | None = None,
        name: str = "search",
    ) -> None:
        from recloom.search.costs import AnalyticCost

        for option, value, least in (
            *(("trials", trials, 1), ("batch", batch, 1), ("retrain", retrain, 0)),
            *(("retrain_seeds", retrain_seeds, 1), ("correlate", correlate, 0)),
        ):
            if value < least:
                raise RecloomError(f"search: {option} is {value}", f"It must be at least {least}.")
        self.space, self.data, self.objective = space, data, objective
        self.method = method or _default_method()
        self.evaluator = evaluator or FromScratch()
        self.costs = [AnalyticCost()] if costs is None else list(costs)
        self.trials, self.batch, self.seed = trials, batch, seed
        self.retrain, self.retrain_seeds = retrain, retrain_seeds
        self.scratch = scratch or FromScratch()
        self.baselines = dict(baselines or {})
        self.correlate = correlate
        self.storage, self.name = storage, name

    def run(
        self,
        folder: Path,
        config: dict[str, Any] | None = None,
        progress: bool = True,
        finish: bool = True,
        on_ready: Callable[[], None] = lambda: None,
    ) -> SearchRun:
        """Run the search in `folder`, or go on with it there; return what was found.

        Several processes may run it at once: each tries candidates until all are tried, and the last one that is
        left does the rest.

        Args:
            folder: Where everything is kept.
            config: The configuration, for found.yaml and the report.
            progress: Whether to show progress.
            finish: Whether to do what comes after the trials; a helping worker does not.
            on_ready: Called before the first candidate, when the evaluator is set up.

        Raises:
            KeyboardInterrupt: Ctrl-C; finished trials are kept, those of the current batch are tried again.
        """
        run = self._open(folder, config or {}, progress)
        with contextlib.ExitStack() as stack:
            stack.enter_context(run.study)
            stack.enter_context(run.progress)
            self._setup(run)
            on_ready()
            self._search(run)
            if finish:
                try:
                    stack.enter_context(filelock.FileLock(str(folder / "finish.lock"), timeout=0))
                except filelock.Timeout:
                    run.context.say("another worker retrains the best and writes the report")
                    return run
                self._finish(run)
        return run

    def _open(self, folder: Path, config: dict[str, Any], progress: bool) -> SearchRun:
        folder.mkdir(parents=True, exist_ok=True)
        bar = SearchProgress(self.trials, progress)
        say = bar.say if progress else _say_nothing
        schema = FeatureSchema.from_dict(self.data.schema)
        context = SearchContext(self.space, self.data, schema, self.objective, self.costs, folder, self.seed, say)
        self._check_objective(context)
        self.method.setup(context)
        storage = self.storage or folder / "study.db"
        study = Study(
            self.space, self.objective, self.method, storage, self.seed, self.name, self.trials, context.price
        )
        return SearchRun(context, study, Journal(folder), bar, config, self.scratch)

    def _check_objective(self, context: SearchContext) -> None:
        """Refuse an objective that nothing measures, before anything is trained."""
        example = context.space.canonical(context.space.sample(np.random.default_rng(self.seed)))
        known = [*self.evaluator.measures, *context.price(example)]
        for name in self.objective.names if self.evaluator.measures else ():
            if name not in known:
                raise RecloomError(f"objective: there is no metric {name!r}", suggest(name, known))

    def _setup(self, run: SearchRun) -> None:
        # one worker at a time: the first trains what is to be trained, the others find it ready
        lock = filelock.FileLock(str(run.context.folder / "setup.lock"))
        with lock, run.journal.phase("setup", lambda: self.evaluator.samples_trained):
            self.evaluator.setup(run.context)

    def _search(self, run: SearchRun) -> None:
        study = run.study
        run.progress.show(len(study.observations()), best_line(study))
        with run.journal.phase("search", lambda: self.evaluator.samples_trained + self.method.samples_trained):
            while not study.done:
                batch = study.ask_many(self.batch)
                if not batch and not study.done:
                    wait_for_others()
                if batch:
                    self._evaluate(batch, run)
                    run.progress.show(len(study.observations()), best_line(study))
        run.progress.show(len(study.observations()), best_line(study))

    def _evaluate(self, batch: list[Asked], run: SearchRun) -> None:
        try:
            found = self.evaluator.evaluate([asked.genotype for asked in batch])
        except RecloomError:
            raise
        except RuntimeError as error:  # of one of the candidates: out of memory, shapes that do not fit
            if len(batch) > 1:
                for asked in batch:
                    self._evaluate([asked], run)
                return
            if not run.study.observations() and len(run.study.failures()) >= _MOST_FAILURES:
                raise
            run.context.say(f"trial {batch[0].number} failed: {error}")
            run.study.fail(batch[0], str(error))
            return
        for asked, metrics in zip(batch, found, strict=True):
            reason = self.evaluator.reasons.get(asked.genotype, "")
            run.study.tell(asked, metrics, reason)
            if reason:
                run.context.say(f"trial {asked.number} diverged: {reason}")

    def _finish(self, run: SearchRun) -> None:
        from recloom.search.outputs import write_outputs

        self.scratch.setup(run.context)
        finish = Finish(run.context, run.journal, self.scratch)
        if self.correlate:
            finish.correlate(self.evaluator, self.correlate, run.finished)
        self.evaluator.release()
        best = ranked(run.study)[: self.retrain]
        run.finished.retrained = finish.retrain([o.genotype for o in best], self.retrain_seeds)
        run.finished.baselines[:0] = finish.train_baselines(self.baselines, self.retrain_seeds)
        finish.test(run.finished)
        run.report = write_outputs(run, self)
        self.scratch.release()


def wait_for_others() -> None:
    """Wait a little while other workers are busy with what is left."""
    time.sleep(0.5)


def _default_method() -> SearchMethod:
    from recloom.search.methods.evolution import RegularizedEvolution

    return RegularizedEvolution()


def _say_nothing(text: str) -> None:
    pass
