"""`recloom prepare`: what comes out, that bad input is told, that half-done work is never taken for whole."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from recloom.cli.main import main as recloom
from recloom.data.formats.avazu import Avazu
from recloom.data.formats.criteo import Criteo, CriteoTerabyte
from recloom.data.formats.kdd12 import KDD12
from recloom.data.formats.table import Table, TableColumns
from recloom.data.hashing import hash_ids, hash_strings, hex_keys
from recloom.data.manifest import Manifest
from recloom.data.prepare import PrepareOptions, prepare
from recloom.errors import DataError
from recloom.features import FeatureSchema

# recloom.data.hashing in plain Python gives the same: these numbers are in people's shards and must never change
STRINGS = ["", "a", "recloom", "12345678", "123456789", "é" * 20]
HASHES = [
    0, 15018822007599890043, 11960653329809304456, 5079448652857071101, 17270709774242735544, 6122861057226462519,
]  # fmt: skip
CRITEO = [f"I{i}" for i in range(1, 14)], [f"C{i}" for i in range(1, 27)]


def criteo_lines(rows: int, seed: int = 0) -> list[str]:
    """Return raw lines with missing values, a negative count and categories of which some are rare."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(rows):
        dense = ["" if rng.random() < 0.3 else str(int(rng.integers(-2, 1000))) for _ in range(13)]
        sparse = ["" if rng.random() < 0.2 else f"{int(rng.zipf(1.5)) % 5000 * 77:08x}" for _ in range(26)]
        lines.append("\t".join([str(int(rng.random() < 0.3)), *dense, *sparse]))
    return lines


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(line + "\n" for line in lines))
    return path


def read(directory: Path, split: str = "train") -> pl.DataFrame:
    return pl.read_parquet(directory / split / "*.parquet")


def vocabulary(directory: Path, name: str) -> dict[int, str | None]:
    frame = pl.read_parquet(directory / "vocabulary" / f"{name}.parquet")
    return dict(zip(frame["id"], frame["value"], strict=True))


def digests(directory: Path) -> dict[str, str]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_criteo(raw: list[str], directory: Path, min_count: int = 1) -> None:
    """Compare shards of split `none` with a plain Python reading of the lines."""
    rows, found = [line.split("\t") for line in raw], read(directory)
    assert found["label"].to_list() == [float(row[0]) for row in rows]
    for index, name in enumerate(CRITEO[0], start=1):
        expected = [math.log1p(max(int(row[index] or 0), 0)) for row in rows]
        np.testing.assert_allclose(found[name].to_numpy(), expected, rtol=1e-6)
    for index, name in enumerate(CRITEO[1], start=14):
        counts = Counter(row[index] for row in rows if row[index])
        kept = sorted((v for v, n in counts.items() if n >= min_count), key=lambda value: (-counts[value], value))
        ids = {value: place for place, value in enumerate(kept, start=1)}
        assert found[name].to_list() == [ids.get(row[index], 0) for row in rows], name
        assert vocabulary(directory, name) == {0: None, **{place: value for value, place in ids.items()}}
        table = pl.read_parquet(directory / "vocabulary" / f"{name}.parquet")
        assert table["count"].to_list()[1:] == [counts[value] for value in kept]
        assert table["count"].sum() == len(rows)


@pytest.mark.parametrize("min_count", [1, 4])
def test_criteo_like_a_plain_reading(tmp_path: Path, min_count: int) -> None:
    lines = criteo_lines(1500)
    raw = write(tmp_path / "raw.txt", lines)
    options = PrepareOptions(split="none", min_count=min_count, block_bytes=50_000, threads=3)
    report = prepare(Criteo(), [raw], tmp_path / "out", options)
    check_criteo(lines, tmp_path / "out", min_count)
    schema = FeatureSchema.load(tmp_path / "out" / "schema.json")
    assert [(f.name, f.transform) for f in schema.dense] == [(name, "log") for name in CRITEO[0]]
    assert {f.name: f.num_embeddings for f in schema.sparse} == report.cardinalities
    assert all((tmp_path / "out" / feature.vocabulary).exists() for feature in schema.sparse)
    assert report.cardinalities["C1"] == max(vocabulary(tmp_path / "out", "C1")) + 1


def test_output_depends_on_nothing_but_the_input(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw.txt", criteo_lines(3000))
    runs = {
        "a": PrepareOptions(split="random:0.8,0.1,0.1"),
        "again": PrepareOptions(split="random:0.8,0.1,0.1"),
        "small blocks": PrepareOptions(split="random:0.8,0.1,0.1", block_bytes=10_000, threads=3),
        "little memory": PrepareOptions(split="random:0.8,0.1,0.1", block_bytes=10_000, memory=600_000),
    }
    for name, options in runs.items():
        prepare(Criteo(), [raw], tmp_path / name, options)
    assert digests(tmp_path / "a").keys() > {"manifest.json", "train/part-00000.parquet", "vocabulary/C1.parquet"}
    for name in runs:
        assert digests(tmp_path / name) == digests(tmp_path / "a"), name
    other = prepare(Criteo(), [raw], tmp_path / "seed", PrepareOptions(split="random:0.8,0.1,0.1", seed=1))
    assert digests(tmp_path / "seed")["train/part-00000.parquet"] != digests(tmp_path / "a")["train/part-00000.parquet"]
    assert abs(other.rows["train"] - 2400) < 100
    assert sum(other.rows.values()) == 3000


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (lambda f: f[:-1], "39 columns where 40 are expected"),
        (lambda f: [*f, "x"], "41 columns where 40 are expected"),
        (lambda f: [*f[:3], "7.5", *f[4:]], "field I3: '7.5' is not an integer"),
        (lambda f: [*f[:5], "12a", *f[6:]], "field I5: '12a' is not an integer"),
        (lambda f: ["2", *f[1:]], "field label: 2 is neither 0 nor 1"),
        (lambda f: ["", *f[1:]], "field label: is empty"),
        (lambda f: [*f[:20], "xyz", *f[21:]], "field C7: 'xyz' is not 8 hexadecimal digits"),
        (lambda f: [*f[:20], "0123456g", *f[21:]], "field C7: '0123456g' is not 8 hexadecimal digits"),
    ],
)
def test_bad_rows_are_told_with_line_and_field_or_left_out(tmp_path: Path, line, said: str, capsys) -> None:
    lines = criteo_lines(400)
    good = [text for index, text in enumerate(lines) if index not in (299, 350)]
    for index in (299, 350):
        lines[index] = "\t".join(line(lines[index].split("\t")))
    lines[100:100] = [""]  # a blank line is no row, but counts as a line
    raw, out = write(tmp_path / "raw.txt", lines), tmp_path / "out"
    command = ["prepare", "criteo", "--input", str(raw), "--output", str(out), "--split", "none"]
    assert recloom(command) == 2
    error = capsys.readouterr().err
    assert f"{raw}, line 301" in error
    assert said in error
    assert "--max-bad-rows" in error
    assert not out.exists()

    with pytest.raises(DataError, match="more than 1 bad rows") as raised:
        prepare(Criteo(), [raw], out, PrepareOptions(split="none", max_bad_rows=1, block_bytes=40_000))
    assert f"{raw}, line 301" in str(raised.value)
    assert f"{raw}, line 352" in str(raised.value)

    report = prepare(Criteo(), [raw], out, PrepareOptions(split="none", max_bad_rows=2, block_bytes=40_000))
    assert (report.bad_rows, report.rows) == (2, {"train": 398})
    assert Manifest.load(out).facts["bad_rows"] == 2
    check_criteo(good, out)


def test_text_that_is_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    lines = [line.encode() for line in (f"1,a{i},{i}" for i in range(50))]
    lines[30] = b"1,\xff\xfe,30"
    raw = tmp_path / "raw.csv"
    raw.write_bytes(b"click,ad,age\n" + b"\n".join(lines) + b"\n")
    table = Table(TableColumns(label=("click",), dense=("age",), sparse=("ad",)))
    with pytest.raises(DataError, match=r"line 32: byte 3 is not UTF-8"):
        prepare(table, [raw], tmp_path / "out", PrepareOptions(split="none"))
    report = prepare(table, [raw], tmp_path / "out", PrepareOptions(split="none", max_bad_rows=1))
    assert (report.rows["train"], report.cardinalities["ad"]) == (49, 50)


def test_another_format_is_recognised(tmp_path: Path, capsys) -> None:
    raw = write(tmp_path / "raw.txt", criteo_lines(5))
    assert recloom(["prepare", "kdd12", "--input", str(raw), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "line 1: 40 columns" in error
    assert "'kdd12' has 12" in error
    assert "It looks like 'criteo'" in error
    assert recloom(["prepare", "criteo", "--input", str(tmp_path / "no"), "--output", str(tmp_path / "out")]) == 2
    assert "there is no such file" in capsys.readouterr().err
    assert recloom(["prepare", "kriteo", "--input", str(raw), "--output", str(tmp_path / "out")]) == 2
    assert "'criteo'" in capsys.readouterr().err


def test_compressed_files_and_a_truncated_one(tmp_path: Path) -> None:
    lines = criteo_lines(600)
    whole = gzip.compress("\n".join(lines).encode())  # no line end at the end of the file
    raw = tmp_path / "day_0.gz"
    raw.write_bytes(whole)
    prepare(Criteo(), [raw], tmp_path / "out", PrepareOptions(split="none", block_bytes=30_000))
    check_criteo(lines, tmp_path / "out")
    raw.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"day_0.gz, after line \d+: cannot be read"):
        prepare(Criteo(), [raw], tmp_path / "cut", PrepareOptions(split="none", block_bytes=30_000))
    assert not (tmp_path / "cut").exists()


def test_hashing_needs_one_pass_and_never_changes(tmp_path: Path) -> None:
    assert hash_strings(pa.array(STRINGS)).tolist() == HASHES
    assert hash_strings(pa.array(["x" * 11, *STRINGS]).slice(1)).tolist() == HASHES
    keys, wrong = hex_keys(pa.array(["00000000", "68fd1e64", None, "68FD1E64", "68fd1e6", "68fd1e640"]))
    assert keys[:2].tolist() == [0, 0x68FD1E64]
    assert wrong.tolist() == [False, False, False, True, True, True]
    assert hash_ids(keys[:2], 1000).tolist() == [737, 165]

    lines, stages = criteo_lines(500), set()
    raw = write(tmp_path / "raw.txt", lines)
    options = PrepareOptions(split="random:0.9,0.1", hash_size=50)
    prepare(Criteo(), [raw], tmp_path / "out", options, lambda stage, done, total: stages.add(stage))
    assert stages == {"write"}
    found = pl.concat([read(tmp_path / "out", split) for split in ("train", "val")]).select(CRITEO[1]).to_numpy()
    assert (found.min(), found.max()) == (0, 49)
    assert (found == 0).sum() == sum(not value for line in lines for value in line.split("\t")[14:])
    schema = FeatureSchema.load(tmp_path / "out" / "schema.json")
    assert {f.num_embeddings for f in schema.sparse} == {50}
    assert "mix64" in schema.info["ids"]


@pytest.mark.parametrize("options", [{"min_count": 2, "dense_transform": "log"}, {"hash_size": 97}])
def test_a_later_log_takes_over_the_ids_of_an_earlier_one(tmp_path: Path, options: dict) -> None:
    lines, first = criteo_lines(300, seed=1), tmp_path / "first"
    prepare(Criteo(), [write(tmp_path / "all.txt", lines)], first, PrepareOptions("none", **options))
    later = write(tmp_path / "later.txt", [*lines[100:200], "1" + "\t" * 14 + "\t".join(["fffffff1"] * 26)])
    prepare(Criteo(), [later], tmp_path / "later", PrepareOptions("none", like=first))
    found, expected = read(tmp_path / "later"), read(first)
    assert found[:100].equals(expected[100:200])
    if "hash_size" not in options:
        assert set(found[100].select(CRITEO[1]).row(0)) == {0}  # values that the first log did not have
        assert vocabulary(tmp_path / "later", "C1") == vocabulary(first, "C1")
    schemas = [FeatureSchema.load(folder / "schema.json") for folder in (first, tmp_path / "later")]
    assert schemas[0].sparse == schemas[1].sparse
    assert schemas[0].dense == schemas[1].dense


def test_what_is_not_like_it_is_refused(tmp_path: Path, capsys) -> None:
    log = write(tmp_path / "log.csv", ["click,age,site", "1,30,a.com", "0,40,b.com"])

    def run(output: str, *more: str, dense: str = "age") -> str:
        columns = ["--label", "click", "--dense", dense, "--sparse", "site"]
        argv = ["prepare", "table", "--input", str(log), "--output", str(tmp_path / output), "--split", "none"]
        assert recloom([*argv, *(columns if dense else [*columns[:2], *columns[4:]]), *more]) == (2 if more else 0)
        return capsys.readouterr().err

    run("first")
    first = ["--like", str(tmp_path / "first")]
    assert "lacks age" in run("second", *first, dense="")
    assert "Leave out --hash-size" in run("second", *first, "--hash-size", "50")
    assert "directory that is written" in run("first", *first, "--overwrite")
    assert "no such directory" in run("second", "--like", str(tmp_path / "nowhere"))
    pl.DataFrame({"value": ["a.com"], "id": [0]}).write_parquet(tmp_path / "first/vocabulary/site.parquet")
    assert "site.parquet" in run("second", *first)
    assert not (tmp_path / "second/manifest.json").exists()


def test_largest_vocabulary_and_too_little_memory(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw.txt", criteo_lines(3000))
    report = prepare(Criteo(), [raw], tmp_path / "out", PrepareOptions(split="none", max_vocabulary=10))
    assert max(report.cardinalities.values()) == 10
    counts = pl.read_parquet(tmp_path / "out" / "vocabulary" / "C3.parquet")["count"].to_list()
    assert counts[1:] == sorted(counts[1:], reverse=True)
    with pytest.raises(DataError, match="does not fit in --memory"):
        prepare(Criteo(), [raw], tmp_path / "small", PrepareOptions(split="none", memory=5_000))
    assert not (tmp_path / "small").exists()


def test_splits_by_position_day_and_time(tmp_path: Path) -> None:
    files = [write(tmp_path / f"day_{day}", criteo_lines(101, seed=day)) for day in range(3)]
    labels = [[float(line[0]) for line in path.read_text().splitlines()] for path in files]

    prepare(CriteoTerabyte(), files, tmp_path / "reference", PrepareOptions())
    assert read(tmp_path / "reference", "train")["label"].to_list() == labels[0] + labels[1]
    assert read(tmp_path / "reference", "test")["label"].to_list() == labels[2][:51]
    assert read(tmp_path / "reference", "val")["label"].to_list() == labels[2][51:]

    report = prepare(Criteo(), files[:1], tmp_path / "kaggle", PrepareOptions(hash_size=9))
    assert report.rows == {"train": 87, "val": 7, "test": 7}  # 101 = 7 * 14 + 3: the last day has 14
    assert read(tmp_path / "kaggle", "test")["label"].to_list() == labels[0][87:94]

    report = prepare(CriteoTerabyte(), files, tmp_path / "days", PrepareOptions(split="days:0,2"))
    assert (report.rows, report.left_out) == ({"train": 101, "val": 101}, 101)
    assert read(tmp_path / "days", "val")["label"].to_list() == labels[2]

    report = prepare(CriteoTerabyte(), files, tmp_path / "time", PrepareOptions(split="time:0.5,0.5", limit=200))
    assert report.rows == {"train": 100, "val": 100}
    assert read(tmp_path / "time", "val")["label"].to_list() == (labels[0] + labels[1])[100:200]

    for split in ("random:0.5,0.2", "weekly", "days:3-1", "time:1.2,-0.2", "reference:1"):
        with pytest.raises(DataError, match="--split"):
            prepare(Criteo(), files[:1], tmp_path / "none", PrepareOptions(split=split))


AVAZU_HEADER = "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,\
device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"


def test_avazu_hours_become_times(tmp_path: Path) -> None:
    hours = ["14102100"] * 5 + ["14102123"] * 2 + ["14102200"] * 2 + ["14103006"]
    rows = [f"1000001{i}3493,{i % 2},{hour}," + ",".join(f"v{i}" for _ in range(21)) for i, hour in enumerate(hours)]
    raw = write(tmp_path / "train.csv", [AVAZU_HEADER, *rows])
    plain = write(tmp_path / "dev.csv", rows)
    prepare(Avazu(), [raw], tmp_path / "out", PrepareOptions(split="time:0.5,0.2,0.3"))
    assert {split: Manifest.load(tmp_path / "out").rows(split) for split in ("train", "val", "test")} == {
        "train": 5,
        "val": 2,
        "test": 3,
    }
    train, test = read(tmp_path / "out", "train"), read(tmp_path / "out", "test")
    assert set(train["timestamp"]) == {1413849600}  # 2014-10-21 00:00 UTC
    assert test["timestamp"].to_list() == [1413936000, 1413936000, 1414648800]
    hour = vocabulary(tmp_path / "out", "hour_of_day")
    assert [hour[i] for i in test["hour_of_day"]] == ["00", "00", "06"]
    day = vocabulary(tmp_path / "out", "weekday")
    assert [day[i] for i in test["weekday"]] == ["2", "2", "3"]  # Wednesday, Thursday
    report = prepare(Avazu(), [plain], tmp_path / "days", PrepareOptions(split="days:0,1-8,9"))
    assert report.rows == {"train": 7, "val": 2, "test": 1}

    write(raw, [AVAZU_HEADER, *rows[:3], rows[3].replace("14102100", "14102124")])
    with pytest.raises(DataError, match=r"train.csv, line 5, field hour: '14102124' is no hour"):
        prepare(Avazu(), [raw], tmp_path / "bad", PrepareOptions(split="none"))


def test_kdd12_rates_and_expanded_rows(tmp_path: Path) -> None:
    rows = [(0, 1), (2, 5), (3, 3), (0, 4)]
    lines = [f"{c}\t{n}\t" + "\t".join(str(10 * i + k) for k in range(10)) for i, (c, n) in enumerate(rows)]
    raw = write(tmp_path / "training.txt", lines)
    report = prepare(KDD12(), [raw], tmp_path / "rates", PrepareOptions(split="none"))
    found = read(tmp_path / "rates")
    np.testing.assert_allclose(found["label"].to_numpy(), [0, 0.4, 1, 0])
    assert found["weight"].to_list() == [1, 5, 3, 4]
    assert report.label_mean() == pytest.approx(5 / 13)
    command = ["prepare", "kdd12", "--input", str(raw), "--output", str(tmp_path / "rows"), "--expand"]
    assert recloom([*command, "--split", "none"]) == 0
    found = read(tmp_path / "rows")
    assert list(zip(found["label"], found["weight"], strict=True)) == [(0, 1), (1, 2), (0, 3), (1, 3), (0, 4)]
    write(raw, [*lines, lines[0].replace("0\t1", "2\t1", 1)])
    with pytest.raises(DataError, match=r"line 5, field Click: 2 is not in 0 .. Impression"):
        prepare(KDD12(expand=True), [raw], tmp_path / "bad", PrepareOptions(split="none"))


TABLE = '''click,age,ad,genres,when,user,price
1,30,"shoes, red","a|b|a",2024-03-01T00:00:00Z,u1,2
0,,"say ""hi""",,1709251201,u2,1
1,7.5,"two
lines",c,2024-03-01 02:00:02+02:00,u1,1
0,-3,,b,2024-03-01 00:00:03,u3,0.5
'''


def table_columns() -> TableColumns:
    return TableColumns(("click",), ("age",), ("ad",), {"genres": "|"}, "when", "user", "price")


def test_csv_with_quotes_bags_times_groups_and_weights(tmp_path: Path) -> None:
    raw = tmp_path / "raw.csv"
    raw.write_text(TABLE)
    out = tmp_path / "out"
    roles = "--label click --dense age --sparse ad --timestamp when --group user --weight price --bag genres||"
    command = ["prepare", "table", "--input", str(raw), "--output", str(out), "--split", "none", *roles.split()]
    assert recloom(command) == 0
    found = read(out)
    ad, genre = vocabulary(out, "ad"), vocabulary(out, "genres")
    assert [ad[i] for i in found["ad"]] == ["shoes, red", 'say "hi"', "two\nlines", None]
    assert [[genre[i] for i in ids] for ids in found["genres"]] == [["a", "b", "a"], [], ["c"], ["b"]]
    assert found["age"].to_list() == [30, 0, 7.5, -3]
    assert found["when"].to_list() == [1709251200 + i for i in range(4)]
    assert found["user"][0] == found["user"][2] != found["user"][1]
    assert found["price"].to_list() == [2, 1, 1, 0.5]
    schema = FeatureSchema.load(out / "schema.json")
    assert (schema.weight, schema.timestamp, schema.group) == ("price", "when", "user")
    assert [(f.name, f.max_length) for f in schema.sparse] == [("ad", 1), ("genres", 0)]
    assert json.loads((out / "manifest.json").read_text())["stats"]["label_mean"] == pytest.approx(3 / 4.5)

    bad = {  # a row with two lines precedes them
        "1,old,x,,0,u,1": "line 7, field age: 'old' is not a number",
        "1,nan,x,,0,u,1": "line 7, field age: nan is not finite",
        "1,1e999,x,,0,u,1": "line 7, field age: inf is not finite",
        "1,1e300,x,,0,u,1": r"line 7, field age: 1e\+300 is too large for 32 bits",
        "1,1,x,,0,u,3.5e38": r"line 7, field price: 3.5e\+38 is too large for 32 bits",
        "1,1,x,,,u,1": "line 7, field when: is empty",
        "1,1,x,,2024-13-01,u,1": "line 7, field when: '2024-13-01' is no date",
        "1,1,x,,noon,u,1": "line 7, field when: 'noon' is neither unix seconds nor an ISO 8601 time",
        "1,1,x,,0,u,-1": "line 7, field price: -1.0 is negative",
        ",1,x,,0,u,1": "line 7, field click: is empty",
        "4,1,x,,0,u,1": r"line 7, field click: 4.0 is not between 0 and 1 \(of a rating, --positive N",
        "-0.5,1,x,,0,u,1": "line 7, field click: -0.5 is not between 0 and 1",
        "1,1,x": "line 7: 3 columns where 7 are expected",
        '1,1,"x,,0,u,1': "line 7",
    }
    for row, said in bad.items():
        raw.write_text(TABLE + row + "\n")
        with pytest.raises(DataError, match=said):
            prepare(Table(table_columns()), [raw], tmp_path / "bad", PrepareOptions(split="none"))
    assert recloom([*command, "--overwrite"]) == 2
    raw.write_text(TABLE.replace("\n1,", "\n4,").replace("\n0,", "\n2.5,"))
    columns = tmp_path / "columns.yaml"
    columns.write_text("label: click\npositive: 4\nsparse: ad\n")
    named = ["prepare", "table", "--input", str(raw), "--split", "none", "--columns", str(columns)]
    assert recloom([*named, "--output", str(tmp_path / "rated")]) == 0
    assert read(tmp_path / "rated")["click"].to_list() == found["click"].to_list()
    assert recloom([*named, "--positive", "2", "--output", str(tmp_path / "all")]) == 0
    assert set(read(tmp_path / "all")["click"]) == {1.0}
    with pytest.raises(DataError, match=r"(?s)no column 'clik'.*'click'"):
        prepare(Table(TableColumns(label=("clik",))), [raw], tmp_path / "bad", PrepareOptions(split="none"))


def test_parquet_gives_the_same_shards_as_csv(tmp_path: Path) -> None:
    raw = tmp_path / "raw.csv"
    raw.write_text(TABLE)
    frame = pl.read_csv(raw).with_columns(
        when=pl.from_epoch(pl.Series([1709251200 + i for i in range(4)])),
        genres=pl.col("genres").str.split("|"),
    )
    frame.write_parquet(tmp_path / "raw.parquet")
    for name in ("raw.csv", "raw.parquet"):
        prepare(Table(table_columns()), [tmp_path / name], tmp_path / f"out.{name}", PrepareOptions(split="none"))
    assert read(tmp_path / "out.raw.csv").equals(read(tmp_path / "out.raw.parquet"))
    (tmp_path / "raw.parquet").write_bytes((tmp_path / "raw.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match="not a Parquet file"):
        prepare(Table(table_columns()), [tmp_path / "raw.parquet"], tmp_path / "cut", PrepareOptions())


def test_columns_file_and_its_typos(tmp_path: Path, capsys) -> None:
    raw = tmp_path / "raw.csv"
    raw.write_text(TABLE)
    spec = tmp_path / "columns.yaml"
    spec.write_text("label: click\ndense: [age]\nsparse: [ad, user]\nbags: {genres: '|'}\n")
    command = ["prepare", "table", "--input", str(raw), "--output", str(tmp_path / "out"), "--columns", str(spec)]
    assert recloom([*command, "--split", "none", "--sparse", "ad"]) == 0
    assert FeatureSchema.load(tmp_path / "out" / "schema.json").sparse_names == ["ad", "genres"]
    spec.write_text("labl: click\n")
    assert recloom([*command, "--overwrite"]) == 2
    assert "Did you mean 'label'?" in capsys.readouterr().err


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from recloom.data.formats.criteo import Criteo
from recloom.data.prepare import PrepareOptions, prepare
def progress(stage, done, total):
    if stage == "write" and done > total // 2:
        os.kill(os.getpid(), int(sys.argv[3]))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
prepare(Criteo(), [Path(sys.argv[1])], Path(sys.argv[2]), PrepareOptions(block_bytes=20_000), progress)
"""


def test_killed_and_interrupted_runs_leave_no_data_set(tmp_path: Path, capsys) -> None:
    raw, out = write(tmp_path / "raw.txt", criteo_lines(2000)), tmp_path / "out"

    def run(number: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", INTERRUPTED, str(raw), str(out), str(number)]
        return subprocess.run(command, capture_output=True, text=True)

    stopped = run(signal.SIGINT)
    assert "KeyboardInterrupt" in stopped.stderr
    assert "Exception ignored" not in stopped.stderr
    assert not out.exists()

    assert run(signal.SIGKILL).returncode == -signal.SIGKILL
    with pytest.raises(DataError, match="has not finished here"):
        Manifest.load(out)
    command = ["prepare", "criteo", "--input", str(raw), "--output", str(out)]
    assert recloom(command) == 0  # starts again over its own remains
    prepare(Criteo(), [raw], tmp_path / "fresh")
    assert digests(out) == digests(tmp_path / "fresh")
    assert recloom(command) == 2  # and does not overwrite a finished one unasked
    assert "--overwrite" in capsys.readouterr().err


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from recloom.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
sys.exit(main(["prepare", "criteo", "--input", sys.argv[1], "--output", sys.argv[2], *sys.argv[4:]]))
"""


@pytest.mark.parametrize(("limit", "options"), [(200_000, []), (2_000, []), (2_000, ["--memory", "300k"])])
def test_a_disk_that_takes_no_more(tmp_path: Path, limit: int, options: list[str]) -> None:
    """Shards, vocabularies and spilled counts cannot be written: a sentence, exit code 2, nothing left."""
    raw, out = write(tmp_path / "raw.txt", criteo_lines(9000)), tmp_path / "out"
    command = [sys.executable, "-c", LIMITED, str(raw), str(out), str(limit), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert f"{out}: cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert not out.exists()


def test_command_imports_no_torch(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw.txt", criteo_lines(50))
    code = "import sys; from recloom.cli.main import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    command = ["prepare", "criteo", "--input", str(raw), "--output", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bad rows: 0" in done.stdout
    assert "train" in done.stdout


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Ten times the rows take hardly more memory than the blocks do."""
    lines = "".join(line + "\n" for line in criteo_lines(500))
    peaks = []
    for copies in (60, 600):
        raw = tmp_path / f"{copies}.txt"
        raw.write_text(lines * copies)
        code = "import sys; from recloom.cli.main import main; sys.exit(main(sys.argv[1:]))"
        command = ["prepare", "criteo", "--input", str(raw), "--output", str(tmp_path / f"out{copies}")]
        command = [sys.executable, "-c", code, *command, "--memory", "128MiB"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.rsplit("peak memory", 1)[1].split()[0].replace(",", "")))
    assert peaks[1] < peaks[0] + 120, peaks


def test_samples_of_the_real_logs(tmp_path: Path, samples: Path) -> None:
    raw = samples / "criteo_wideresdnn" / "train.csv"
    prepare(Criteo(), [raw], tmp_path / "criteo", PrepareOptions(split="none"))
    check_criteo(raw.read_text().splitlines(), tmp_path / "criteo")

    files = [samples / "avazu_wideresdnn" / name for name in ("train.csv", "dev.csv")]
    prepare(Avazu(), files, tmp_path / "avazu", PrepareOptions(split="none", block_bytes=100_000))
    rows = [line.split(",") for path in files for line in path.read_text().splitlines() if not line.startswith("id,")]
    found = read(tmp_path / "avazu")
    assert found["click"].to_list() == [float(row[1]) for row in rows]
    for place, name in ((5, "site_id"), (12, "device_ip"), (22, "C20")):
        values = vocabulary(tmp_path / "avazu", name)
        assert [values[i] for i in found[name]] == [row[place] for row in rows]
