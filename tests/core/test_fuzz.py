"""Garbage in: raw logs and configs with random damage are read, or refused by a sentence that names the file.

The same cases in every run. `make faults` runs many more of them.
"""

from __future__ import annotations

import bz2
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recloom.data.manifest import Manifest
from recloom.data.streams.folder import load_stream
from recloom.testing import run_cli

AVAZU = "1000{i}3493,{b},141021{h:02d}," + ",".join(["v{i}"] * 21)
LOGS: dict[str, tuple[str, str, list[str]]] = {  # format: header, a row, options
    "criteo": ("", "\t".join(["{b}", *["{i}"] * 13, *["{i:08x}"] * 26]), []),
    "avazu": ("", AVAZU, []),
    "kdd12": ("", "\t".join(["{b}", "3", *["{i}"] * 10]), []),
    "taobao": ("", "{i},{j},7,pv,15115{i:02d}{j:02d}0", ["--negatives", "uniform:1"]),
    "movielens": ("userId,movieId,rating,timestamp", "{i},{j},3,15115{i:02d}{j:02d}0", []),
    "movielens_graph": ("", "{i}::{j}::3::15115{i:02d}{j:02d}0", []),
    "jodie": ("user_id,item_id,timestamp,state_label,features", "{i},{j},{n}.0,0,0.5,-1", []),
    "graph": ("source,destination,time,x", "{i},{j},{n},0.5", ["--features", "x"]),
    "events": ("user,item,timestamp", 'u{i},"i, {j}",2024-03-01T00:{i:02d}:{j:02d}Z', []),
    "table": (
        "click,age,ad,tags,when",
        '{b},{i}.5,"ad, {j}",a|b|{i},2024-03-01 00:00:{i:02d}',
        ["--label", "click", "--dense", "age", "--sparse", "ad", "--bag", "tags||", "--timestamp", "when"],
    ),
}
TEXTS = [b"", b"nan", b"-inf", b"1e999", b"9" * 25, b"-9223372036854775808", b'"', b'""', b"\x00", b"\xff\xfe", b"\r"]
TEXTS += [
    b"\xef\xbb\xbf",
    b"\n\n",
    b"\t\t\t",
    b",,,,",
    b"a" * 70_000,
    "é\u2028\U0001f600".encode(),
    b"::",
    b"|||",
    b"\\N",
]


def log(name: str, rng: random.Random, rows: int = 40) -> bytes:
    """Return a good log of a format."""
    header, row, _ = LOGS[name]
    lines = [header] if header else []
    for n in range(rows):
        lines.append(row.format(n=n, b=rng.randrange(2), i=rng.randrange(10), j=rng.randrange(30), h=rng.randrange(24)))
    return "".join(line + "\n" for line in lines).encode()


def spoil(data: bytes, rng: random.Random) -> bytes:
    """Return `data` with one to four damages."""
    for _ in range(rng.randrange(1, 5)):
        place, kind = rng.randrange(len(data) + 1), rng.randrange(7)
        if kind == 0:  # something strange in the middle of a value
            data = data[:place] + rng.choice(TEXTS) + data[place:]
        elif kind == 1:  # a field that is something strange
            separator = rng.choice([b",", b"\t", b"\n"])
            parts = data.split(separator)
            parts[rng.randrange(len(parts))] = rng.choice(TEXTS)
            data = separator.join(parts)
        elif kind == 2 and data:  # a bit
            place = rng.randrange(len(data))
            data = data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        elif kind == 3:  # an end
            data = data[:place]
        elif kind == 4:  # a piece that is missing
            data = data[:place] + data[place + rng.randrange(1, 60) :]
        elif kind == 5:  # a piece that comes again
            data = data[:place] + data[max(0, place - 80) :]
        else:  # other lines' ends
            data = data.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n", b"\n\xef\xbb\xbf"]))
    return data


def raw_case(folder: Path, number: int) -> str:
    """Prepare a spoiled log; assert that all is well or well told; return which."""
    rng = random.Random(number)
    name = list(LOGS)[number % len(LOGS)]
    data, suffix = log(name, rng), rng.choice([".csv", ".tsv", ".txt", "", ".csv.gz", ".bz2"])
    first, packed = rng.random() < 0.8, {"gz": gzip.compress, "bz2": bz2.compress}.get(suffix.rpartition(".")[2])
    data = spoil(data, rng) if first or not packed else data
    data = packed(data) if packed else data
    if not first and packed:
        data = spoil(data, rng)
    folder.mkdir()
    raw, out = folder / f"raw{suffix}", folder / "out"
    raw.write_bytes(data)
    split = rng.choice(["random:0.6,0.2,0.2", "none", "time:0.6,0.2,0.2"][: 1 if name in ("criteo", "kdd12") else 3])
    options = ["--split", split] if name not in ("jodie", "graph", "movielens_graph") else []
    bad = ["--max-bad-rows", str(rng.choice([0, 3, 1000]))]
    argv = [
        "prepare",
        name,
        "--input",
        str(raw),
        "--output",
        str(out),
        "--threads",
        "1",
        *LOGS[name][2],
        *options,
        *bad,
    ]
    return checked(argv, raw, out, number)


def checked(argv: list[str], raw: Path, out: Path, number: int) -> str:
    done = run_cli(argv)  # anything but a RecloomError comes through
    if done.code == 0:
        left = [path.name for path in out.rglob("*") if path.suffix == ".part" or path.name.startswith(".")]
        assert not left, (number, left)
        kind = json.loads((out / "manifest.json").read_text()).get("kind")
        assert load_stream(out).check() if kind == "stream" else Manifest.load(out).splits, number
        return "read"
    assert done.code == 2, (number, argv, done)
    assert raw.name in done.err or "--split time" in done.err, (number, argv, done.err)
    assert not out.exists(), (number, argv, done.err)
    return "refused"


def parquet_case(folder: Path, number: int) -> str:
    """The same of a Parquet file."""
    rng = random.Random(number)
    folder.mkdir()
    raw, out = folder / "raw.parquet", folder / "out"
    strange: list[list[Any]] = [[1, 0, None], [0.5, float("nan"), 1e300], ["x", "", None], [b"\xff", b"", None]]
    strange += [[[1], [], None], [[None], ["a"], []], [True, False, True], [10**18, -1, 0], [{"a": 1}, None, {"a": 2}]]
    good = {
        "click": [1, 0, 1],
        "age": [1, None, 2.5],
        "ad": ["x", None, "y"],
        "tags": ["a|b", "", None],
        "when": [1, 5, 3],
    }
    for _ in range(rng.randrange(3)):
        good[rng.choice(list(good))] = rng.choice(strange)
    columns = {name: pa.array(values * 10) for name, values in good.items()}
    pq.write_table(pa.table(columns), raw, compression=rng.choice(["none", "zstd"]))
    if rng.random() < 0.3:
        raw.write_bytes(spoil(raw.read_bytes(), rng))
    options = ["--max-bad-rows", str(rng.choice([0, 1000])), *LOGS["table"][2]]
    return checked(["prepare", "table", "--input", str(raw), "--output", str(out), *options], raw, out, number)


CONFIG = """seed_everything: 1
model:
  class_path: DLRM
  init_args:
    embedding_dim: 4
    dense_arch: [8, 4]
    over_arch: [8]
    interaction: CrossNet
    optimizer: {dense: Adam, dense_lr: 0.01, sparse_lr: 0.1}
data:
  class_path: SyntheticClicks
  init_args: {num_train: 64, num_val: 64, num_test: 0}
trainer: {max_epochs: 1, logger: false}
"""
SCALARS = [
    "null",
    "true",
    "-1",
    "1e309",
    ".nan",
    "[]",
    "{}",
    "[1, [2]]",
    "{a: 1}",
    "'x'",
    "DLRM",
    "os.system",
    "!!python/object:os.x",
]
SCALARS += [
    "&a [*a]",
    "*gone",
    "2024-01-01",
    "0x10",
    "torch.nn.Module",
    "recloom",
    "a: b: c",
    "\t",
    "%",
    "@",
    "\x01",
    "<<: 3",
    "~",
    '"',
]


def config_case(folder: Path, number: int) -> str:
    """Price the model of a spoiled config; assert that it works or says which file or option is wrong."""
    rng = random.Random(number)
    lines = CONFIG.splitlines()
    for _ in range(rng.randrange(4)):  # at times nothing is wrong
        place, kind = rng.randrange(len(lines)), rng.randrange(6)
        key = lines[place].partition(": ")[0]
        if kind == 0:
            lines[place] = f"{key}: {rng.choice(SCALARS)}"
        elif kind == 1:
            lines[place] = lines[place].replace(
                key.strip(), rng.choice(["modle", "x" * 300, "class_path", "é", "-", "1"])
            )
        elif kind == 2:
            del lines[place]
        elif kind == 3:
            lines.insert(place, lines[rng.randrange(len(lines))])
        elif kind == 4:
            lines[place] = " " * rng.randrange(1, 4) + lines[place]
        else:
            spoiled = spoil(lines[place].encode("utf-8", "surrogateescape"), rng)
            lines[place] = spoiled.decode("utf-8", "surrogateescape")
    folder.mkdir()
    path = folder / "fuzz.yaml"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    done = run_cli(["cost", "--config", str(path)])
    assert done.code in (0, 2), (number, done)
    if done.code == 0:
        return "read"
    assert "Traceback" not in done.err, (number, done.err)
    known = (
        "fuzz.yaml",
        "model",
        "data",
        "trainer",
        "option",
        "SyntheticClicks",
        "DLRM",
        "seed_everything",
        "optimizer",
    )
    assert any(name in done.err for name in known), (number, path.read_text(errors="replace"), done.err)
    return "refused"


@pytest.mark.parametrize(("case", "count"), [(raw_case, 90), (parquet_case, 30), (config_case, 20)])
def test_garbage_is_read_or_refused(case: Any, count: int, tmp_path: Path) -> None:
    found = [case(tmp_path / str(number), number) for number in range(count)]
    assert set(found) == {"read", "refused"}
