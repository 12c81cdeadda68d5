"""What a wheel brings: configs that commands find anywhere, and the documentation that `recloom docs` opens."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from recloom import resources
from recloom.testing import run_cli

ROOT = Path(__file__).parents[2]


def test_a_wheel_works_without_the_repository(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=200)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    program = (
        "import recloom, sys; from recloom import resources; from recloom.cli.main import main\n"
        "assert recloom.__file__.startswith(sys.argv[1]), recloom.__file__\n"
        "assert (resources.folder('docs') / 'conf.py').is_file()\n"
        "sys.exit(main(['cost', '--config', 'configs/dlrm/synthetic.yaml']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "site")],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "multiply-accumulates" in done.stdout or "MACs" in done.stdout


def test_a_config_of_ones_own_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "configs/dlrm/synthetic.yaml"
    ours = str(resources.folder("configs") / "dlrm" / "synthetic.yaml")
    assert resources.with_configs(["--config", name, f"--config={name}", "configs/no.yaml"]) == [
        "--config",
        ours,
        f"--config={ours}",
        "configs/no.yaml",
    ]
    (tmp_path / "configs" / "dlrm").mkdir(parents=True)
    (tmp_path / name).touch()
    assert resources.with_configs([name]) == [name]


def test_docs_opens_the_pages_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    (tmp_path / "note.txt").touch()
    done = run_cli(["docs", "--out", str(tmp_path)])
    assert done.code == 2
    assert "has other files" in done.err
    (tmp_path / "index.html").touch()
    assert run_cli(["docs", "--out", str(tmp_path)]).code == 0
    assert opened == [(tmp_path / "index.html").as_uri()]
    monkeypatch.setitem(sys.modules, "sphinx.cmd.build", None)
    done = run_cli(["docs", "--out", str(tmp_path / "new")])
    assert (done.code, "recloom[docs]" in done.err) == (2, True)


def test_docs_builds_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "docs"
    source.mkdir()
    (source / "conf.py").write_text("project = 'x'\n")
    (source / "index.rst").write_text("Hello\n=====\n")
    monkeypatch.setattr(resources, "folder", lambda name: source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = run_cli(["docs", "--no-open"])
    assert done.code == 0, done.err
    (page,) = (tmp_path / "cache" / "recloom").glob("docs-*/index.html")
    assert str(page) in done.out
    assert "Hello" in page.read_text()
    assert [path.name for path in page.parent.parent.iterdir()] == [page.parent.name]  # nothing half-written
