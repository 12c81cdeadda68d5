"""Commands that are killed at random moments and started again, until they have been killed often enough."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/core"))  # the toy search is there
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT / "tests/core"), os.environ.get("PYTHONPATH", "")]),
}


def recloom(*argv: str, **environment: str) -> subprocess.Popen[str]:
    """Start a command in a session of its own, so that its children can be killed with it."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "recloom.cli.main", *argv],
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(*argv: str, **environment: str) -> str:
    """Run a command to its end; return what it printed."""
    process = recloom(*argv, **environment)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return said


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a command and its children, as `kill -9` does."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)


class Victim(ABC):
    """A command that leaves something in a folder."""

    @abstractmethod
    def argv(self, folder: Path) -> list[str]:
        """Return the arguments that begin it, or go on with what an earlier one left in `folder`."""

    @abstractmethod
    def result(self, folder: Path) -> Any:
        """Return what it is for, without times."""

    def check(self, folder: Path, expected: Any) -> None:  # noqa: B027
        """Assert what has to hold after every kill; nothing, unless a victim says more."""


def survive(victim: Victim, folder: Path, kills: int = 20, seed: int = 0) -> int:
    """Kill the command `kills` times; assert that it ends as one that was never killed does. Return the ends seen."""
    whole = folder / "whole"
    start = time.monotonic()
    finish(*victim.argv(whole))
    usual = time.monotonic() - start
    expected = victim.result(whole)
    rng, ends, left = random.Random(seed), 0, kills
    while left:
        place = folder / f"killed-{ends}"
        process = recloom(*victim.argv(place))
        try:
            said = process.communicate(timeout=usual * rng.uniform(0.2, 1.1))[0]
        except subprocess.TimeoutExpired:
            kill(process)
            left -= 1
            victim.check(place, expected)
            continue
        assert process.returncode == 0, said
        assert victim.result(place) == expected
        shutil.rmtree(place)
        ends += 1
    place = folder / f"killed-{ends}"
    finish(*victim.argv(place))
    assert victim.result(place) == expected
    return ends + 1
