"""Files that somebody made in order to harm: nothing in them runs, leads elsewhere, or fills the memory."""

from __future__ import annotations

import json
import pickle
import resource
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recloom import archives, checkpoint, intact, programs
from recloom.data.manifest import Manifest
from recloom.data.parquet import ParquetClicks
from recloom.data.prepare import PrepareOptions, prepare
from recloom.errors import DataError
from recloom.nodes import NodeVectors
from recloom.testing import run_cli

CONFIG = """
model: {class_path: DLRM, init_args: {embedding_dim: 4, dense_arch: [8, 4], over_arch: [8]}}
data:
  class_path: SyntheticClicks
  init_args: {num_train: 64, num_val: 64, num_test: 64, batch_size: 32, num_workers: 0}
trainer: {max_steps: 1, accelerator: cpu, enable_progress_bar: false}
"""


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (str(self.mark), "w")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.yaml").write_text(CONFIG)
    done = run_cli(["fit", "--config", str(folder / "tiny.yaml"), f"--run_dir={folder / 'run'}"])
    assert done.code == 0, done.err
    return folder / "run"


@pytest.mark.parametrize("kind", ["archive", "legacy", "plain"])
def test_a_checkpoint_with_a_pickle_payload_runs_nothing(kind: str, run: Path, tmp_path: Path) -> None:
    whole, path, mark = checkpoint.read(run / "checkpoints/last.ckpt"), tmp_path / "theirs.ckpt", tmp_path / "ran"
    content = {**whole, "callbacks": Payload(mark)}
    if kind == "plain":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "archive")
    config = str(run / "config.yaml")
    commands = [
        *([name, "--config", config, f"--run_dir={run}"] for name in ("validate", "test", "predict")),
        ["fit", "--config", config, f"--run_dir={tmp_path / 'new'}"],
        *([name, "--run", str(run)] for name in ("export", "serve")),
        ["index", "build", "--run", str(run), "--out", str(tmp_path / "index")],
    ]
    if kind != "archive":
        commands = commands[1:2]  # they read by one function
    for command in commands:
        done = run_cli([*command, "--ckpt_path", str(path)])
        assert done.code == 2, (command, done)
        assert "theirs.ckpt" in done.err, (command, done.err)
        assert "Traceback" not in done.err
    weights = [
        "import-weights",
        "--config",
        config,
        "--from",
        "reference",
        str(path),
        "--out",
        str(tmp_path / "out.ckpt"),
    ]
    assert "theirs.ckpt" in run_cli(weights).err
    assert not mark.exists()
    pickle.loads(path.read_bytes()) if kind == "plain" else torch.load(path, weights_only=False)
    assert mark.exists(), "the payload is one"


def entry(name: str, mode: int = 0) -> zipfile.ZipInfo:
    found = zipfile.ZipInfo(name)
    found.external_attr = mode << 16
    return found


def lie(path: Path, size: int) -> None:
    """Have the directory of an archive of one entry claim another size of it."""
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02") + 24
    content[place : place + 4] = size.to_bytes(4, "little")
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "mode", "why"),
    [
        ("/etc/passwd", 0, "leads out"),
        ("../x", 0, "leads out"),
        ("a/../../x", 0, "leads out"),
        ("C:\\x", 0, "leads out"),
        ("a/link", stat.S_IFLNK | 0o777, "is a link"),
        ("A/data.pkl", 0, "is there twice"),
    ],
)
def test_names_that_lead_elsewhere(name: str, mode: int, why: str, tmp_path: Path) -> None:
    path = tmp_path / "some.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry("a/data.pkl"), b"1")
        archive.writestr(entry(name, mode), b"2")
    for read in (checkpoint.read, programs.load, lambda path: archives.read_arrays(path, "")):
        with pytest.raises(DataError, match=rf"some\.ckpt: .*{why}"):
            read(path)


def test_bombs(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (1 << 23,)})
        for _ in range(64):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < 100_000
    for read in (checkpoint.read, programs.load, lambda path: archives.read_arrays(path, "")):
        with pytest.raises(DataError, match=r"bomb\.npz: .*is compressed"):
            read(path)
    assert archives.read_arrays(path, "", compressed=True)["a"].nbytes == 64 << 20
    lie(path, (1 << 32) - 2)  # more than there is, were there a few of them; here the checksum tells
    with pytest.raises(DataError, match=r"bomb\.npz"):
        archives.read_arrays(path, "", compressed=True)
    lie(path, 1000)
    with pytest.raises(DataError, match=r"bomb\.npz"):
        archives.read_arrays(path, "", compressed=True)
    header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)}
    with zipfile.ZipFile(path, "w") as archive, archive.open("a.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(DataError, match=r"bomb\.npz: .*says 9,007,199,254,740,992 bytes and has 0"):
        archives.read_arrays(path, "")


def test_entries_that_overlap(tmp_path: Path) -> None:
    """A thousand names of one content: what a checker of each entry by itself would read a thousand times."""
    path = tmp_path / "some.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", bytes(100_000))
        first = archive.infolist()[0]
        for number in range(100):
            again = entry(f"a{number}")
            again.header_offset, again.file_size, again.compress_size, again.CRC = 0, 100_000, 100_000, first.CRC
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
    with pytest.raises(DataError, match="its entries overlap"):
        archives.read_arrays(path, "")


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bags, self.scale = torch.nn.EmbeddingBag(5, 2), torch.nn.Buffer(torch.ones(2))

    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.bags(ids) * self.scale + x.reshape(x.shape[0] // 2, 2, -1).sum((1, 2))[:, None]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    rows = torch.export.Dim("rows", min=2, max=64)
    inputs = torch.tensor([[0, 1], [2, 3], [4, 0]]), torch.ones(6, 3)
    exported = torch.export.export(Net(), inputs, dynamic_shapes=({0: rows}, {0: 2 * rows}))
    torch.export.save(exported, path)
    return path


def rewrite(source: Path, path: Path, change: Callable[[str, bytes], bytes], **more: bytes) -> Path:
    """Copy an archive with its entries changed, and some more."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        for name, content in more.items():
            new.writestr(f"{root}/{name}", content)
    return path


def test_programs_come_back_as_they_were(program: Path) -> None:
    run = programs.load(program)
    assert run(torch.tensor([[0, 1]] * 5), torch.ones(10, 3)).shape == (5, 2)


@pytest.mark.parametrize("harm", ["inputs", "object", "library", "operator", "size", "guard", "weight"])
def test_programs_run_nothing_while_they_are_read(harm: str, program: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    call = f"open({str(mark)!r}, 'w')"

    def change(name: str, content: bytes) -> bytes:
        if harm == "inputs" and "sample_inputs" in name:
            return pickle.dumps(Payload(mark))
        if harm in ("object", "weight") and name.endswith(("constants_config.json", "weights_config.json")):
            config = json.loads(content)
            if harm == "object" and "constants" in name:
                config["config"]["c"] = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
            elif harm == "weight" and "weights" in name:
                next(iter(config["config"].values()))["use_pickle"] = True
            return json.dumps(config).encode()
        if harm == "weight" and name.endswith("weight_0"):
            return pickle.dumps(Payload(mark))
        if not name.endswith("models/model.json"):
            return content
        model = json.loads(content)
        if harm == "operator":
            model["graph_module"]["graph"]["nodes"][0]["target"] = "torch.serialization.os.system"
        if harm == "guard":
            model["guards_code"] = [call]
        if harm == "size":
            return json.dumps(model).replace("Symbol('", f"{call} or Symbol('").encode()
        return json.dumps(model).encode()

    more = {"library": {"data/aotinductor/model/a.so": b""}, "object": {"data/constants/opaque_obj_0": b""}}
    path = rewrite(program, tmp_path / "theirs.pt2", change, **more.get(harm, {}))
    with pytest.raises(DataError, match=r"theirs\.pt2: not an exported program that is safe to read"):
        programs.load(path)
    assert not mark.exists()


def test_files_that_name_files_elsewhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    data = tmp_path / "data"
    data.mkdir()
    shard = {"rows": 1, "row_groups": [1], "bytes": 1, "sha256": "0"}
    for name in ("../secret", str(secret)):
        (data / "manifest.json").write_text(json.dumps({"version": 1, "splits": {"train": [{"file": name, **shard}]}}))
        with pytest.raises(DataError, match=r"manifest\.json: it names .*, which is not in"):
            Manifest.load(data)
        (data / "files.json").write_text(json.dumps({name: {"bytes": 1, "sha256": "0"}}))
        with pytest.raises(DataError, match=r"files\.json: it names"):
            intact.check(data, "")
        torch.save({"recloom_shards": {"folder": name}}, tmp_path / "some.ckpt")
        with pytest.raises(DataError, match=r"some\.ckpt: it names"):
            checkpoint.read(tmp_path / "some.ckpt")
    nodes = tmp_path / "nodes"
    NodeVectors({"a": torch.zeros(2, 3)}, 0).save(nodes)
    facts = json.loads((nodes / "nodes.json").read_text())
    facts["tables"] = {"../secret": [2, 3]}
    (nodes / "nodes.json").write_text(json.dumps(facts))
    intact.seal(nodes)
    with pytest.raises(DataError, match=r"nodes\.json: it names"):
        NodeVectors.load(nodes)


def test_a_line_without_end_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    """Ten gigabytes that take no room on the disk, after a good line; and the same, compressed."""
    raw = tmp_path / "raw.csv"
    with raw.open("wb") as file:
        file.write(b"click,ad\n1,a\n0,")
        file.truncate(10 << 30)
    program = (
        "import sys; from recloom.cli.main import main; from recloom.machine import peak_memory;"
        "code = main(sys.argv[1:]); print(peak_memory() >> 20, file=sys.stdout); raise SystemExit(code)"
    )
    options = ["--label", "click", "--sparse", "ad", "--memory", "64MiB", "--split", "none"]
    argv = [sys.executable, "-c", program, "prepare", "table", "--input", str(raw), "--output", str(tmp_path / "out")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*argv, *options], capture_output=True, text=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2, done.stderr
    assert "raw.csv, line 3: no line end in" in done.stderr
    assert "Leave the line out" in done.stderr
    assert not (tmp_path / "out").exists()
    assert int(done.stdout.split()[-1]) < 600, "MiB"
    assert after.ru_utime - before.ru_utime < 20, "seconds"


def test_quotes_that_never_close_take_no_quadratic_time(tmp_path: Path) -> None:
    from recloom.data.formats.table import Table, TableColumns

    raw = tmp_path / "raw.csv"
    raw.write_bytes(b'click,ad\n0,"' + b"1,a\n" * 300_000)
    table = Table(TableColumns(label=("click",), sparse=("ad",)))
    with pytest.raises(DataError, match=r"raw\.csv, line 2: its quotes do not close"):
        prepare(table, [raw], tmp_path / "out", PrepareOptions(split="none"))
    assert not (tmp_path / "out").exists()


def test_a_damaged_shard_is_refused_by_its_checksum(tmp_path: Path) -> None:
    """`--data.verify full` compares the sha256 beforehand; without it the page's checksum is, when it is read."""
    from recloom.data.shards import write_shards
    from recloom.testing import tiny_batch, tiny_schema

    write_shards({"train": [tiny_batch(rows=400)]}, tiny_schema(), tmp_path / "data")
    path = next((tmp_path / "data/train").glob("*.parquet"))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    expected = [
        batch.dense_features for batch in ParquetClicks(tmp_path / "data", 64, num_workers=0).train_dataloader()
    ]
    for bit in rng.integers(0, 8 * len(whole), 40):
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(broken)
        with pytest.raises(DataError, match=rf"{path.name}: the shard is corrupt: its sha256"):
            ParquetClicks(tmp_path / "data", 64, num_workers=0, verify="full").prepare_data()
        try:
            found = [b.dense_features for b in ParquetClicks(tmp_path / "data", 64, num_workers=0).train_dataloader()]
            assert all(map(torch.equal, found, expected)), bit
        except DataError as error:
            said = str(error)
            assert path.name in said
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=rf"{path.name}: the shard is truncated"):
        ParquetClicks(tmp_path / "data", 64, num_workers=0).train_dataloader()


def test_a_config_whose_anchors_never_end_or_grow_without_measure_is_refused(tmp_path: Path) -> None:
    nine = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))
    for name, text, sentence in (
        ("endless.yaml", "model: &a [*a]", "stands for something that holds itself"),
        ("bomb.yaml", f"a0: &a0 [x]\n{nine}", "with its anchors (&) written out it has 75,020,345,639 values"),
    ):
        (tmp_path / name).write_text(text + "\n")
        done = run_cli(["fit", "--config", str(tmp_path / name)])
        assert done.code == 2
        assert name in done.err
        assert sentence in done.err
