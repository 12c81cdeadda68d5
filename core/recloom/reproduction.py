"""`recloom reproduce all`: every experiment in a process of its own, some side by side, and one page of all claims."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from recloom import machine
from recloom.catalog import Entry
from recloom.document import Report, write_text
from recloom.errors import ComponentImportError
from recloom.experiment import CLAIM_HEADER, Budget, Experiment, claim_table
from recloom.plugins import catalog

STARTED = "started.json"
"""What a run that has not ended yet was asked for; experiments that are done are not repeated while it is there."""


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
    failure: str = field(default="", init=False)
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
            return f"failed: {self.failure}"
        if self.process is not None:
            return _last_line(self.log) or "starting"
        if not self.done:
            return "waits"
        rows = self.rows
        return f"{sum(row['holds'] for row in rows)} of {len(rows)} claims hold"


def reproduce_all(
    out: Path, budget: Budget, seeds: str, jobs: int, watch: Callable[[Sequence[Job]], None], period: float = 0.5
) -> list[Job]:
    """Run every registered experiment, and write `out`/report.html; return what became of them.

    A run that was interrupted, or in which an experiment failed, goes on: what it finished is kept, and the
    others go on after their last measurement. A run that ended starts anew.

    Args:
        out: The folder; each experiment has one in it.
        budget: "small" or "full".
        seeds: "0,1,2".
        jobs: Most experiments at a time, of those that need one processor.
        watch: Called every `period` seconds, and at the end, with the jobs.
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
    _run(found, waiting, jobs, watch, period)
    write_page(found, out, budget, seeds)
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
    found: Sequence[Job], waiting: list[Job], jobs: int, watch: Callable[[Sequence[Job]], None], period: float
) -> None:
    running: list[Job] = []
    logs: dict[str, IO[bytes]] = {}
    try:
        while waiting or running:
            while waiting and _fits(waiting[0], running, jobs):
                job = waiting.pop(0)
                job.out.mkdir(parents=True, exist_ok=True)
                logs[job.name] = job.log.open("wb")
                alone = job.alone or jobs == 1
                environment = os.environ if alone else {**os.environ, "OMP_NUM_THREADS": "1"}
                job.started = time.monotonic()
                job.process = subprocess.Popen(
                    job.command, stdout=logs[job.name], stderr=subprocess.STDOUT, env=environment
                )
                running.append(job)
            watch(found)
            time.sleep(period)
            for job in list(running):
                process = job.process
                if process is not None and process.poll() is not None:
                    running.remove(job)
                    logs.pop(job.name).close()
                    job.seconds, job.process = time.monotonic() - job.started, None
                    job.done = not process.returncode
                    if process.returncode:
                        job.failure = _last_line(job.log) or f"exit code {process.returncode}"
        watch(found)
    finally:  # also when interrupted: nothing is left running
        for job in running:
            if job.process is not None:
                job.process.terminate()
                job.process.wait()
        for log in logs.values():
            log.close()


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


def write_page(found: Sequence[Job], out: Path, budget: Budget, seeds: str) -> None:
    """Write `out`/report.html: every paper, every claim, the published figure, ours, held or not, with the plots."""
    report = Report("Every paper, every claim", f"Budget {budget}, seeds {seeds}; {machine.line()}")
    rows = []
    for job in found:
        judged = job.rows
        held = sum(row["holds"] for row in judged)
        minutes = max((row["seconds"] for row in judged), default=0.0) / 60
        state = job.failure or f"{held} of {len(judged)}"
        paper = job.experiment.paper if job.experiment else ""
        rows.append((job.name, paper, state, f"{minutes:.1f}"))
    report.table(("experiment", "paper", "claims that hold", "minutes"), rows)
    for job in found:
        report.section(job.name)
        for text in (
            (job.experiment.paper, job.experiment.summary, job.experiment.scope[budget]) if job.experiment else ()
        ):
            report.text(text)
        if job.failure:
            report.text(f"It failed: {job.failure}" + (f" (see `{job.log}`)." if job.log.exists() else "."))
        report.table(CLAIM_HEADER, claim_table(job.rows))
        for path in sorted((job.out / "figures").glob("*.svg")) if job.rows else ():
            report.plot(f"{job.name}-{path.stem}", path.read_text(encoding="utf-8"), f"{job.name}: {path.stem}")
        report.text(f"More in `{job.name}/report.html`.")
    report.section("Where and with what")
    report.facts({**machine.facts(), **machine.versions()})
    report.save(out)
    claims = {job.name: {"failure": job.failure, "claims": job.rows} for job in found}
    write_text(out / "claims.json", json.dumps(claims, indent=1) + "\n")
