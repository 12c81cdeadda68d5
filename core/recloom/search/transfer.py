"""What an earlier search leaves to a new one: its finished trials, and trained weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from recloom import checkpoint
from recloom.errors import RecloomError
from recloom.search import trials as records
from recloom.search.objective import Objective
from recloom.search.space import Genotype, SearchSpace
from recloom.search.storage import open_storage


@dataclass(frozen=True)
class Earlier:
    """A trial of an earlier search.

    Args:
        genotype: What was tried, as a genotype of the present space.
        values: What is minimised now; infinite if it diverged.
    """

    genotype: Genotype
    values: tuple[float, ...]


def earlier_trials(folder: str | Path, space: SearchSpace, objective: Objective) -> list[Earlier]:
    """Return the evaluated trials of the search in `folder` that are models of `space`, by the order of the trials.

    Choices are matched by name and options by value, so that the earlier space may have had other options; a trial with
    an option that the present space lacks is left out, and so is one without a metric that is minimised now.

    Raises:
        RecloomError: There is no study there.
    """
    path = Path(folder) / "study.db"
    if not path.exists():
        raise RecloomError(f"{path}: there is no study", "Name the folder of a search, such as runs/search-NAME.")
    storage, _ = open_storage(path)
    found: list[Earlier] = []
    for study in storage.get_all_studies():
        options = dict(study.user_attrs.get(records.SPACE, []))
        for trial in storage.get_all_trials(study._study_id, deepcopy=False):
            if trial.state == TrialState.COMPLETE and records.INFEASIBLE not in trial.user_attrs:
                genotype = _genotype(trial, options, space)
                values = _values(trial, objective)
                if genotype is not None and values is not None:
                    found.append(Earlier(genotype, values))
    return found


def _genotype(trial: FrozenTrial, options: dict[str, list[object]], space: SearchSpace) -> Genotype | None:
    found = []
    for choice in space.choices:
        known = json.loads(json.dumps(choice.options))
        place = trial.params.get(choice.name)
        value = options[choice.name][int(place)] if place is not None and choice.name in options else known[0]
        if value not in known:
            return None
        found.append(known.index(value))
    genotype = tuple(found)
    return genotype if space.valid(genotype) else None


def _values(trial: FrozenTrial, objective: Objective) -> tuple[float, ...] | None:
    metrics = {n: float("nan") if v is None else v for n, v in trial.user_attrs.items() if n not in records.RESERVED}
    needed: Sequence[str] = [*objective.minimize, *objective.penalties]
    return objective.values(metrics) if all(name in metrics for name in needed) else None


@torch.no_grad()
def load_matching(module: nn.Module, path: str | Path) -> tuple[int, int]:
    """Give the parameters and buffers of `module` the values that a checkpoint has under the same names.

    Where sizes differ, the leading part that both have is taken: operators use leading parts of larger weights.

    Returns:
        How many tensors were filled, at least in part, and how many the module has.
    """
    state = checkpoint.read(path).get("state_dict", {})
    own, filled = module.state_dict(), 0
    for name, tensor in own.items():
        other = state.get(name)
        if other is not None and other.ndim == tensor.ndim:
            common = tuple(slice(0, min(a, b)) for a, b in zip(tensor.shape, other.shape, strict=True))
            tensor[common] = other[common].to(tensor.dtype)
            filled += 1
    return filled, len(own)
