"""`recloom reproduce all`, with experiments of a plugin that is installed for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recloom.plugins import host

PLUGIN = """
import os, time
from pathlib import Path
from recloom import hookimpl, plots
from recloom.experiment import Claim, Experiment

RAN = Path(os.environ["RAN"])

class Base(Experiment):
    paper, summary = "Somebody 2020, Of Numbers", "Numbers are measured."
    scope = {"small": "a few numbers", "medium": "more", "full": "many"}
    def run(self, lab, report):
        def measure(seed):
            try:
                time.sleep(60 if type(self).__name__ == os.environ.get("SLOW") else 0)
            except KeyboardInterrupt:
                RAN.with_name("put away").touch()
                raise
            with RAN.open("a") as file:
                file.write(f"begin {type(self).__name__}\\n")
            time.sleep(0.3)
            with RAN.open("a") as file:
                file.write(f"end {type(self).__name__}\\n")
            return 1.0 + seed
        found = lab.each_seed("value", measure)
        report.plot("values", plots.lines({"values": {"ours": ([0, 1], [0, 1])}}, "seed"))
        large = Claim("large", "values are large", min(found), ">= 1", paper=2.5)
        return [large, Claim("small", "they are small", 3.0, "< 2")]

class First(Base): pass
class Second(Base): pass
class Whole(Base):
    processors = 2
class Broken(Base):
    def run(self, lab, report):
        if not Path(os.environ["RAN"]).with_name("mended").exists():
            raise ValueError("something is wrong")
        return super().run(lab, report)

if Path(os.environ["RAN"]).with_name("mended").exists():
    class Gone(Base): pass

@hookimpl
def register(catalog):
    for name in ("First", "Second", "Whole", "Broken", "Gone"):
        catalog.experiments.add(name.lower(), f"recloom_numbers:{name}", summary="counts")
"""


@pytest.fixture
def reproduce(tmp_path: Path):
    site = tmp_path / "site"
    info = site / "numbers-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "recloom_numbers.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numbers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[recloom.plugins]\nnumbers = recloom_numbers\n")
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "RAN": str(tmp_path / "ran"),
        "RECLOOM_DISABLE_PLUGINS": ",".join(info.name for info in host().plugins),
    }

    def run(*options: str, **more: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "recloom.cli.main", "reproduce", "all", "--out", "out", *options]
        return subprocess.run(
            argv,
            env=environment | more,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
            preexec_fn=_as_under_nohup,
        )

    return run


def _as_under_nohup() -> None:
    """Ignore SIGINT, as a shell has what it starts with `nohup ... &` do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def test_all_are_run_and_told_on_one_page_and_what_failed_is_run_again(reproduce, tmp_path: Path) -> None:
    done = reproduce("--seeds", "0,1")
    assert done.returncode == 1, done.stderr  # one of them fails; the others are measured
    assert "broken failed: ValueError: something is wrong" in done.stdout
    assert "gone failed: experiment 'gone' (plugin 'numbers') cannot be imported" in done.stdout
    assert "3 of 6 claims hold, of 5 papers" in done.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    for text in ("Somebody 2020, Of Numbers", "values are large", "2.5", "NO", "something is wrong"):
        assert text in page
    assert page.count("<svg") == 3
    claims = json.loads((tmp_path / "out" / "claims.json").read_text())
    assert claims["first"]["claims"][0]["measured"] == 1.0
    assert claims["broken"] == {"failure": "ValueError: something is wrong", "claims": []}
    events = (tmp_path / "ran").read_text().split("\n")
    assert events[-5:-1] == ["begin Whole", "end Whole"] * 2  # two seeds, and nothing beside it

    (tmp_path / "ran").unlink()
    (tmp_path / "mended").touch()
    done = reproduce("--seeds", "0,1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "first: 1 of 2 claims hold, measured before" in done.stdout
    assert "5 of 10 claims hold, of 5 papers" in done.stdout
    assert set((tmp_path / "ran").read_text().split()) == {"begin", "end", "Broken", "Gone"}
    assert not (tmp_path / "out" / "started.json").exists()


def test_what_has_not_ended_in_time_is_stopped_and_said_so(reproduce, tmp_path: Path) -> None:
    (tmp_path / "mended").touch()
    done = reproduce("--minutes", "0.05", "--jobs", "1", SLOW="Broken")  # the first
    assert done.returncode == 1, done.stderr
    assert "broken out of time: stopped after 0." in done.stdout
    assert "whole out of time: not begun, when the run's 0.05 minutes were over" in done.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("Not measured, for want of time") == 5
    assert (tmp_path / "put away").exists()  # it was told to, though this run ignores interrupts
    assert "CPU minutes" in page
    assert "Budget small: a few numbers" in page
    assert not (tmp_path / "ran").exists()
    done = reproduce("--budget", "small")  # it goes on, with the time that it has by itself
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 10 claims hold, of 5 papers" in done.stdout


def test_it_refuses_what_is_one_experiments(reproduce) -> None:
    done = reproduce("--data", ".")
    assert done.returncode == 2
    assert "--data" in done.stderr
    assert reproduce("--jobs", "0").returncode == 2
    assert reproduce("--minutes", "0").returncode == 2
