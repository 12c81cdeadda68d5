"""`recloom reproduce all`: every experiment in a process of its own, some side by side, and one page of all claims."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recloom.catalog import Entry
from recloom.document import write_text
from recloom.errors import ComponentImportError
from recloom.experiment import Budget, Experiment
from recloom.plugins import catalog
from recloom.reproduction_page import write_page

STARTED = "started.json"
"""What a run that has not ended yet was asked for; experiments that are done are not repeated while it is there."""
GRACE = 20.0
"""Seconds that an experiment has to put away what it made (processes, networks) when it is interrupted."""


@dataclass
class Job:
    """An experiment of the run.

    Args:
        name: Its registered name.
        experiment: The experiment; None where it cannot be imported.
        out: Its folder.
        command: What runs it.
    """

    name: str
    experiment: Experiment | None
    out: Path
    command: list[str]
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    started: float = field(default=0.0, init=False)
    seconds: float = field(default=0.0, init=False)
    cpu_seconds: float = field(default=0.0, init=False)
    failure: str = field(default="", init=False)
    late: bool = field(default=False, init=False)
    before: bool = field(default=False, init=False)
    done: bool = field(default=False, init=False)

    @property
    def alone(self) -> bool:
        """Whether nothing may run beside it."""
        return self.experiment is not None and self.experiment.processors > 1

    @property
    def log(self) -> Path:
        """The file with what the experiment says."""
        return self.out / "log.txt"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The judged claims; none before it is done."""
        found: list[dict[str, Any]] = json.loads((self.out / "claims.json").read_text()) if self.done else []
        return found

    @property
    def state(self) -> str:
        """One line: where it is."""
        if self.failure:
            return f"{'out of time' if self.late else 'failed'}: {self.failure}"
        if self.process is not None:
            return _last_line(self.log) or "starting"
        if not self.done:
            return "waits"
        rows = self.rows
        return f"{sum(row['holds'] for row in rows)} of {len(rows)} claims hold"


def reproduce_all(
    out: Path,
    budget: Budget,
    seeds: str,
    jobs: int,
    watch: Callable[[Sequence[Job]], None],
    minutes: float | None = None,
    period: float = 0.5,
) -> list[Job]:
    """Run every registered experiment, and write `out`/report.html; return what became of them.

    A run that was interrupted, that ran out of time, or in which an experiment failed, goes on: what it finished is
    kept, and the others go on after their last measurement. A run that ended starts anew.

    Args:
        out: The folder; each experiment has one in it.
        budget: "small", "medium" or "full".
        seeds: "0,1,2".
        jobs: Most experiments at a time, of those that need one processor.
        watch: Called every `period` seconds, and at the end, with the jobs.
        minutes: When to stop, and to say so on the page, of what has not ended; None: never.
        period: Seconds.
    """
    found = [_job(entry, out, budget, seeds) for entry in catalog().experiments]
    asked = {"budget": budget, "seeds": seeds}
    marker = out / STARTED
    goes_on = marker.exists() and json.loads(marker.read_text()) == asked
    out.mkdir(parents=True, exist_ok=True)
    write_text(marker, json.dumps(asked))
    waiting: list[Job] = []
    for job in found:
        job.before = job.done = goes_on and (job.out / "claims.json").exists()
        if not job.before and not job.failure:
            waiting.append(job)
    # those that need more than one processor come last, when nothing runs beside them
    waiting.sort(key=lambda job: (job.alone, job.name))
    start = time.monotonic()
    _run(found, waiting, jobs, watch, minutes, period)
    write_page(found, out, budget, seeds, time.monotonic() - start)
    if not any(job.failure for job in found):
        marker.unlink()
    return found


def _job(entry: Entry, out: Path, budget: str, seeds: str) -> Job:
    folder = out / entry.name
    options = ["--budget", budget, "--seeds", seeds, "--out", str(folder)]
    command = [sys.executable, "-m", "recloom.cli.main", "reproduce", entry.name, *options]
    try:
        return Job(entry.name, entry.load()(), folder, command)
    except ComponentImportError as error:
        job = Job(entry.name, None, folder, command)
        job.failure = error.message
        return job


def _run(
    found: Sequence[Job],
    waiting: list[Job],
    jobs: int,
    watch: Callable[[Sequence[Job]], None],
    minutes: float | None,
    period: float,
) -> None:
    end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    running: list[Job] = []
    try:
        while waiting or running:
            if time.monotonic() >= end:
                _stop(running, waiting, minutes)
                waiting = []
            while waiting and _fits(waiting[0], running, jobs):
                running.append(_started(waiting.pop(0), jobs))
            watch(found)
            time.sleep(period)
            for job in [job for job in running if _ended(job)]:
                running.remove(job)
        watch(found)
    finally:  # also when interrupted: nothing is left running
        _interrupt(running)


def _started(job: Job, jobs: int) -> Job:
    """Start a job: with one thread, unless nothing will run beside it."""
    job.out.mkdir(parents=True, exist_ok=True)
    environment = os.environ if job.alone or jobs == 1 else {**os.environ, "OMP_NUM_THREADS": "1"}
    job.started = time.monotonic()
    with job.log.open("wb") as log, _interruptible():
        job.process = subprocess.Popen(
            job.command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    return job


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let processes started in here answer SIGINT, also where this one was started to ignore it (`nohup ... &`)."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _ended(job: Job) -> bool:
    """Return whether the process of a job has ended; note how, and what it took."""
    assert job.process is not None
    before = _cpu_seconds()
    code = job.process.poll()
    if code is None:
        return False
    job.cpu_seconds = _cpu_seconds() - before  # of the one process that was waited for now, and its children
    job.seconds, job.process, job.done = time.monotonic() - job.started, None, not code and not job.failure
    if code and not job.failure:
        job.failure = _last_line(job.log) or f"exit code {code}"
    return True


def _cpu_seconds() -> float:
    """Return the CPU time of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _stop(running: list[Job], waiting: Sequence[Job], minutes: float | None) -> None:
    """End what runs, for the time is over."""
    for job in running:
        took = (time.monotonic() - job.started) / 60
        job.failure = f"stopped after {took:.1f} minutes, when the run's {minutes:g} were over: {_last_line(job.log)}"
    for job in waiting:
        job.failure = f"not begun, when the run's {minutes:g} minutes were over"
    for job in [*running, *waiting]:
        job.late = True
    _interrupt(running)


def _interrupt(jobs: Sequence[Job]) -> None:
    """Interrupt jobs as Ctrl-C would; end what is left of their processes after a while."""
    processes = [job.process for job in jobs if job.process is not None]
    for process in processes:
        process.send_signal(signal.SIGINT)
    end = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _fits(job: Job, running: Sequence[Job], jobs: int) -> bool:
    if any(other.alone for other in running):
        return False
    return not running if job.alone else len(running) < jobs


def _last_line(log: Path) -> str:
    """Return the last line that is not empty of a log, without the escapes of a terminal."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = [line.strip() for line in file.read().decode(errors="replace").replace("\r", "\n").split("\n")]
    return next((line for line in reversed(lines) if line), "")
