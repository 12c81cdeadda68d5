"""The trials of a study as the storage has them: read step by step, written so that being killed does no harm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from recloom.errors import DataError
from recloom.search import trials as records
from recloom.search.heartbeat import Heartbeat
from recloom.search.method import Observation
from recloom.search.objective import Objective
from recloom.search.space import SearchSpace
from recloom.search.storage import Worker, open_storage, quiet
from recloom.search.trials import Record


class Ledger:
    """Opens or creates an Optuna study and keeps its trials.

    A number of the search may have several trials: those whose worker died, those of a worker that was not the first
    to take the number (where the storage has no lock), and one that counts, the first of the others.

    Args:
        storage: An SQLite file, or a database URL.
        name: The study's name.
        space: The search space.
        objective: What is minimised.
        grace: Seconds without a sign of life after which a worker on another machine counts as dead.

    Raises:
        RecloomError: The storage cannot be opened, or its study is about another space or objective.
        DataError: A trial is damaged.
    """

    def __init__(self, storage: str | Path, name: str, space: SearchSpace, objective: Objective, grace: float) -> None:
        self.space, self.objective = space, objective
        self.storage, self.lock = open_storage(storage)
        self._where = str(storage)
        with self.lock, quiet(), readable(self._where):
            study = optuna.create_study(
                storage=self.storage,
                study_name=name,
                directions=["minimize"] * len(objective.minimize),
                load_if_exists=True,
            )
            stored = study.user_attrs
            for key, value in records.check_same(stored, space, objective, name).items():
                if key not in stored:
                    study.set_user_attr(key, value)
            if not stored:
                study.set_metric_names(list(objective.minimize))
        self._id = self.storage.get_study_id_from_name(name)
        self._distributions = records.distributions(space)
        self._records: dict[int, Record] = {}
        self.slots: dict[int, Record] = {}
        self.worker = Worker()
        self._seal = records.SEAL + self.worker.name
        self.heartbeat = Heartbeat(self.storage, grace)
        self.mine: set[int] = set()

    def read(self) -> None:
        """Take notice of what changed in the storage."""
        with readable(self._where):
            for trial in self.storage.get_all_trials(self._id, deepcopy=False):
                old = self._records.get(trial.number)
                if old is None or not old.state.is_finished():
                    self._records[trial.number] = records.read(trial, self.space, self.objective)
        self.slots = {}
        for number in sorted(self._records):
            record = self._records[number]
            if record.number >= 0 and (record.final or record.running):
                self.slots.setdefault(record.number, record)

    def last(self) -> Record | None:
        """Return a trial of the largest number of the search."""
        return max(self._records.values(), key=lambda r: (r.number, r.trial), default=None)

    def orphans(self) -> list[Record]:
        """Return trials whose number nobody has finished or is trying, one for each number."""
        found = {r.number: r for r in self._records.values() if r.number >= 0 and r.number not in self.slots}
        return [found[number] for number in sorted(found)]

    def dead(self, record: Record) -> bool:
        """Return whether nobody works on the trial any more."""
        if record.worker == self.worker.name:
            return record.trial not in self.mine
        return self.heartbeat.dead(record)

    def gone(self, record: Record) -> bool:
        """Return whether the worker that added a trial, of whatever state, is dead."""
        return record.worker != self.worker.name and self.heartbeat.dead(record)

    def bury(self) -> None:
        """Mark as failed what is running and whose worker is dead."""
        lost = [r for r in self._records.values() if r.running and r.number >= 0 and r.copy_of < 0 and self.dead(r)]
        for record in lost:
            self.finish(record.trial, TrialState.FAIL, {})
        if lost:
            self.read()

    def settle(self) -> None:
        """Finish running trials that wait for the result of another one with the same model."""
        waiting = [r for r in self._records.values() if r.running and r.copy_of >= 0]
        done = [(r, self.slots[r.copy_of]) for r in waiting if r.copy_of in self.slots and self.slots[r.copy_of].final]
        for record, source in done:
            if source.observation is None:
                self.finish(record.trial, TrialState.FAIL, {records.ERROR: source.error})
            else:
                o = source.observation
                self.finish(record.trial, TrialState.COMPLETE, copied(o), o.values, o.excess)
        if done:
            self.read()

    def add(
        self,
        number: int,
        batch: tuple[int, int],
        genotype: tuple[int, ...],
        attributes: Mapping[str, Any],
        values: tuple[float, ...] | None = None,
        excess: tuple[float, ...] = (),
    ) -> int | None:
        """Add a trial, running or (with `values`) complete, in one transaction.

        Returns:
            Optuna's number of it; None if another worker took the number first.
        """
        choices = zip(self.space.choices, genotype, strict=True)
        sealed = {} if values is None else {self._seal: records.seal(number, genotype, values)}
        template = create_trial(
            state=TrialState.RUNNING if values is None else TrialState.COMPLETE,
            values=values,
            params={choice.name: option for choice, option in choices},
            distributions=self._distributions,
            user_attrs={records.WORKER: self.worker.name, **attributes},
            system_attrs={records.NUMBER: number, records.BATCH: list(batch), records.BEAT: 0, **sealed},
            constraints=dict(zip(self.objective.limits, excess, strict=False)),
        )
        trial_id = self.storage.create_new_trial(self._id, template)
        trial = self.storage.get_trial_number_from_id(trial_id)
        if values is None and records.COPY not in attributes:
            self.mine.add(trial)
            self.heartbeat.hold(trial_id)
        self.read()
        if self.slots[number].trial == trial:
            return trial
        if values is None:
            self.finish(trial, TrialState.FAIL, {})
        return None

    def finish(
        self,
        trial: int,
        state: TrialState,
        attributes: Mapping[str, Any],
        values: tuple[float, ...] | None = None,
        excess: tuple[float, ...] = (),
    ) -> bool:
        """End a running trial; return False if it had ended already, by another worker."""
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(self._id, trial)
        limits = create_trial(state=TrialState.FAIL, constraints=dict(zip(self.objective.limits, excess, strict=False)))
        self.mine.discard(trial)
        self.heartbeat.release(trial_id)
        try:
            for key, value in attributes.items():
                self.storage.set_trial_user_attr(trial_id, key, value)
            mine, sealed = self._records[trial], {}
            if values is not None:
                sealed[self._seal] = records.seal(mine.number, mine.genotype, values)
            for key, value in {**limits.system_attrs, **sealed}.items():
                self.storage.set_trial_system_attr(trial_id, key, value)
            return self.storage.set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            return False

    def close(self) -> None:
        """Let others have what this worker has not finished."""
        for trial in list(self.mine):
            self.finish(trial, TrialState.FAIL, {})
        self.heartbeat.close()
        self.worker.close()


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Name the storage in errors about damaged trials, and in what its library says of damaged bytes."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {error.message}", error.hint) from error
    except (
        SQLAlchemyError,
        StorageInternalError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:  # by which bytes are wrong
        cause = str(error).split("\n")[0]
        raise DataError(f"{where}: the study cannot be read: {cause}", "Take it from a backup.") from error


def copied(observation: Observation) -> dict[str, Any]:
    """Return the attributes of a trial that takes over a result."""
    metrics = {name: value for name, value in observation.metrics.items() if name != "seconds"}
    flags: dict[str, Any] = {records.COPY: observation.number}
    if observation.diverged:
        flags[records.DIVERGED] = True
    if not observation.evaluated:
        flags[records.INFEASIBLE] = True
    return {**records.written(metrics), **flags}
