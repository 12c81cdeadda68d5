"""The sizes of the comparison behind `recloom reproduce pim`, and how it searches and trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recloom.data.module import BlockDataModule
from recloom.features import FeatureSchema
from recloom.optim import OptimizerConfig
from recloom.plugins import catalog
from recloom.search.costs import AnalyticCost
from recloom.search.evaluator import SearchContext
from recloom.search.evaluators.scratch import FromScratch
from recloom.search.evaluators.supernet import SupernetEvaluator
from recloom.search.method import SearchMethod
from recloom.search.objective import Objective
from recloom.search.run import Search, SearchRun
from recloom.search.space import SearchSpace
from recloom_pim.cost import PIMCost
from recloom_pim.quantise import Device

# as published, but for faster embeddings: there are few rows. Adam without layer normalisations, which trains the
# supernet to a lower NE, was tried: on seed 0 the models that it ranks first are worse from scratch
SUPERNET = OptimizerConfig("Adagrad", 0.12, {"eps": 1e-2}, "adagrad", 0.5, 1e-2, clip_norm=5.0)

# few ids: whatever is planted is found by every training, so that the NE of two models can be compared to 0.1%; with
# the generator's defaults a training misses a pair now and then, and trainings of one model differ by up to 1.8%
WORLD: dict[str, Any] = {
    "cardinalities": (12, 12, 12, 12, 8, 8, 8, 8),
    "multi_hot": {},
    "num_pairs": 4,
    "pair_rank": 1,
    "interaction": 0.6,
    "signal": 1.8,
}


@dataclass(frozen=True)
class Setting:
    """Sizes of one budget.

    Args:
        blocks: Blocks of a model.
        dense_dims: Widths of features to choose from.
        sparse_dims: Numbers of tokens to choose from.
        rows: Training, validation and test rows.
        steps: Steps of a supernet, of 512 rows.
        trials: Candidates of a search.
        finetune_steps: Steps of fine-tuning a candidate's last layer.
        retrain: Candidates of the search by accuracy that are trained from scratch.
        retrain_together: Candidates of the co-search that are; they are smaller, and take about as long together.
        epochs: Passes over the training rows from scratch.
        repeats: Further trainings of the reference and of the design.
        device: Imperfections of cells.
    """

    blocks: int
    dense_dims: tuple[int, ...]
    sparse_dims: tuple[int, ...]
    rows: tuple[int, int, int]
    steps: int
    trials: int
    finetune_steps: int = 30
    retrain: int = 5
    retrain_together: int = 20
    epochs: int = 3
    repeats: int = 3
    device: Device = field(default_factory=lambda: Device(variation=0.02, stuck_off=0.001, stuck_on=0.0001))

    @property
    def scratch_steps(self) -> int:
        """Steps of a training from scratch."""
        return self.epochs * (self.rows[0] // 512)

    @property
    def exact_steps(self) -> int:
        """Those of them before crossbars take over: half."""
        return self.scratch_steps // 2

    def space(self) -> SearchSpace:
        """Return the space of models."""
        kind: Any = catalog().search_spaces.load("NASRecSpace")
        found: SearchSpace = kind("small", self.blocks, dense_dims=self.dense_dims, sparse_dims=self.sparse_dims)
        return found

    def data(self, seed: int) -> BlockDataModule:
        """Return the clicks of a seed."""
        clicks: Any = catalog().datamodules.load("SyntheticClicks")
        found: BlockDataModule = clicks(*self.rows, batch_size=512, seed=seed, **WORLD)
        return found

    def context(self, seed: int, folder: Path) -> SearchContext:
        """Return what trainings outside of a search work with."""
        space, data = self.space(), self.data(seed)
        schema = FeatureSchema.from_dict(data.schema)
        return SearchContext(space, data, schema, Objective(), [PIMCost()], folder, seed, lambda message: None)

    def search(
        self,
        space: SearchSpace,
        method: SearchMethod,
        seed: int,
        folder: Path,
        objective: Objective,
    ) -> SearchRun:
        """Search `space` on the seed's data; return the search, with its trials done."""
        evaluator = SupernetEvaluator(
            self.steps,
            rows=self.rows[0],
            optimizer=SUPERNET,
            finetune_steps=self.finetune_steps,
            eval_rows=min(self.rows[1], 16_000),
        )
        search = Search(
            space,
            self.data(seed),
            method,
            evaluator,
            objective,
            [AnalyticCost(), PIMCost()],
            self.trials,
            batch=16,
            seed=seed,
            retrain=0,
        )
        return search.run(folder, progress=False, finish=False)

    def scratch(self, context: SearchContext) -> FromScratch:
        """Return how models are trained from scratch."""
        scratch = FromScratch(rows=self.rows[0], epochs=self.epochs, optimizer=_adam(self.scratch_steps))
        scratch.setup(context)
        return scratch


def _adam(steps: int) -> OptimizerConfig:
    """Return the optimizers of a training of `steps` steps, whose learning rates fall to zero from 0.3 of them on."""
    found = OptimizerConfig("Adam", 0.003, sparse="adagrad", sparse_lr=0.2, sparse_eps=1e-2, clip_norm=1.0)
    found.decay_start, found.decay_steps = int(0.3 * steps), steps - int(0.3 * steps)
    return found
