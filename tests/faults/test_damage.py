"""Bits that flip and files that are cut: what is read is what was written, or an error names the file."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import ROOT, finish
from test_kills import SMALL, items

from recloom import checkpoint, dcp, sharded_checkpoint
from recloom.data.parquet import ParquetClicks
from recloom.data.streams.module import EventStreams
from recloom.data.streams.powerlaw import PowerLawStream
from recloom.dcp import RowSpans
from recloom.errors import RecloomError
from recloom.search.methods.random import RandomSearch
from recloom.search.objective import Objective
from recloom.search.study import Study
from recloom.testing.searching import ToySpace, set_up

pytestmark = pytest.mark.timeout(900)


def damaged(path: Path, times: int, seed: int = 0) -> Any:
    """Yield `times` times, with one bit of the file wrong, or the file cut; put it right afterwards."""
    whole, rng = path.read_bytes(), random.Random(seed)
    for time in range(times):
        broken = bytearray(whole)
        if time % 5 == 4:
            del broken[rng.randrange(len(whole)) :]
        else:
            broken[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(broken))
        yield time
    path.write_bytes(whole)


def refused_or_equal(path: Path, times: int, read: Callable[[], Any], same: Callable[[Any], bool]) -> int:
    """Read a damaged file many times; return how often it was refused. Anything else has to be what was written."""
    refused = 0
    for time in damaged(path, times):
        said = ""
        try:
            found = read()
        except RecloomError as error:
            said = str(error)
        if said:
            refused += 1
            assert path.name in said or path.parent.name in said, f"{time}: {said}"
        else:
            assert same(found), f"damage {time} of {path} was read as if it were right: {found}"
    assert same(read())
    return refused


def test_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "some.ckpt"
    torch.save({"state_dict": {"a": torch.arange(3000.0), "b": torch.ones(7)}, "global_step": 3}, path)

    def same(found: dict[str, Any]) -> bool:
        weights = found["state_dict"]
        equal = torch.equal(weights["a"], torch.arange(3000.0)) and torch.equal(weights["b"], torch.ones(7))
        return equal and found["global_step"] == 3

    assert refused_or_equal(path, 200, lambda: checkpoint.read(path), same) > 100


def test_sharded_checkpoints(tmp_path: Path) -> None:
    path, tables = tmp_path / "some.ckpt", {"a": torch.arange(3000.0).view(1000, 3), "b": torch.ones(70, 2)}
    folder = sharded_checkpoint.new_folder(path, 3)
    dcp.save(folder, {f"state_dict/{name}": (rows, RowSpans.all(len(rows))) for name, rows in tables.items()})
    sharded_checkpoint.write({"state_dict": {}, "global_step": 3}, path, folder)

    def same(found: dict[str, Any]) -> bool:
        return found["global_step"] == 3 and all(
            torch.equal(found["state_dict"][name], tables[name]) for name in tables
        )

    refused = {
        file.name: refused_or_equal(file, 200, lambda: checkpoint.read(path), same)
        for file in (folder / "__0_0.distcp", folder / ".metadata", path)
    }
    assert min(refused.values()) > 100, refused


def test_shards(tmp_path: Path) -> None:
    raw = tmp_path / "raw.csv"
    rng = random.Random(0)
    raw.write_text("click,a,b\n" + "".join(f"{i % 2},{rng.random():.4f},x{rng.randrange(30)}\n" for i in range(2000)))
    options = ["--label", "click", "--dense", "a", "--sparse", "b", "--split", "random:0.8,0.1,0.1"]
    finish("prepare", "table", "--input", str(raw), "--output", str(tmp_path / "data"), *options)

    def read() -> list[torch.Tensor]:
        module = ParquetClicks(tmp_path / "data", batch_size=500, num_workers=0, shuffle=False)
        return [part for b in module.train_dataloader() for part in (b.dense_features, b.sparse_features.values)]

    expected = read()

    def same(found: list[torch.Tensor]) -> bool:
        return len(found) == len(expected) and all(map(torch.equal, found, expected))

    for path in sorted((tmp_path / "data").rglob("train*.parquet"))[:1]:
        assert refused_or_equal(path, 100, read, same) > 50
    assert refused_or_equal(tmp_path / "data/manifest.json", 50, read, same) > 30
    assert refused_or_equal(tmp_path / "data/schema.json", 50, read, same) > 30


def test_streams(tmp_path: Path) -> None:
    folder = tmp_path / "stream"
    PowerLawStream(events=500, sources=10, destinations=5).write(folder)

    def read() -> list[Any]:
        stream = EventStreams(folder).stream
        return [stream.source.tolist(), stream.destination.tolist(), stream.time.tolist(), stream.bounds]

    expected = read()
    for name in ("source.bin", "destination.bin", "time.bin", "manifest.json"):
        assert refused_or_equal(folder / name, 50, read, lambda found: found == expected) > 30


def test_indexes(tmp_path: Path) -> None:
    sizes = ["--data.num_items=300", "--data.num_users=100", "--data.num_train=2000", "--data.num_val=500"]
    config = str(ROOT / "configs/hsnn/two_tower.yaml")
    finish("fit", "--config", config, *SMALL, *sizes, "--data.batch_size=256", f"--run_dir={tmp_path / 'run'}")
    folder = tmp_path / "index"
    finish("index", "build", "--run", str(tmp_path / "run"), "--out", str(folder), "--index", "HNSW")
    expected = items(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("example")]
    assert len(files) > 6
    for path in files:
        if path.name != "lock":
            refused = refused_or_equal(path, 5, lambda: items(folder), lambda found: found == expected)
            assert refused > 0, path


def test_studies(tmp_path: Path) -> None:
    space, objective = ToySpace(4), Objective(("loss",))
    path = tmp_path / "study.db"

    def study(path: Path) -> Study:
        method = set_up(RandomSearch(), space, objective, 0)
        return Study(space, objective, method, path, price=space.price, trials=30)

    with study(path) as first:
        while not first.done:
            for asked in first.ask_many(5):
                first.tell(asked, space.metrics(asked.genotype))
        expected = [(o.number, o.genotype, o.values) for o in first.observations()]

    with sqlite3.connect(path) as connection:  # all of it in one file
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    places = iter(range(1000))

    def read() -> Any:
        place = tmp_path / str(next(places))  # a reader may repair the file, and keeps it open
        place.mkdir()
        shutil.copy(path, place / path.name)
        with study(place / path.name) as found:
            return [(o.number, o.genotype, o.values) for o in found.observations()]

    assert refused_or_equal(path, 150, read, lambda found: found == expected) > 10
