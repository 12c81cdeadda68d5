"""Event streams: prepare formats, bad input, folders, the generator, windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recloom.data.streams.folder import load_stream
from recloom.data.streams.module import EventStreams, PowerLawEvents
from recloom.data.streams.powerlaw import PowerLawStream
from recloom.data.streams.stream import EventStream, split_bounds
from recloom.errors import DataError, RecloomError
from recloom.testing import run_cli


def prepare(tmp_path: Path, text: str, *options: str, form: str = "jodie", name: str = "log.csv"):
    (tmp_path / name).write_text(text)
    out = tmp_path / "out"
    return run_cli(["prepare", form, "--input", str(tmp_path / name), "--output", str(out), *options]), out


def test_jodie_with_features_and_a_short_header(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp,state_label,comma_separated_list_of_features\n"
    text += "7,3000000000000,0.0,0,0.5,-1\n9,3000000000000,36.0,1,0.25,2e-1\n7,4,36.9,0,1,2\n7,4,4000000000,0,1,2\n"
    result, out = prepare(tmp_path, text, "--split", "time:0.5,0.25,0.25")
    assert result.code == 0, result.out + result.err
    stream = load_stream(out).check()
    assert stream.source.tolist() == [0, 1, 0, 0]
    assert stream.destination.tolist() == [0, 0, 1, 1], "an id beyond 2^31 is a node like any other"
    assert stream.time.dtype == torch.int64
    assert stream.time.tolist() == [0, 36, 36, 4_000_000_000], "unix seconds are exact"
    assert stream.label.tolist() == [0, 1, 0, 0]
    assert stream.features.tolist() == [[0.5, -1.0], [0.25, pytest.approx(0.2)], [1.0, 2.0], [1.0, 2.0]]
    assert stream.bounds == (1, 3), "simultaneous events are in one split"
    names = pq.read_table(out / "nodes" / "destination.parquet")["name"].to_pylist()
    assert names == ["3000000000000", "4"]


def test_disorder_repeats_and_self_loops(tmp_path: Path) -> None:
    text = "source,destination,time\na,b,30\nb,c,10\nc,c,20\nb,c,10\na,c,10\n"
    result, out = prepare(tmp_path, text, "--unipartite", form="graph")
    assert result.code == 0, result.out + result.err
    for told in ("self loops left out: 1", "repeated events, kept: 1", "events out of order, sorted: 1"):
        assert told in (result.out + result.err)
    stream = load_stream(out).check()
    assert stream.time.tolist() == [10, 10, 10, 30]
    assert stream.source.tolist() == [1, 1, 0, 0]
    assert stream.num_nodes == 3
    result, out = prepare(tmp_path, text, "--unipartite", "--repeated", "drop", "--overwrite", form="graph")
    assert len(load_stream(out)) == 3
    result, _ = prepare(tmp_path, text, "--unipartite", "--order", "strict", "--overwrite", form="graph")
    assert result.code == 2
    assert "earlier than the one before" in (result.out + result.err)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("1,2,-5,0", "line 3, field timestamp: -5 is negative"),
        ("1,2,x,0", "line 3, field timestamp"),
        (",2,5,0", "line 3, field user: is empty"),
        ("1,2,5,", "line 3, field state_label: is empty"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: str, said: str) -> None:
    result, out = prepare(tmp_path, f"user,item,timestamp,label\n1,2,3,0\n{row}\n1,2,9,0\n")
    assert result.code == 2
    assert said in (result.out + result.err)
    assert not out.exists()
    result, out = prepare(tmp_path, f"user,item,timestamp,label\n1,2,3,0\n{row}\n1,2,9,0\n", "--max-bad-rows", "1")
    assert result.code == 0
    assert len(load_stream(out)) == 2


def test_milliseconds_are_asked_about_and_kept(tmp_path: Path) -> None:
    text = "user,item,timestamp,label\n1,2,1700000000123,0\n1,2,1700000000456,0\n"
    result, _ = prepare(tmp_path, text)
    assert result.code == 2
    assert "--time-unit ms" in (result.out + result.err)
    result, out = prepare(tmp_path, text, "--time-unit", "ms")
    assert result.code == 0, result.out + result.err
    stream = load_stream(out)
    assert (stream.ticks, stream.time.tolist()) == (1000, [1700000000123, 1700000000456])


def test_movielens_and_parquet(tmp_path: Path) -> None:
    text = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t5\t4\t20\n2\t5\t3\t10\n"
    result, out = prepare(tmp_path, text, form="movielens_graph", name="x.inter")
    assert result.code == 0, result.out + result.err
    stream = load_stream(out)
    assert (stream.time.tolist(), stream.features.tolist()) == ([10, 20], [[3.0], [4.0]])
    table = pa.table({"a": [1, 2], "b": ["x", "y"], "when": [5, 6], "weight": [0.5, 1.5]})
    pq.write_table(table, tmp_path / "log.parquet")
    options = ["--source", "a", "--destination", "b", "--time", "when", "--features", "weight"]
    arguments = ["--input", str(tmp_path / "log.parquet"), "--output", str(tmp_path / "other")]
    assert run_cli(["prepare", "graph", *arguments, *options]).code == 0
    assert load_stream(tmp_path / "other").features.tolist() == [[0.5], [1.5]]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("5\t7", "x.inter, line 3: 2 columns where 4 are expected"),
        ("5\t7\t3\t-5", "line 3, field timestamp: -5 is negative"),
        ("5\t7\t3\tabc", "line 3, field timestamp: 'abc' is neither"),
        ("5\t7\tbest\t20", "line 3, field rating: 'best' is not a number"),
        ("\t7\t3\t20", "line 3, field user: is empty"),
    ],
)
def test_bad_rows_of_movielens_are_named(row: str, said: str, tmp_path: Path) -> None:
    text = f"user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t5\t4\t20\n{row}\n"
    result, out = prepare(tmp_path, text, form="movielens_graph", name="x.inter")
    assert result.code == 2
    assert said in result.out + result.err
    result, out = prepare(tmp_path, text, "--max-bad-rows", "1", form="movielens_graph", name="x.inter")
    assert result.code == 0
    assert len(load_stream(out)) == 1


def test_a_folder_that_is_damaged_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    stream = PowerLawStream(events=100, sources=10, destinations=5).write(tmp_path / "s")
    assert torch.equal(stream.source, PowerLawStream(events=100, sources=10, destinations=5).build().source)
    with (tmp_path / "s" / "time.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"time\.bin: 801 bytes where the manifest says 800"):
        load_stream(tmp_path / "s")
    with pytest.raises(DataError, match="no such directory"):
        EventStreams(tmp_path / "nothing")
    with pytest.raises(DataError, match="already"):
        PowerLawStream(events=100).write(tmp_path / "s")


def test_streams_in_memory_are_checked() -> None:
    def stream(source, destination, time, **options):
        columns = (torch.tensor(source, dtype=torch.int32), torch.tensor(destination, dtype=torch.int32))
        return EventStream(*columns, torch.tensor(time), 3, 3, **options)

    stream([0, 1], [0, 1], [5, 5]).check()
    for bad, said in (
        (stream([0, 1], [0, 1], [5, 4]), "event 1 is earlier"),
        (stream([0, 1], [0, 1], [-1, 4]), "event 0 has a negative time"),
        (stream([0, 1], [0, 1], [5, 1700000000000]), "ticks=1000"),
        (stream([0, 1], [0, 3], [5, 6]), "event 1 has a destination outside"),
        (stream([0, 1], [0, 2], [5, 6], bipartite=False), "from a node to itself"),
        (stream([0, 1], [0, 2], [5.0, 6.0]), "int64"),
    ):
        with pytest.raises(DataError, match=said):
            bad.check()
    assert split_bounds(torch.tensor([1, 1, 1, 1, 2]), (0.5, 0.25, 0.25)) == (4, 4)


def test_what_the_generator_plants_is_there() -> None:
    config = PowerLawStream(events=20_000, sources=300, destinations=90, repeat=0.25, follow=0.5, chunk=3000)
    stream = config.build().check()
    last: dict[int, int] = {}
    kinds = {"repeat": 0, "follow": 0, "other": 0}
    for u, v in zip(stream.source.tolist(), stream.destination.tolist(), strict=True):
        if u in last:
            low = last[u] - last[u] % 20
            successor = low + (last[u] - low + 1) % min(20, 90 - low)
            kinds["repeat" if v == last[u] else "follow" if v == successor else "other"] += 1
        last[u] = v
    total = sum(kinds.values())
    assert kinds["repeat"] / total == pytest.approx(0.25, abs=0.02)
    assert kinds["follow"] / total == pytest.approx(0.5, abs=0.02)
    counts = np.sort(np.bincount(stream.source.numpy()))[::-1]
    assert counts[0] / counts[99] == pytest.approx(100**0.8, rel=0.35)
    assert torch.equal(config.build().destination, stream.destination), "a stream is a function of its options"


def test_windows_go_on_where_they_were(tmp_path: Path) -> None:
    data = PowerLawEvents(events=1000, sources=50, destinations=20, window=64)
    loader = data.train_dataloader()
    seen = [window for window, _ in zip(loader, range(3), strict=False)]
    resumed = data.train_dataloader()
    resumed.load_state_dict({"done": 3, "size": 64})
    rest = list(resumed)
    assert torch.equal(torch.cat([w.source for w in seen + rest]), data.training_stream.source)
    assert len(list(resumed)) == len(loader), "the next epoch begins at the beginning"
    with pytest.raises(RecloomError, match="windows have 64"):
        resumed.load_state_dict({"done": 3, "size": 32})


def test_nodes_can_be_kept_unseen() -> None:
    data = PowerLawEvents(events=3000, sources=50, destinations=20, unseen_share=0.2)
    trained = set(data.training_stream.source.tolist())
    start = data.stream.span("train")[1]
    later = set(data.stream.source[start:].tolist())
    assert len(later - trained) >= 5
    assert len(data.training_stream) < start
