"""Each candidate trained from scratch: the measure that all others stand in for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from recloom.batch import Batch
from recloom.data.loader import BatchLoader
from recloom.errors import RecloomError
from recloom.model import RankingModule
from recloom.optim import OptimizerConfig
from recloom.search.evaluator import Evaluator, SearchContext
from recloom.search.rows import MemoryLoader, read_batches
from recloom.search.space import Genotype
from recloom.search.training import METRICS, candidate_seed, device_for, diverged, fit, measure

Split = Literal["val", "test"]


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate.

    Args:
        metrics: Its metrics; NaN if it diverged.
        logits: Its logits on the evaluated rows; none if it diverged.
        reason: Why it diverged; empty if it did not.
        seconds: Time of its training.
        module: The trained model.
    """

    metrics: dict[str, float]
    logits: Tensor
    reason: str
    seconds: float
    module: RankingModule


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Have torch's operations take `count` threads; None: as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class FromScratch(Evaluator):
    """Trains every candidate from fresh weights and measures it on the validation rows.

    Metrics: ne, logloss, auc, calibration. All candidates see the same rows in the same order; the weights they start
    with depend on the search's seed and the candidate alone. A candidate whose loss or NE is no finite number, or
    whose NE is above `ne_bound`, has diverged: its metrics are NaN.

    Args:
        rows: Training rows, read once and kept in memory. Unset: all rows, read anew for each candidate.
        eval_rows: Validation rows, read once and kept in memory. Unset: all.
        epochs: Passes over the training rows.
        max_steps: Most optimizer steps; -1: no limit.
        batch_size: Rows of a training batch; unset: the data module's.
        optimizer: Optimizers and learning rates; unset: those that the space gives its models.
        ne_bound: NE from which on a candidate counts as diverged; 1 is a model that knows only the base rate.
        trainer: Further arguments of Lightning's Trainer: accelerator, precision, gradient_clip_val, ...
        keep_predictions: Keep every candidate's validation logits in `predictions`, for paired bootstraps.
        threads: Threads of torch's operations while training; unset: as many as the process has. A small model's step
            is often faster with one.
    """

    measures = (*METRICS, "seconds")

    def __init__(
        self,
        rows: int | None = None,
        eval_rows: int | None = None,
        epochs: int = 1,
        max_steps: int = -1,
        batch_size: int | None = None,
        optimizer: OptimizerConfig | None = None,
        ne_bound: float = 1.5,
        trainer: dict[str, Any] | None = None,
        keep_predictions: bool = False,
        threads: int | None = None,
    ) -> None:
        if epochs < 1 or (threads is not None and threads < 1):
            raise RecloomError(f"FromScratch: epochs is {epochs}, threads {threads}", "Both must be at least 1.")
        self.threads = threads
        self.rows = rows
        self.eval_rows = eval_rows
        self.epochs = epochs
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.ne_bound = ne_bound
        self.trainer = dict(trainer or {})
        self.keep_predictions = keep_predictions
        self.predictions: dict[Genotype, Tensor] = {}
        self._train: list[Batch] = []
        self._stream: BatchLoader | None = None
        self._eval: dict[str, list[Batch]] = {}

    def setup(self, context: SearchContext) -> None:
        """Read the rows that are kept in memory at the first candidate, not here: a resumed search may need none."""
        super().setup(context)
        self._train, self._eval, self._stream = [], {}, None

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Train and measure the candidates one after the other."""
        found = []
        for genotype in genotypes:
            canonical = self.context.space.canonical(genotype)
            outcome = self.train(canonical)
            if outcome.reason:
                self.reasons[canonical] = outcome.reason
            elif self.keep_predictions:
                self.predictions[canonical] = outcome.logits
            found.append({**outcome.metrics, "seconds": outcome.seconds})
        return found

    def train(self, canonical: Genotype, repeat: int = 0, split: Split = "val") -> Outcome:
        """Train the model of a canonical genotype and measure it; each `repeat` starts from other weights."""
        seed = candidate_seed(self.context.seed, canonical, repeat)
        return self.run(lambda: self.context.space.build(canonical, self.context.schema), seed, split)

    def run(self, build: Callable[[], RankingModule], seed: int, split: Split = "val") -> Outcome:
        """Train whatever `build` makes as candidates are trained, and measure it."""
        start = time.perf_counter()
        with torch.random.fork_rng(), _threads(self.threads):
            pl.seed_everything(seed, verbose=False)
            module = build()
            if self.optimizer is not None:
                module.optimizer_config = self.optimizer
            options = {"max_epochs": self.epochs, "max_steps": self.max_steps, **self.trainer}
            reason = fit(module, self.loader(), options)
        seconds = time.perf_counter() - start
        self.samples_trained += self.samples
        metrics, logits = ({}, torch.empty(0)) if reason else self.measure(module, split)
        if reason := diverged(reason, metrics, self.ne_bound):
            return Outcome(dict.fromkeys(METRICS, math.nan), torch.empty(0), reason, seconds, module)
        return Outcome(metrics, logits, "", seconds, module)

    def train_on(self, batches: list[Batch]) -> None:
        """Train on these rows from now on, instead of `rows` of the data."""
        self._train = batches

    def measure(self, module: RankingModule, split: Split = "val") -> tuple[dict[str, float], Tensor]:
        """Return the metrics of a trained module on the rows of `split`, and its logits."""
        return measure(module, self.eval_batches(split), device_for(self.trainer))

    def eval_batches(self, split: str) -> list[Batch]:
        """Return the rows that candidates are measured on."""
        if split not in self._eval:
            data = self.context.data
            self._eval[split] = read_batches(data, split, data.eval_batch_size, self.eval_rows)
        return self._eval[split]

    def release(self) -> None:
        """Forget the rows in memory, and stop the processes that read the others."""
        if self._stream is not None:
            self._stream.close()
        self._train, self._stream = [], None

    @property
    def samples(self) -> int:
        """Training samples that one candidate sees, unless it diverges."""
        data = self.context.data
        rows = int(sum(data.source("train").block_rows(0)))
        rows = rows if self.rows is None else min(rows, self.rows)
        batch = self.batch_size or data.batch_size
        steps = self.epochs * (rows // batch)
        return batch * (steps if self.max_steps < 0 else min(steps, self.max_steps))

    def loader(self) -> Any:
        """Return the training rows as a loader of batches, for one candidate's training."""
        data = self.context.data
        batch_size = self.batch_size or data.batch_size
        if self.rows is None:
            if self._stream is None:
                source = data.source("train", data.shuffle)
                self._stream = BatchLoader(source, batch_size, drop_last=True, num_workers=data.num_workers)
            self._stream.set_epoch(0)
            return self._stream
        if not self._train:
            batches = read_batches(data, "train", batch_size, self.rows)
            self._train = [batch for batch in batches if len(batch) == batch_size] or batches
        return MemoryLoader(self._train, self.context.seed, data.shuffle)
