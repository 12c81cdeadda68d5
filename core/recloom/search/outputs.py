"""What a search leaves in its folder: found.yaml, trials.csv, search.json, the report."""

from __future__ import annotations

import csv
import inspect
import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from recloom import machine
from recloom.document import write_text
from recloom.search.finish import Trained
from recloom.search.method import Observation

if TYPE_CHECKING:
    from recloom.search.evaluator import SearchContext
    from recloom.search.evaluators.scratch import FromScratch
    from recloom.search.run import Search, SearchRun


def write_outputs(run: SearchRun, search: Search) -> Path:
    """Write every output, each aside first and then renamed; return the report's path."""
    folder = run.context.folder
    write_trials(folder / "trials.csv", run)
    write_text(folder / "search.json", json.dumps(plain(summary(run, search)), indent=1) + "\n")
    _write_found(run, search)
    from recloom.search.report import write_report

    return write_report(run, search)


def write_trials(path: Path, run: SearchRun) -> None:
    """Write a row a finished trial: its number, what was minimised, metrics and costs, the choices."""
    space, objective = run.context.space, run.context.objective
    observations = run.study.observations()
    metrics = list(dict.fromkeys(name for o in observations for name in o.metrics))
    values = [f"value_{name}" for name in objective.minimize]
    header = ["trial", *values, "feasible", "diverged", "evaluated", *metrics, *(c.name for c in space.choices)]
    aside = path.with_name(path.name + ".part")
    with aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for o in observations:
            states = [int(state) for state in (o.feasible, o.diverged, o.evaluated)]
            choices = [
                json.dumps(option) if isinstance(option, list | tuple) else option for option in _options(run, o)
            ]
            writer.writerow([o.number, *o.values, *states, *(o.metrics.get(m, "") for m in metrics), *choices])
    aside.replace(path)


def summary(run: SearchRun, search: Search) -> dict[str, Any]:
    """Return what the search was and found, as JSON values."""
    study, space, finished = run.study, run.context.space, run.finished

    def told(observation: Observation) -> dict[str, Any]:
        architecture = space.to_json(space.canonical(observation.genotype))
        return {"trial": observation.number, "metrics": dict(observation.metrics), "architecture": architecture}

    def trained(model: Trained) -> dict[str, Any]:
        found: dict[str, Any] = {"name": model.name, "val": model.runs, "test": model.test, "costs": model.costs}
        return {**found, "architecture": space.to_json(model.genotype)} if model.genotype else found

    best, failures = study.best(), study.failures()
    return {
        "name": search.name,
        "space": type(space).__name__,
        "log10_size": space.log10_size,
        "method": type(search.method).__name__,
        "evaluator": type(search.evaluator).__name__,
        "objective": asdict(run.context.objective),
        "trials": search.trials,
        "seed": search.seed,
        "finished": len(study.observations()),
        "diverged": sum(o.diverged for o in study.observations()),
        "failures": failures,
        "best": told(best) if best else None,
        "front": [told(o) for o in study.front()],
        "retrained": [trained(model) for model in finished.retrained],
        "baselines": [trained(model) for model in finished.baselines],
        "correlation": finished.correlation,
        "oracle": oracle(run.context),
        "times": run.journal.times(),
        "machine": machine.line(),
        "versions": machine.versions(),
    }


@dataclass(frozen=True)
class _Recipe:
    """How `recloom fit` trains a retrained candidate as the search did."""

    context: SearchContext
    scratch: FromScratch
    config: dict[str, Any]

    def of(self, genotype: tuple[int, ...]) -> dict[str, Any]:
        model = self.context.space.model_config(genotype)
        if self.scratch.optimizer is not None and _takes_optimizer(self.context, genotype):
            model = {**model, "init_args": {**model.get("init_args", {}), "optimizer": asdict(self.scratch.optimizer)}}
        limits: dict[str, Any] = {"max_epochs": self.scratch.epochs, "max_steps": self.scratch.max_steps}
        rows, every = self.scratch.rows, sum(self.context.data.source("train").block_rows(0))
        if rows is not None and rows < every:  # as many batches, which `fit` draws from all rows if it shuffles
            batch_size = self.scratch.batch_size or self.context.data.batch_size
            limits["limit_train_batches"] = max(1, rows // batch_size)
        trainer = {**limits, "num_sanity_val_steps": 0, **self.scratch.trainer}
        found = {"seed_everything": self.context.seed, "trainer": trainer, "model": model}
        data = self.config.get("data")
        if data is None:
            return found
        if self.scratch.batch_size is not None:
            data = {**data, "init_args": {**data.get("init_args", {}), "batch_size": self.scratch.batch_size}}
        return {**found, "data": data}


def _write_found(run: SearchRun, search: Search) -> None:
    """Write found.yaml, the best retrained candidate (or the best of the trials), and one file each in `found`."""
    folder, recipe = run.context.folder, _Recipe(run.context, search.scratch, run.config)
    genotypes = [model.genotype for model in run.finished.retrained]
    if not genotypes and (best := run.study.best()) is not None:
        genotypes = [run.context.space.canonical(best.genotype)]
    if not genotypes:
        return
    for place, genotype in enumerate(genotypes):
        path = folder / "found" / f"{place + 1:02d}.yaml"
        path.parent.mkdir(exist_ok=True)
        write_text(path, _yaml(f"Place {place + 1} of a search.", recipe.of(genotype), f"found/{path.name}"))
    write_text(folder / "found.yaml", _yaml("What a search found.", recipe.of(genotypes[0]), "found.yaml"))
    if run.finished.retrained:
        weights = folder / "weights" / f"{run.finished.retrained[0].key}-0.ckpt"
        if weights.exists():
            aside = folder / "found.ckpt.part"
            shutil.copyfile(weights, aside)
            aside.replace(folder / "found.ckpt")


def oracle(context: SearchContext) -> dict[str, dict[str, float]]:
    """Return the best possible metrics by split, where the data know their true probabilities."""
    from recloom.errors import DataError

    measure = getattr(context.data, "oracle", None)
    found = {}
    for split in ("val", "test") if measure is not None else ():
        try:
            if sum(context.data.source(split).block_rows(0)):
                found[split] = dict(measure(split))  # type: ignore[misc]
        except DataError:
            continue
    return found


def plain(value: Any) -> Any:
    """Return `value` as JSON values: what is no finite number becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _options(run: SearchRun, observation: Observation) -> list[Any]:
    return list(run.context.space.to_json(observation.genotype).values())


def _takes_optimizer(context: SearchContext, genotype: tuple[int, ...]) -> bool:
    model = context.space.build(genotype, context.schema)
    return "optimizer" in inspect.signature(type(model)).parameters


def _yaml(title: str, config: dict[str, Any], path: str) -> str:
    text = yaml.safe_dump(plain(config), sort_keys=False, width=120)
    return f"# {title}\n# recloom fit --config {path}\n{text}"
