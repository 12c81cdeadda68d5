"""--trust registered: what a config may have imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recloom import problems
from recloom.cli import trust
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


CASES = [  # name, options, level in the environment
    ("intruder.Mine", [], ""),
    ("intruder.Mine", ["--trust", "registered"], ""),
    ("recloom_dlrm.interactions.torch.compile", [], "registered"),  # what a plugin imports is not its own
    ("CrossNet", ["--trust=registered", "--hardware", "isaac"], ""),
]
SERVER = """
import json, os, sys
from recloom.cli import cost, main, trust
import recloom_dlrm.model
for argv, level, folder in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:  # the level holds for a process: each case has its own
        os.chdir(folder)
        sys.path.insert(0, folder)
        os.environ[trust.VARIABLE] = level
        sys.stdout = sys.stderr = open("said", "w")
        code = main.main(argv)
        sys.stdout.flush()
        os._exit(code)
    with open(os.path.join(folder, "code"), "w") as file:
        file.write(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, bool]]:
    """For each case the exit code of `recloom cost`, what it said, and whether the intruder's module was run."""
    jobs = []
    for name, options, level in CASES:
        folder = tmp_path_factory.mktemp("case")
        (folder / "intruder.py").write_text(INTRUDER)
        (folder / "config.yaml").write_text(CONFIG.format(name=name))
        jobs.append((["cost", "--config", "config.yaml", *options], level, str(folder)))
    subprocess.run([sys.executable, "-W", "ignore", "-c", SERVER, json.dumps(jobs)], check=True, timeout=300)
    folders = [Path(folder) for *_, folder in jobs]
    return [(int((f / "code").read_text()), (f / "said").read_text(), (f / "intruder.ran").exists()) for f in folders]


def test_without_it_any_class_is_imported(cases: list[tuple[int, str, bool]]) -> None:
    code, said, ran = cases[0]
    assert (code, ran) == (0, True), said


@pytest.mark.parametrize("place", [1, 2])
def test_what_no_plugin_brings_is_refused_before_it_is_imported(cases: list[tuple[int, str, bool]], place: int) -> None:
    code, said, ran = cases[place]
    assert (code, ran) == (2, False), said
    assert "is not of an installed plugin" in said
    assert "--trust registered" in said
    assert "Traceback" not in said


def test_registered_components_work(cases: list[tuple[int, str, bool]]) -> None:
    code, said, _ = cases[3]
    assert code == 0, said


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
