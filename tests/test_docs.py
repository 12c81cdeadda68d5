"""The documentation: its examples run, and it builds without a warning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from examples import run_page

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(ROOT / "docs" / page, ROOT, tmp_path)


def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(ROOT / "docs")]
    done = subprocess.run([*build, str(tmp_path), "-d", str(tmp_path / "trees")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "components.html").read_text()
    for name in ("DLRM", "CrossNet", "SyntheticClicks", "embedding_dim"):
        assert name in page
