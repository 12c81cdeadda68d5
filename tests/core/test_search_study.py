"""The study: killed at any point, shared by workers, and what it does not evaluate."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import optuna
import pytest
import sqlalchemy

from recloom.errors import RecloomError
from recloom.search.method import History, SearchMethod
from recloom.search.methods.evolution import NSGA2, RegularizedEvolution
from recloom.search.methods.optuna import TPE
from recloom.search.methods.random import RandomSearch
from recloom.search.objective import Objective, Penalty
from recloom.search.space import Genotype
from recloom.search.study import Study
from recloom.testing.searching import ToySpace, set_up

SPACE = ToySpace(4)
LOSS = Objective(("loss",))
FORK = multiprocessing.get_context("fork")  # spawned processes would import torch again and again


def open_study(folder: Path, method: SearchMethod | None = None, objective: Objective = LOSS, **options) -> Study:
    method = set_up(method or RandomSearch(), SPACE, objective, options.get("seed", 0))
    return Study(SPACE, objective, method, folder / "study.db", price=SPACE.price, **options)


def run(study: Study, batch: int = 1, log: Path | None = None) -> None:
    """Work until the study is done; write what is begun and told to a log."""
    while not study.done:
        asked = study.ask_many(batch)
        if not asked:
            time.sleep(0.05)
        for one in asked:
            note(log, "begin", one.number)
            study.tell(one, SPACE.metrics(one.genotype))
            note(log, "told", one.number)


def note(log: Path | None, what: str, number: int) -> None:
    if log is not None:
        with log.open("a") as file:
            file.write(f"{what} {number} {os.getpid()}\n")


def work(folder: Path, method: SearchMethod, batch: int, trials: int, die_at: int | None) -> None:
    """What a worker process does; it kills itself before its commit number `die_at`."""
    commits = 0

    def count(connection) -> None:
        nonlocal commits
        commits += 1
        if commits == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", count)
    with open_study(folder, method, trials=trials) as study:
        run(study, batch, folder / "log")


def start(*arguments) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=work, args=arguments)
    process.start()
    return process


def results(folder: Path) -> list[tuple]:
    with open_study(folder) as study:
        return [(o.number, o.genotype, o.values) for o in study.observations()]


@pytest.mark.parametrize("method", [RegularizedEvolution(4, 2, 4), TPE(4)], ids=lambda m: type(m).__name__)
def test_a_worker_that_is_killed_again_and_again_does_what_one_does_that_is_not(tmp_path, method):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    with open_study(whole, method, trials=10) as study:
        run(study, 3)
    rng = np.random.default_rng(0)
    exits = []
    while not exits or exits[-1] != 0:
        process = start(killed, method, 3, 10, int(rng.integers(8, 25)) if len(exits) < 5 else None)
        process.join()
        exits.append(process.exitcode)
    assert exits.count(-signal.SIGKILL) >= 3
    assert results(killed) == results(whole)
    lines = [line.split() for line in (killed / "log").read_text().splitlines()]
    for place, (what, number, _) in enumerate(lines):
        if what == "told":
            assert ["begin", number] not in [line[:2] for line in lines[place + 1 :]]


@pytest.mark.parametrize("lock", ["of a file", "none, as on a database server"])
def test_workers_share_a_study_and_finish_what_a_dead_one_left(tmp_path, monkeypatch, lock):
    open_study(tmp_path).close()
    if lock.startswith("none"):
        monkeypatch.setattr("recloom.search.storage.filelock.FileLock", lambda path: nullcontext())
    workers = [start(tmp_path, RegularizedEvolution(8, 4, 4), 2, 24, die_at) for die_at in (None, None, 40)]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, -signal.SIGKILL]
    assert [number for number, *_ in results(tmp_path)] == list(range(24))
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert len({pid for *_, pid in lines}) >= 2
    dead = str(workers[2].pid)
    begun = Counter(number for what, number, pid in lines if what == "begin" and pid != dead)
    told = {number for what, number, pid in lines if what == "told" and pid == dead}
    assert set(begun.values()) == {1}  # the living evaluated nothing twice
    assert not told & begun.keys()  # nor what the dead one had finished


def test_a_worker_of_another_machine_is_dead_when_its_counter_stands_still(tmp_path):
    first = open_study(tmp_path, trials=2)
    asked = first.ask()
    with closing(sqlite3.connect(tmp_path / "study.db")) as db, db:
        db.execute("UPDATE trial_user_attributes SET value_json = '\"elsewhere|1|1.00|0\"' WHERE key = 'worker'")
    with open_study(tmp_path, trials=2, grace=0.4) as second:
        assert second.ask().number == 1
        assert second.ask() is None
        time.sleep(0.6)
        again = second.ask()
        assert (again.number, again.genotype, again.seed) == (asked.number, asked.genotype, asked.seed)
        assert second.tell(again, SPACE.metrics(again.genotype))
        assert not first.tell(asked, {"loss": 9.0})  # too late: it has been taken over
        assert [o.values[0] for o in second.observations()] == [SPACE.quality(again.genotype)]
    first.close()


def test_what_a_closed_study_had_asked_for_is_asked_for_again(tmp_path):
    with open_study(tmp_path, trials=3) as study:
        asked = study.ask_many(2)
        study.tell(asked[0], {"loss": 0.1})
    with open_study(tmp_path, trials=3) as study:
        assert [a.number for a in study.ask_many(2)] == [1]
        assert [a.number for a in study.ask_many(2)] == [2]


def test_equal_models_are_evaluated_once(tmp_path):
    class Stubborn(SearchMethod):
        redraws = 0

        def ask(self, history: History, rng: np.random.Generator) -> Genotype:
            return SPACE.sample(np.random.default_rng(history.number // 4))

    with open_study(tmp_path, Stubborn(), trials=8) as study:
        first = study.ask_many(3)
        assert [a.number for a in first] == [0]  # 1 and 2 wait for it
        study.tell(first[0], {"loss": 0.3})
        second = study.ask_many(3)
        assert [a.number for a in second] == [4]  # 3 took the result over at once
        study.fail(second[0], "it broke")
        assert study.ask_many(3) == []
        assert study.done
        assert [(o.number, o.values[0]) for o in study.observations()] == [(n, 0.3) for n in range(4)]
        assert study.failures() == {n: "it broke" for n in range(4, 8)}
    with open_study(tmp_path / "drawn_anew", RandomSearch(), trials=8) as study:
        run(study, 4)
        assert len({SPACE.canonical(o.genotype) for o in study.observations()}) == 8


def test_a_diverged_candidate_ranks_last_and_is_marked(tmp_path):
    with open_study(tmp_path, NSGA2(4), Objective(("loss", "macs")), trials=12) as study:
        for number in range(12):
            asked = study.ask()
            study.tell(asked, {"loss": math.nan if number % 3 == 0 else 0.5})
        diverged = [o for o in study.observations() if o.diverged]
        assert [o.number for o in diverged] == [0, 3, 6, 9]
        assert all(o.values[0] == math.inf and math.isnan(o.metrics["loss"]) and o.evaluated for o in diverged)
        assert not {o.number for o in study.front()} & {o.number for o in diverged}
    loaded = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path}/study.db")
    assert [t.user_attrs.get("diverged", False) for t in loaded.trials] == [n % 3 == 0 for n in range(12)]
    assert loaded.metric_names == ["loss", "macs"]
    assert loaded.trials[1].params == dict(
        zip((c.name for c in SPACE.choices), study.observations()[1].genotype, strict=True)
    )


def test_what_costs_too_much_is_not_evaluated(tmp_path):
    tight = Objective(("loss",), limits={"macs": 3000.0, "loss": 0.9})
    with open_study(tmp_path / "ours", objective=tight, trials=6) as study:
        run(study)
        assert all(o.metrics["macs"] <= 3000 for o in study.observations())
    with open_study(tmp_path / "optuna", TPE(4), tight, trials=16) as study:
        run(study)
        above = [o for o in study.observations() if not o.evaluated]
        assert above
        assert all(o.metrics["macs"] > 3000 and o.excess[0] == o.metrics["macs"] / 3000 - 1 for o in above)
        assert not any(o.diverged or o.feasible for o in above)
        assert all(o.evaluated == o.feasible for o in study.observations())
    impossible = Objective(("loss",), limits={"macs": 1.0})
    with open_study(tmp_path / "none", objective=impossible) as study, pytest.raises(RecloomError) as caught:
        study.ask()
    assert "almost nothing of the space keeps the limits (macs <= 1)" in str(caught.value)
    assert "The nearest had macs " in str(caught.value)


def test_another_space_or_objective_is_refused(tmp_path):
    open_study(tmp_path).close()
    with pytest.raises(RecloomError, match=r"another objective: penalties is \{\} in the study"):
        open_study(tmp_path, objective=Objective(("loss",), {"macs": Penalty(10.0)}))
    with pytest.raises(RecloomError, match=r"another space: the first difference is 'block4.kind'"):
        Study(ToySpace(5), LOSS, RandomSearch(), tmp_path / "study.db")
    with pytest.raises(RecloomError, match="cannot be opened"):
        Study(SPACE, LOSS, RandomSearch(), "nosuchdatabase://somewhere/x")
