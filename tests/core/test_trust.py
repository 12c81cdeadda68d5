"""--trust registered: what a config may have imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recloom.cli import problems, trust
from recloom.testing import run_cli

CONFIG = """
model: {{class_path: DLRM, init_args: {{embedding_dim: 4, dense_arch: [8, 4], over_arch: [8], interaction: {name}}}}}
data: {{class_path: SyntheticClicks, init_args: {{num_train: 64, num_val: 64, num_test: 0}}}}
"""
INTRUDER = """
from pathlib import Path
from recloom_dlrm.interactions import DotInteraction
Path(__file__).with_suffix(".ran").touch()
class Mine(DotInteraction):
    "Somebody's own."
"""


def cost(folder: Path, name: str, *options: str, level: str = "") -> tuple[subprocess.CompletedProcess[str], bool]:
    """Price a model with the interaction `name`, in a process of its own; return also whether the module was run."""
    (folder / "intruder.py").write_text(INTRUDER)
    (folder / "config.yaml").write_text(CONFIG.format(name=name))
    environment = {**os.environ, "PYTHONPATH": str(folder), **({trust.VARIABLE: level} if level else {})}
    argv = [sys.executable, "-m", "recloom.cli.main", "cost", "--config", str(folder / "config.yaml"), *options]
    done = subprocess.run(argv, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    return done, (folder / "intruder.ran").exists()


def test_without_it_any_class_is_imported(tmp_path: Path) -> None:
    done, ran = cost(tmp_path, "intruder.Mine")
    assert (done.returncode, ran) == (0, True), done.stderr


@pytest.mark.parametrize(
    ("name", "options", "level"),
    [
        ("intruder.Mine", ["--trust", "registered"], ""),
        ("recloom_dlrm.interactions.torch.compile", [], "registered"),  # what a plugin imports is not its own
    ],
)
def test_what_no_plugin_brings_is_refused_before_it_is_imported(
    tmp_path: Path, name: str, options: list[str], level: str
) -> None:
    done, ran = cost(tmp_path, name, *options, level=level)
    assert (done.returncode, ran) == (2, False), done.stdout + done.stderr
    assert "is not of an installed plugin" in done.stderr
    assert "--trust registered" in done.stderr
    assert "Traceback" not in done.stderr


def test_registered_components_work(tmp_path: Path) -> None:
    done, _ = cost(tmp_path, "CrossNet", "--trust=registered", "--hardware", "isaac")
    assert done.returncode == 0, done.stderr


def test_lightnings_own_parts_work_and_its_senders_do_not() -> None:
    program = (
        "from recloom.cli import trust; trust.enforce()\n"
        "from jsonargparse._util import import_object\n"
        "for name in ('callbacks.EarlyStopping', 'loggers.TensorBoardLogger', 'loggers.CSVLogger',\n"
        "             'strategies.DDPStrategy', 'profilers.PyTorchProfiler', 'loggers.WandbLogger'):\n"
        "    try:\n"
        "        import_object('lightning.pytorch.' + name)\n"
        "    except ImportError:\n"
        "        print(name)"
    )
    environment = {**os.environ, trust.VARIABLE: "registered"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "loggers.WandbLogger\n"), done.stderr


def test_a_level_that_there_is_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trust.VARIABLE, "")  # put back afterwards
    done = run_cli(["cost", "--trust", "none"])
    assert done.code == 2
    assert "all, registered" in done.err


def test_a_refused_name_is_not_imported_to_find_near_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "intruder.py").write_text(INTRUDER)
    monkeypatch.syspath_prepend(str(tmp_path))
    message = (
        "Problem with given class_path 'intruder.Mine':\n  Importing 'intruder.Mine' is not allowed, denied by the '*'"
        " entry. Key 'x' is not expected"
    )
    assert "intruder.Mine is not of an installed plugin" in str(problems.explain(message))
    assert not (tmp_path / "intruder.ran").exists()
