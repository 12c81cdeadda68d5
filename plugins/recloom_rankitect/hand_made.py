"""Hand-made models, and a search for one that is as good at half their multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recloom import mention
from recloom.features import FeatureSchema
from recloom.loading import instantiate_model
from recloom.model import RankingModule
from recloom.optim import OptimizerConfig
from recloom.search.evaluators.scratch import FromScratch
from recloom.search.evaluators.together import Together
from recloom.search.lowering import lower
from recloom.search.methods.evolution import RegularizedEvolution
from recloom.search.objective import Objective
from recloom.search.run import Search
from recloom.search.training import candidate_seed
from recloom_rankitect.model import ComposedModel
from recloom_rankitect.space import BlockSpace

ADAM = {"dense": "Adam", "dense_lr": 0.002, "sparse": "rowwise_adagrad", "sparse_lr": 0.05, "clip_norm": 5.0}
MLPS = {"dense_arch": [64, 32], "over_arch": [64, 32], "optimizer": ADAM}
HAND_MADE: dict[str, dict[str, Any]] = {
    "DLRM": {"class_path": "DLRM", "init_args": MLPS},
    "DCN V2": {"class_path": "DLRM", "init_args": {**MLPS, "interaction": "CrossNet"}},
    "Wukong-like": {"class_path": "StackModel", "init_args": {"layers": [{"kind": "wukong"}] * 2}},
    "DHEN-like": {"class_path": "StackModel", "init_args": {"layers": [{"kind": "dhen"}] * 2}},
}


@dataclass(frozen=True)
class Challenge:
    """A search for a model that is as good as the best hand-made one, at half its multiply-accumulates.

    Args:
        trials: Candidates.
        rows: Training rows of each; more than suffice to compare methods, for the models that learn fastest are not
            those that are best in the end.
        eval_rows: Validation rows of each.
        population: Of the evolution.
        retrained: How many of the best are trained on all rows.
        optimizer: Of candidates.
    """

    trials: int
    rows: int
    eval_rows: int
    population: int = 40
    retrained: int = 6
    optimizer: OptimizerConfig | None = None


def challenge(setting: Challenge, data: Any, seed: int, folder: Path, worst: float) -> dict[str, dict[str, Any]]:
    """Train the hand-made models on all rows, search, train what was found; return metrics of test rows, and MACs.

    The search is regularized evolution in BlockSpace for NE alone, under a hard limit: half the MACs of the hand-made
    model with the lowest validation NE. What is above NE `worst` counts as diverged.
    """
    results: dict[str, dict[str, Any]] = {
        name: _trained(name, section, data, seed) for name, section in HAND_MADE.items()
    }
    space, limit = BlockSpace(), results[best_of(results)]["macs"] / 2
    scratch = FromScratch(setting.rows, setting.eval_rows, optimizer=setting.optimizer, ne_bound=worst)
    method = RegularizedEvolution(setting.population, max(1, setting.population // 4), 8)
    search = Search(
        space, data, method, Together(8, scratch), Objective(("ne",), {}, {"macs": limit}), trials=setting.trials,
        batch=8, seed=seed, retrain=0,
    )  # fmt: skip
    study = search.run(folder, progress=False, finish=False).study
    search.evaluator.release()
    good = sorted((o for o in study.observations() if o.measured), key=lambda o: o.values)
    models = list(dict.fromkeys(space.canonical(o.genotype) for o in good))[: setting.retrained]
    for number, genotype in enumerate(models, start=1):
        section, name = space.model_config(genotype), f"found {number}"
        results[name] = {**_trained(name, section, data, seed), "section": section, "schema": data.schema}
    return results


def best_of(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name of the model with the lowest validation NE."""
    return min(models, key=lambda name: models[name]["val_ne"])


def build(section: dict[str, Any], schema: FeatureSchema) -> RankingModule:
    """Return the model of a config's section."""
    mention.load_mentioned(list(mention.strings(section)))
    found: RankingModule = instantiate_model(section, schema)
    return found


def _trained(name: str, section: dict[str, Any], data: Any, seed: int) -> dict[str, float]:
    from recloom.training import train_and_test

    torch.manual_seed(candidate_seed(seed, tuple(name.encode())))
    model = build(section, FeatureSchema.from_dict(data.schema))
    macs = model.program().macs if isinstance(model, ComposedModel) else lower(model).macs
    done = train_and_test(model.train(), data, validations=1, accelerator="auto")
    kept = ("val_ne", "ne", "auc", "logloss", "oracle_ne")
    return {**{key: done.metrics[key] for key in kept if key in done.metrics}, "macs": float(macs)}
