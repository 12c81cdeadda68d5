"""Gains over a baseline that is trained anew on the rows that each candidate is trained on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

from recloom import mention
from recloom.document import write_text
from recloom.errors import RecloomError
from recloom.loading import instantiate_model
from recloom.search.evaluator import Evaluator, SearchContext
from recloom.search.evaluators.scratch import FromScratch
from recloom.search.rows import read_batches
from recloom.search.space import Genotype
from recloom.search.training import METRICS, candidate_seed


class MovingBaseline(Evaluator):
    """Trains candidates from scratch, each on one of several windows of the training rows, and compares them with a
    baseline that is trained on the same window.

    Windows follow each other in time. Which one a candidate gets depends on the search's seed and the candidate alone;
    what is hard or old in it is so for the baseline too, and cancels in `ne_gain`.

    Metrics: ne_gain, NE / the baseline's NE - 1, below 0 for what is better; those of FromScratch; window.

    Args:
        baseline: Model section of the baseline: {class_path: DLRM}.
        windows: Number of windows.
        scratch: How models are trained; its `rows` are those of a window.
    """

    measures = ("ne_gain", *METRICS, "window", "seconds")

    def __init__(self, baseline: dict[str, Any], windows: int = 1, scratch: FromScratch | None = None) -> None:
        self.scratch = scratch or FromScratch(rows=100_000)
        if windows < 1 or self.scratch.rows is None:
            raise RecloomError("MovingBaseline needs windows of a known size", "Give windows >= 1 and scratch.rows.")
        self.baseline, self.windows = baseline, windows

    def setup(self, context: SearchContext) -> None:
        """Prepare for a search; rows are read, and baselines trained, when they are needed."""
        super().setup(context)
        self.scratch.setup(context)
        mention.load_mentioned(list(mention.strings(self.baseline)))
        self._rows: list[list[Any]] = []

    @property
    def samples_trained(self) -> int:  # type: ignore[override]
        """Samples that candidates and baselines have seen."""
        return self.scratch.samples_trained

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Train and measure the candidates one after the other."""
        return [self._evaluate(self.context.space.canonical(genotype)) for genotype in genotypes]

    def release(self) -> None:
        """Forget the rows."""
        self.scratch.release()
        self._rows = []

    def _evaluate(self, genotype: Genotype) -> dict[str, float]:
        window = candidate_seed(self.context.seed, genotype, 1) % self.windows
        base = self._baseline(window)
        outcome = self._train(window, lambda: self.scratch.train(genotype))
        if outcome.reason:
            self.reasons[genotype] = outcome.reason
        gain = outcome.metrics["ne"] / base - 1
        return {"ne_gain": gain, **outcome.metrics, "window": float(window), "seconds": outcome.seconds}

    def _baseline(self, window: int) -> float:
        """Return the baseline's NE, trained on a window; kept in the search's folder."""
        facts = (self.context.seed, self.windows, self.scratch.rows, self.scratch.batch_size, self.scratch.epochs)
        key = hashlib.sha256(repr((facts, self.baseline)).encode()).hexdigest()[:12]
        path = self.context.folder / "baseline" / f"{key}-{window}.json"
        if path.exists():
            return float(json.loads(path.read_text())["ne"])

        def build() -> Any:
            return instantiate_model(self.baseline, self.context.schema)

        outcome = self._train(window, lambda: self.scratch.run(build, candidate_seed(self.context.seed, (), window)))
        ne = outcome.metrics["ne"]
        if not math.isfinite(ne):
            raise RecloomError(f"the baseline diverged: {outcome.reason}", "Lower its learning rate.")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"ne": ne}) + "\n")
        return ne

    def _train(self, window: int, train: Any) -> Any:
        if not self._rows:
            self._rows = self._read()
        self.scratch.train_on(self._rows[window])
        return train()

    def _read(self) -> list[list[Any]]:
        """Return the batches of each window: equal parts of the training rows, in their order."""
        data, size = self.context.data, self.scratch.batch_size or self.context.data.batch_size
        assert self.scratch.rows is not None
        batches = read_batches(data, "train", size, self.scratch.rows * self.windows)
        batches = [batch for batch in batches if len(batch) == size]
        each = len(batches) // self.windows
        if not each:
            raise RecloomError(f"{self.windows} windows of less than a batch", "Give fewer windows, or more rows.")
        return [batches[each * window : each * (window + 1)] for window in range(self.windows)]
