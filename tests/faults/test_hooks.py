"""A plugin that fails in each hook of a training: it is named, what was there stays, and without it the run ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from killing import ENVIRONMENT, finish, recloom
from test_kills import Fit
from test_plugins import write_plugins

from recloom import hookspecs

pytestmark = pytest.mark.timeout(900)

FINE = "def register(catalog): pass\n"
HOOKS = {
    "configure_module": "@hookimpl\ndef configure_module(module): {}['gone']",
    "configure_strategy": "@hookimpl\ndef configure_strategy(strategy, module): raise SystemExit('no licence')",
    "on_parameters_updated": "@hookimpl\ndef on_parameters_updated(module, step):\n    assert step < 60, 'gone'",
    "summarize": "@hookimpl\ndef summarize(module): {}['gone']",
    "register": "@hookimpl\ndef register(catalog): {}['gone']",
}


def test_all_hooks_are_here() -> None:
    assert {name for name, value in vars(hookspecs).items() if hasattr(value, "recloom_spec")} == set(HOOKS)


class Run(Fit):
    """A training on one process, under a strategy that plugins may adapt."""

    def argv(self, folder: Path) -> list[str]:
        return [*super().argv(folder), "--trainer.strategy=hybrid", "--trainer.devices=1"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the run leads to without such a plugin."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(*Run().argv(folder))
    return Run().result(folder)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_run_with_a_plugin_that_fails(hook: str, expected: Any, tmp_path: Path) -> None:
    write_plugins(tmp_path, {"bad": HOOKS[hook] if hook == "register" else FINE + HOOKS[hook]})
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    run = tmp_path / "run"
    process = recloom(*Run().argv(run), PYTHONPATH=path)
    said = process.communicate(timeout=300)[0]
    assert "Traceback" not in said, said
    if hook in ("register", "summarize"):  # told where plugins are listed, and in the report; the run is none the worse
        assert process.returncode == 0, said
        told = (run / "report.html").read_text() if hook == "summarize" else finish("plugins", PYTHONPATH=path)
        assert "KeyError" in told
    else:
        assert process.returncode == 2, said
        assert f"plugin 'bad' failed in {hook}" in said, said
        assert "RECLOOM_DISABLE_PLUGINS=bad" in said, said
        assert (run / "checkpoints/last.ckpt").exists() == (hook == "on_parameters_updated")
        finish(*Run().argv(run), PYTHONPATH=path, RECLOOM_DISABLE_PLUGINS="bad")  # as it was told
    assert Run().result(run) == expected
