"""The README's commands run, and it names what there is."""

from __future__ import annotations

from pathlib import Path

from examples import blocks, run_page
from recloom.plugins import host

ROOT = Path(__file__).parents[1]


def test_its_commands_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_page(ROOT / "README.md", ROOT, tmp_path) >= 10


def test_it_starts_with_two_commands() -> None:
    assert blocks(ROOT / "README.md")[0].commands() == ["make demo", "make test"]


def test_it_names_every_plugin_of_ours() -> None:
    text = (ROOT / "README.md").read_text()
    for info in host().plugins:
        if info.origin.startswith("recloom "):
            assert f"| `{info.name}` |" in text
            assert (ROOT / "plugins" / f"recloom_{info.name}").is_dir()


def test_the_licence_is_whole() -> None:
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    assert len(licence.splitlines()) > 190
