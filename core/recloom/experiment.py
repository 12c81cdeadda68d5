"""Experiments reproduce a paper's claims: they measure, and what they measured is judged against stated targets.

An experiment is registered as `catalog.experiments.add("dlrm", "recloom_dlrm.experiments:DLRMExperiment")` and run by
`recloom reproduce dlrm`, which writes claims.json, report.html and report.md. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
import secrets
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from recloom import __version__, machine
from recloom.claims import CLAIM_HEADER, Claim, Target, claim_table
from recloom.document import Report, write_text

__all__ = ["CLAIM_HEADER", "Budget", "Claim", "Experiment", "Lab", "Target", "claim_table", "run_experiment"]

T = TypeVar("T")
Budget = Literal["small", "medium", "full"]


def _say_nothing(message: str) -> None:
    pass


@dataclass
class Lab:
    """What an experiment works with: its budget, its seeds, a folder, and a memory of what is already measured.

    Args:
        budget: "small" (minutes of a CPU core), "medium" (up to an hour) or "full" (the paper's setting).
        seeds: Seeds to repeat with.
        out: The run's folder, for whatever the experiment wants to keep.
        say: Called with a line of progress.
        fingerprint: What a remembered measurement must have been made with.
        data: A folder with real data to measure on, written by `recloom prepare`; None: generated data.
    """

    budget: Budget
    seeds: Sequence[int]
    out: Path
    say: Callable[[str], None] = _say_nothing
    fingerprint: str = ""
    data: Path | None = None
    _seconds: float = field(default=0.0, init=False)

    def once(self, key: str, measure: Callable[[], T]) -> T:
        """Return `measure()`, which takes a while and gives JSON values; an interrupted run does not repeat it.

        Args:
            key: Name of the measurement: letters, digits, dots and dashes. It holds the seed if the result does.
            measure: Called unless this run has the result.
        """
        if not re.fullmatch(r"[\w.-]+", key):
            raise ValueError(f"measurement {key!r}: a key has letters, digits, dots and dashes")
        path = self.out / "measured" / f"{key}.json"
        if path.exists():
            stored = json.loads(path.read_text())
            if stored["fingerprint"] == self.fingerprint:
                self._seconds += stored["seconds"]
                self.say(f"{key}: measured before, in {stored['seconds']:.1f} s")
                return stored["value"]
        self.say(f"{key} ...")
        start = time.perf_counter()
        # what comes back after an interruption has been through JSON; so has what comes back now
        value = json.loads(json.dumps(measure()))
        seconds = time.perf_counter() - start
        self._seconds += seconds
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"fingerprint": self.fingerprint, "seconds": seconds, "value": value}))
        self.say(f"{key}: {seconds:.1f} s")
        return value

    def each_seed(self, key: str, measure: Callable[[int], T]) -> list[T]:
        """Return `measure(seed)` for every seed, each remembered as `once` does."""
        return [self.once(f"{key}-seed{seed}", lambda seed=seed: measure(seed)) for seed in self.seeds]  # type: ignore[misc]

    @property
    def seconds(self) -> float:
        """Time that the measurements took, those before an interruption included."""
        return self._seconds


class Experiment(ABC):
    """Measures the headline claims of one paper.

    A subclass sets the attributes below and implements `run`.
    """

    paper: str
    """The paper: authors, year, title, identifier."""

    summary: str
    """What is measured, in a sentence or two."""

    scope: dict[Budget, str]
    """What each budget runs, and what its result can and cannot show. One that is short has no medium."""

    processors: int = 1
    """How many processors it wants for itself. `recloom reproduce all` runs experiments of one processor side by side,
    with one thread each; what has several processes, or measures speed, says 2 and runs alone."""

    def settled(self, budget: Budget) -> Budget:
        """Return `budget`, or small for the medium of an experiment that has none."""
        return "small" if budget == "medium" and budget not in self.scope else budget

    @abstractmethod
    def run(self, lab: Lab, report: Report) -> list[Claim]:
        """Measure and return the claims; put tables and plots into `report`.

        Long measurements go through `lab.once` or `lab.each_seed`, so that an interrupted run goes on where it was.
        Only what was measured may become a claim.
        """


def run_experiment(
    name: str,
    experiment: Experiment,
    out: Path,
    budget: Budget = "medium",
    seeds: Sequence[int] = (0,),
    say: Callable[[str], None] = _say_nothing,
    data: Path | None = None,
) -> list[dict[str, Any]]:
    """Run `experiment`; write claims.json, report.html and report.md into `out`; return the contents of claims.json.

    A run that was interrupted (there is no claims.json yet) goes on after its last measurement, if the budget, the
    code and the machine are the same. A finished run is measured anew; its claims stay as claims-previous.json.
    """
    budget = experiment.settled(budget)
    out.mkdir(parents=True, exist_ok=True)
    if (out / "claims.json").exists():
        for path in (out / "measured").glob("*.json"):
            path.unlink()
        (out / "claims.json").replace(out / "claims-previous.json")
    where = machine.line()
    lab = Lab(budget, list(seeds), out, say, _fingerprint(experiment, budget, where, data), data)
    report = Report(f"Reproduction: {name}", experiment.paper)
    start = time.perf_counter()
    report.text(experiment.summary)
    report.text(f"Budget {budget}: {experiment.scope[budget]}")
    body = Report("")
    claims = experiment.run(lab, body)
    twice = [claim.id for claim in claims if [other.id for other in claims].count(claim.id) > 1]
    if twice:
        raise ValueError(f"experiment {name!r} has two claims with id {twice[0]!r}")
    seconds = round(max(lab.seconds, time.perf_counter() - start), 2)
    rows = [_row(claim, lab.seeds, where, seconds) for claim in claims]
    report.section("Claims")
    report.table(CLAIM_HEADER, claim_table(rows))
    report.append(body)
    report.section("Where and with what")
    report.facts({"seeds": ", ".join(map(str, lab.seeds)), "seconds": seconds, **machine.facts(), **machine.versions()})
    report.save(out)
    write_text(out / "claims.json", json.dumps(rows, indent=1) + "\n")
    return rows


def _row(claim: Claim, seeds: Sequence[int], where: str, seconds: float) -> dict[str, Any]:
    measured = float(claim.measured)
    return {
        "id": claim.id,
        "claim": claim.claim,
        "paper": claim.paper,
        "measured": measured if math.isfinite(measured) else None,
        "unit": claim.unit,
        "target": claim.target,
        "holds": bool(claim.holds),
        "seeds": list(seeds),
        "machine": where,
        "seconds": seconds,
    }


def _fingerprint(experiment: Experiment, budget: str, where: str, data: Path | None) -> str:
    try:
        source = inspect.getsource(sys.modules[type(experiment).__module__])
    except (KeyError, OSError, TypeError):  # defined at a prompt: nothing tells whether it has changed
        return secrets.token_hex(8)
    text = "\n".join([__version__, budget, where, str(data), source])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
