"""A disk that fills up while a command writes: a sentence, exit code 2, and with more room the same command ends."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from killing import ROOT, finish, recloom
from test_kills import SMALL, Build, Fit, Prepare, Search, Victim, items, others, write_raw

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


def grow(disk: Path, size: str = "256m") -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


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


@pytest.mark.parametrize("form", ["taobao", "jodie"])
def test_prepare_histories_and_streams(form: str, disk: Path, tmp_path: Path) -> None:
    overflow(others(form, tmp_path), disk, tmp_path / "whole")


def test_fit(disk: Path, tmp_path: Path) -> None:
    overflow(Fit(), disk, tmp_path / "whole")


def test_search(disk: Path, tmp_path: Path) -> None:
    import test_search_run

    config = test_search_run.write(tmp_path / "toy.yaml", trials=12, retrain=1, scratch={"rows": 1000})
    overflow(Search(config), disk, tmp_path / "whole")


def refused(*argv: str) -> str:
    """Run a command that finds the disk full; return what it says."""
    process = recloom(*argv)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 2, said
    assert "the disk is full" in said, said
    assert "Free some space" in said, said
    assert "Traceback" not in said, said
    return said


def test_index(disk: Path, tmp_path: Path) -> None:
    """Wherever the room ends: in a program of torch's, in a file of faiss's, in one of numpy's."""
    sizes = ["--data.num_items=3000", "--data.num_users=200", "--data.num_train=4000", "--data.num_val=500"]
    config = str(ROOT / "configs/hsnn/two_tower.yaml")
    finish("fit", "--config", config, *SMALL, *sizes, "--data.batch_size=256", f"--run_dir={tmp_path / 'run'}")
    build = Build(tmp_path / "run")
    finish(*build.argv(tmp_path / "whole"))
    expected = items(tmp_path / "whole")
    needed = sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
    for share in (0.05, 0.4, 0.8, 0.95):
        grow(disk, f"{int(share * needed) // 1024}k")
        said = refused(*build.argv(disk / "index"))
        assert str(disk) in said, said
        assert not list(disk.iterdir()), "nothing half-written is left"
    grow(disk)
    finish(*build.argv(disk / "index"))
    assert items(disk / "index") == expected

    gone = ["index", "delete", "--path", str(disk / "index"), "--ids", "0,1,2,3"]
    for left in (0, 100):  # KiB
        used = shutil.disk_usage(disk).used // 1024
        grow(disk, f"{used + left}k")
        assert "snapshots/000002.part" in refused(*gone)
        assert items(disk / "index") == expected, "the old one stays"
        grow(disk)
    finish(*gone)
    assert items(disk / "index")[0] == [number for number in expected[0] if number > 3]
