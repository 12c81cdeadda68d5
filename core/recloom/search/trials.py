"""How a candidate is written as an Optuna trial, and read back."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from recloom.errors import DataError, RecloomError
from recloom.search.method import Observation
from recloom.search.objective import Objective
from recloom.search.space import Genotype, SearchSpace

# user attributes; all others are metrics
WORKER, METHOD, DIVERGED, INFEASIBLE, COPY, ERROR = "worker", "method", "diverged", "infeasible", "copy_of", "error"
RESERVED = (WORKER, METHOD, DIVERGED, INFEASIBLE, COPY, ERROR)
# system attributes
NUMBER, BATCH, BEAT = "recloom:number", "recloom:batch", "recloom:beat"
SEAL = "recloom:seal:"  # and the worker that wrote it: two may, of which one finishes the trial
SPACE, OBJECTIVE = "recloom:space", "recloom:objective"


@dataclass(frozen=True)
class Record:
    """A trial as the storage has it.

    Args:
        trial: Optuna's number of it.
        state: Its state.
        number: Its number in the search; -1 for a trial that is not one of ours.
        batch: The first number of the candidates that were asked for together, and how many they are to be.
        genotype: What is tried.
        worker: Who tries it.
        beat: A counter that its worker raises as long as it lives.
        copy_of: The number of the search whose result it takes over; -1: none.
        error: Why it failed; empty for a trial that was lost and is to be tried again.
        observation: Its result, once it is complete.
    """

    trial: int
    state: TrialState
    number: int
    batch: tuple[int, int]
    genotype: Genotype
    worker: str
    beat: int
    copy_of: int
    error: str
    observation: Observation | None

    @property
    def final(self) -> bool:
        """Whether it has an end that counts: a result, or an error of the candidate."""
        return self.state == TrialState.COMPLETE or bool(self.state == TrialState.FAIL and self.error)

    @property
    def running(self) -> bool:
        """Whether it is being tried."""
        return self.state == TrialState.RUNNING


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Return Optuna's view of the choices: integers, ordered or not, by the choices' names."""
    return {
        choice.name: IntDistribution(0, len(choice.options) - 1)
        if choice.ordered
        else CategoricalDistribution(range(len(choice.options)))
        for choice in space.choices
    }


def read(trial: FrozenTrial, space: SearchSpace, objective: Objective) -> Record:
    """Return what a trial says."""
    if not any(name.startswith("recloom:") for name in trial.system_attrs):  # added by hand
        return Record(trial.number, trial.state, -1, (-1, 0), (), "", 0, -1, "", None)
    system, user = trial.system_attrs, trial.user_attrs
    genotype = tuple(int(trial.params[choice.name]) for choice in space.choices)
    number = system[NUMBER]
    observation = None
    if trial.state == TrialState.COMPLETE:
        _check_seal(trial, number, genotype)
        constraints = trial.constraints
        observation = Observation(
            number,
            genotype,
            tuple(trial.values),
            tuple(constraints.get(name, 0.0) for name in objective.limits),
            {k: math.nan if v is None else v for k, v in user.items() if k not in RESERVED},
            INFEASIBLE not in user,
        )
    return Record(
        trial.number,
        trial.state,
        number,
        (system[BATCH][0], system[BATCH][1]),
        genotype,
        user.get(WORKER, ""),
        system.get(BEAT, 0),
        user.get(COPY, -1),
        user.get(ERROR, ""),
        observation,
    )


def seal(number: int, genotype: Genotype, values: Sequence[float]) -> str:
    """Return the checksum of a result: the trial's number in the search, what was tried, the values that came out."""
    return hashlib.sha256(repr((number, list(genotype), list(map(float, values)))).encode()).hexdigest()[:32]


def _check_seal(trial: FrozenTrial, number: int, genotype: Genotype) -> None:
    """Raise DataError unless a complete trial has the checksum of its result; another worker's may be there, too."""
    seals = [value for name, value in trial.system_attrs.items() if name.startswith(SEAL)]
    if seal(number, genotype, trial.values) not in seals:
        raise DataError(
            f"trial {trial.number} is damaged: its checksum is not that of its result",
            "Take the study from a backup, or begin a new one.",
        )


def written(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return metrics as attributes; what is no finite number is null, for JSON has none.

    Raises:
        RecloomError: A metric has the name of another attribute.
    """
    for name in metrics:
        if name in RESERVED:
            raise RecloomError(f"a metric is named {name!r}", f"These names are taken: {', '.join(RESERVED)}")
    return {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}


def check_same(stored: Mapping[str, Any], space: SearchSpace, objective: Objective, name: str) -> dict[str, Any]:
    """Return the attributes that tell what a study is about, after comparing them with those it has.

    Raises:
        RecloomError: The study is about another space or objective.
    """
    choices = {c.name: [*map(_plain, c.options)] for c in space.choices}
    limits = {"limits": dict(objective.limits)}
    penalties = {n: [p.target, p.weight, p.one_sided] for n, p in objective.penalties.items()}
    goal = {"minimize": list(objective.minimize), "penalties": penalties, **limits}
    fresh = {SPACE: _plain([[n, options] for n, options in choices.items()]), OBJECTIVE: _plain(goal)}
    if SPACE in stored and stored[SPACE] != fresh[SPACE]:
        theirs = dict(stored[SPACE])
        differ = [n for n in [*theirs, *choices] if theirs.get(n) != choices.get(n)] or ["order of the choices"]
        raise RecloomError(
            f"study {name!r} searches another space: the first difference is {differ[0]!r}, "
            f"{theirs.get(differ[0], 'absent')} in the study and {choices.get(differ[0], 'absent')} here",
            "Give the search another name or folder, or the space the options it had.",
        )
    if OBJECTIVE in stored and stored[OBJECTIVE] != fresh[OBJECTIVE]:
        key = next(k for k in goal if stored[OBJECTIVE].get(k) != fresh[OBJECTIVE][k])
        raise RecloomError(
            f"study {name!r} has another objective: {key} is {stored[OBJECTIVE].get(key)} in the study "
            f"and {fresh[OBJECTIVE][key]} here",
            "Give the search another name or folder, or the objective it had.",
        )
    return fresh


def _plain(value: Any) -> Any:
    """Return `value` as JSON gives it back."""
    return json.loads(json.dumps(value))
