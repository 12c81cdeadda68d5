"""A disk that fills up while a command writes: a sentence, exit code 2, and with more room the same command ends."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from killing import recloom
from test_kills import Fit, Prepare, Search, Victim, write_raw

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "recloom-test", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def grow(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=256m", str(disk)], check=True)


def overflow(victim: Victim, disk: Path, whole: Path) -> None:
    """Run a command on a full disk, then on a larger one; compare with a run that always had room."""
    process = recloom(*victim.argv(whole))
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    process = recloom(*victim.argv(disk / "it"))
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 2, said
    assert "disk" in said, said
    assert "Traceback" not in said, said
    grow(disk)
    process = recloom(*victim.argv(disk / "it"))
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert victim.result(disk / "it") == victim.result(whole)


def test_prepare(disk: Path, tmp_path: Path) -> None:
    overflow(Prepare(write_raw(tmp_path / "raw.tsv", 30_000)), disk, tmp_path / "whole")


def test_fit(disk: Path, tmp_path: Path) -> None:
    overflow(Fit(), disk, tmp_path / "whole")


def test_search(disk: Path, tmp_path: Path) -> None:
    import test_search_run

    config = test_search_run.write(tmp_path / "toy.yaml", trials=12, retrain=1, scratch={"rows": 1000})
    overflow(Search(config), disk, tmp_path / "whole")
