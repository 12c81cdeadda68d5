"""The page of `recloom reproduce all`: every paper, every claim, the published figure, ours, held or not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recloom import machine
from recloom.document import Report, write_text
from recloom.experiment import CLAIM_HEADER, Budget, claim_table

if TYPE_CHECKING:
    from recloom.reproduction import Job


def write_page(found: Sequence[Job], out: Path, budget: Budget, seeds: str, seconds: float) -> None:
    """Write `out`/report.html, with the plots, and `out`/claims.json.

    Args:
        found: The jobs, as they ended.
        out: The folder.
        budget: What was asked for.
        seeds: Likewise.
        seconds: Time that the run took.
    """
    report = Report("Every paper, every claim", f"Budget {budget}, seeds {seeds}; {machine.line()}")
    rows = []
    for job in found:
        judged = job.rows
        held = sum(row["holds"] for row in judged)
        minutes = max((row["seconds"] for row in judged), default=0.0) / 60
        spent = f"{job.cpu_seconds / 60:.1f}" if job.cpu_seconds else ""
        state = job.state if job.failure else f"{held} of {len(judged)}"
        paper = job.experiment.paper if job.experiment else ""
        rows.append((job.name, paper, state, f"{minutes:.1f}", spent))
    report.table(("experiment", "paper", "claims that hold", "minutes", "CPU minutes"), rows)
    for job in found:
        report.section(job.name)
        if job.experiment:
            settled = job.experiment.settled(budget)
            scope = f"Budget {settled}: {job.experiment.scope[settled]}"
            for text in (job.experiment.paper, job.experiment.summary, scope):
                report.text(text)
        if job.failure:
            told = "Not measured, for want of time" if job.late else "It failed"
            report.text(f"{told}: {job.failure}" + (f" (see `{job.log}`)." if job.log.exists() else "."))
        report.table(CLAIM_HEADER, claim_table(job.rows))
        for path in sorted((job.out / "figures").glob("*.svg")) if job.rows else ():
            report.plot(f"{job.name}-{path.stem}", path.read_text(encoding="utf-8"), f"{job.name}: {path.stem}")
        report.text(f"More in `{job.name}/report.html`.")
    report.section("Where and with what")
    used = sum(job.cpu_seconds for job in found)
    took = {"minutes": round(seconds / 60, 1), "CPU minutes": round(used / 60, 1)}
    report.facts({**took, **machine.facts(), **machine.versions()})
    if any(job.before for job in found):
        report.text("These minutes are of this run, which went on: what was measured before is not in them.")
    report.save(out)
    claims = {job.name: {"failure": job.failure, "claims": job.rows} for job in found}
    write_text(out / "claims.json", json.dumps(claims, indent=1) + "\n")
