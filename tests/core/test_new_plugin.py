"""`recloom new-plugin`: the package is installed from its folder, found, listed, trains, and passes check_plugin."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recloom.testing import plugin_problems, run_cli


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A generated plugin's folder, and the environment of processes that have it installed (not editable)."""
    folder = tmp_path_factory.mktemp("stranger")
    project, site = folder / "recloom-field-aware", folder / "site"
    done = run_cli(["new-plugin", "field_aware", "--dir", str(project)])
    assert done.code == 0, done.err
    assert "pip install -e ." in done.out
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", str(site), str(project)], check=True)
    return project, {**os.environ, "PYTHONPATH": str(site)}


def run(stranger: tuple[Path, dict[str, str]], *argv: str) -> str:
    project, env = stranger
    done = subprocess.run([sys.executable, *argv], cwd=project, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


CLI = ("-m", "recloom.cli.main")
QUICK = ["--data.num_train=512", "--data.num_val=256", "--data.num_workers=0", "--data.batch_size=64"]
QUICK += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def test_it_is_listed(stranger) -> None:
    found = {row["name"]: row for row in json.loads(run(stranger, *CLI, "plugins", "--json"))}["field_aware"]
    assert found == {**found, "error": "", "components": 2, "origin": "recloom-field-aware 0.1.0"}
    assert "FieldAwareInteraction" in run(stranger, *CLI, "components", "interactions")


def test_it_trains_by_its_config_and_its_parts_by_name(stranger) -> None:
    commands = [
        ["fit", "--config=configs/field_aware.yaml", "--run_dir=runs/one", *QUICK],
        ["fit", "--model=DLRM", "--model.interaction=FieldAwareInteraction", "--model.interaction.width=3"],
        ["fit", "--model=FieldAwareModel", "--model.interaction=CrossNet"],
    ]
    for command in commands[1:]:
        command += ["--data=SyntheticClicks", "--trainer.fast_dev_run=true", *QUICK]
    code = "import json, sys; from recloom.cli.main import main; sys.exit(sum(map(main, json.loads(sys.argv[1]))))"
    out = run(stranger, "-c", code, json.dumps(commands))
    assert re.search(r"validation NE \d\.\d+", out)
    config = (stranger[0] / "runs" / "one" / "config.yaml").read_text()
    assert "class_path: recloom_field_aware.interaction.FieldAwareInteraction" in config


def test_its_own_test_passes(stranger) -> None:
    out = run(stranger, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert "1 passed" in out


def test_what_check_plugin_finds(tmp_path: Path) -> None:
    """Each fault of a plugin is one sentence; the plugin is put together in a process of its own."""
    (tmp_path / "stranger_faulty.py").write_text(FAULTY)
    info = tmp_path / "faulty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[recloom.plugins]\nfaulty = stranger_faulty\n")
    (tmp_path / "stranger_parts.py").write_text(PARTS)
    code = "from recloom.testing import plugin_problems; print('\\n'.join(plugin_problems('faulty')))"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = done.stdout
    for sentence in (
        "importing and registering it imports torch",
        "there is no hook 'summarise': Did you mean 'summarize'?",
        "interaction 'Narrow': 6 samples give an output of shape (6, 8), and output_dim is 9",
        "interaction 'Secret': parameter 'depth' is not in the docstring's Args",
        "interaction 'Secret': parameter 'depth' has no type",
        "interaction 'Greedy': its constructor takes **options",
        "interaction 'Frozen': some of the vectors get no gradient",
        "interaction 'Peeking': a sample's output depends on the other samples",
        "interaction 'Plain': 'stranger_parts:Plain' is no subclass of recloom.interaction.Interaction",
        *(
            f"{kind} 'Misplaced': 'stranger_parts:Narrow' is no subclass of {base}"
            for kind, base in (
                ("index", "recloom.retrieval.index.RetrievalIndex"),
                ("callback", "lightning.pytorch.callbacks.callback.Callback"),
                ("search space", "recloom.search.space.SearchSpace"),
                ("supernet", "recloom.search.supernet.Supernet"),
                ("search method", "recloom.search.method.SearchMethod"),
                ("evaluator", "recloom.search.evaluator.Evaluator"),
                ("cost model", "recloom.search.evaluator.CostModel"),
            )
        ),
        "block 'misplaced': 'stranger_parts:Narrow' is no subclass of recloom.search.block.Block",
        "interaction 'Gone' (plugin 'faulty') cannot be imported",
        "sequence encoder 'Sized': what is at padded places reaches the output",
        "sequence encoder 'Sized': more padding in front of a history changes the output",
        "sequence encoder 'Sized': it cannot be exported",
        "embedding 'Lenient': id 20 of feature 'a' is outside its table, and no DataError is raised",
        "embedding 'Lenient': bags are not the sums",
        "model 'Stuck': training on one-hot data leaves parameters as they were: idle",
        "model 'Stuck': with one-hot data: Stuck cannot be exported as torch",
    ):
        assert sentence in found, f"{sentence!r} is not in:\n{found}"


def test_built_in_plugins_pass() -> None:
    assert plugin_problems("dcn") == []
    assert plugin_problems("dlrm") == []


def test_a_plugin_that_is_not_there() -> None:
    assert "it is not installed" in plugin_problems("nowhere")[0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Mine", "for example 'mine'"),
        ("my-plugin", "for example 'my_plugin'"),
        ("1st", "cannot be a plugin's name"),
        ("class", "cannot be a plugin's name"),
        ("dlrm", "there is a plugin named 'dlrm' already, from recloom"),
        ("dot", "has interaction 'DotInteraction' already"),
    ],
)
def test_names_that_cannot_be(name: str, said: str, tmp_path: Path) -> None:
    done = run_cli(["new-plugin", name, "--dir", str(tmp_path / "new")])
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    done = run_cli(["new-plugin", "mine", "--dir", str(tmp_path)])
    assert done.code == 2
    assert "already exists" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


FAULTY = """
import torch
from recloom import hookimpl

@hookimpl
def register(catalog):
    for name in ("Narrow", "Secret", "Greedy", "Frozen", "Peeking", "Plain", "Gone"):
        catalog.interactions.add(name, f"stranger_parts:{name}")
    catalog.sequence_encoders.add("Sized", "stranger_parts:Sized")
    for kind in ("indexes", "callbacks", "search_spaces", "supernets", "search_methods", "evaluators", "cost_models"):
        getattr(catalog, kind).add("Misplaced", "stranger_parts:Narrow")
    catalog.blocks.add("misplaced", "stranger_parts:Narrow")
    catalog.embeddings.add("Lenient", "stranger_parts:Lenient")
    catalog.models.add("Stuck", "stranger_parts:Stuck")
    catalog.models.add("Extra", "stranger_parts_with_extra:Extra", extra="some")

@hookimpl
def summarise(module):
    return []
"""

PARTS = '''
import torch
from torch import nn
from recloom.embedding import EmbeddingBagCollection
from recloom.model import Interaction, RankingModule
from recloom.sequence import SequenceEncoder

class Narrow(Interaction):
    def __init__(self, num_vectors: int, embedding_dim: int):
        super().__init__(num_vectors, embedding_dim)
        self.output_dim = embedding_dim + 1
    def forward(self, vectors):
        return vectors.sum(1)

class Secret(Narrow):
    def __init__(self, num_vectors: int, embedding_dim: int, depth=1):
        super().__init__(num_vectors, embedding_dim)

class Greedy(Narrow):
    def __init__(self, num_vectors: int, embedding_dim: int, **options):
        super().__init__(num_vectors, embedding_dim)

class Frozen(Interaction):
    def __init__(self, num_vectors: int, embedding_dim: int):
        super().__init__(num_vectors, embedding_dim)
        self.output_dim = embedding_dim
    def forward(self, vectors):
        return vectors[:, 0]

class Peeking(Frozen):
    def forward(self, vectors):
        return vectors.sum(1) - vectors.sum(1).mean(0)

class Plain:
    pass

class Sized(SequenceEncoder):
    def __init__(self, width: int, max_length: int):
        super().__init__(width, max_length)
        self.output_dim = width
    def forward(self, steps, query, mask, gaps=None):
        return (steps.mean(1) + query) * torch.ones(len(steps), 1)

class Lenient(EmbeddingBagCollection):
    """Keeps one row a table.

    Args:
        tables: The tables.
    """
    def __init__(self, tables: list):
        super().__init__(tables)
        self.row = nn.Parameter(torch.ones(8))
    def forward(self, values, offsets=None, weights=None):
        count = len(values) if offsets is None else len(offsets) - 1
        return self.row.expand(count // self.num_features, self.num_features, 8)
    def lookup(self, feature, ids):
        return self.row.expand(*ids.shape, 8)
    def table_weight(self, name):
        return self.row.detach()[None]

class Stuck(RankingModule):
    """Learns nothing with one of its weights, and cannot be traced.

    Args:
        schema: The schema.
    """
    def __init__(self, schema: dict | None = None):
        super().__init__(schema)
        self.idle = nn.Parameter(torch.zeros(1))
        self.head = nn.Linear(len(self.schema.dense), 1)
    def forward(self, dense, values, offsets=None, weights=None):
        if float(dense.sum()) > 1e9:
            raise ValueError
        return self.head(dense).squeeze(1)
'''
