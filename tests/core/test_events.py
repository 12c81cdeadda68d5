"""Event logs to histories: nothing of the future, nothing from ids, what comes out counted, bad input told."""

from __future__ import annotations

import errno
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recloom.cli.main import main as recloom
from recloom.data.events.options import EventOptions, parse_time_range
from recloom.data.formats.events import EventColumns, Events
from recloom.data.formats.movielens import MovieLens
from recloom.data.formats.taobao import Taobao
from recloom.data.parquet import ParquetClicks
from recloom.data.prepare import PrepareOptions, prepare
from recloom.errors import DataError, RecloomError

START = 1511539200
Event = tuple[Any, ...]  # user, item, category, behaviour, time, all of them as the file has them


def write(path: Path, events: list[Event]) -> Path:
    path.write_text("".join(",".join(map(str, event)) + "\n" for event in events))
    return path


def run(folder: Path, events: list[Event], *, seed: int = 0, split: str = "none", **options: Any) -> Any:
    """Prepare Taobao-like events in `folder`; return the report, with the rows in `report.table`, ids as raw values."""
    raw = Taobao(EventOptions(**options))
    report: Any = prepare(
        raw,
        [write(folder / "log.csv", events)],
        folder / "out",
        PrepareOptions(split=split, seed=seed, overwrite=True, block_bytes=4096, threads=2),
    )
    report.table = rows_of(folder / "out")
    return report


def rows_of(path: Path) -> pl.DataFrame:
    """Return all rows with their split, and ids as the values that they stand for."""
    parts = [
        pl.read_parquet(folder / "*.parquet").with_columns(split=pl.lit(folder.name))
        for folder in (path / "train", path / "val", path / "test")
        if folder.is_dir()
    ]
    frame = pl.concat(parts)
    for name in frame.columns:
        file = path / "vocabulary" / f"{name.rpartition(':')[2]}.parquet"
        if file.exists():
            names = pl.read_parquet(file)["value"].to_list()
            one = pl.col(name)
            frame = frame.with_columns(
                one.list.eval(pl.element().replace_strict(range(len(names)), names, return_dtype=pl.String))
                if isinstance(frame[name].dtype, pl.List)
                else one.replace_strict(range(len(names)), names, return_dtype=pl.String)
            )
    return frame


def steps(row: dict[str, Any]) -> list[Event]:
    columns = (row["history:item"], row["history:category"], row["history:behaviour"], row["history:time"])
    return list(zip(*columns, strict=True))


def made_up(users: int, each: int, seed: int = 0, ties: bool = False) -> list[Event]:
    """Return events in a mixed order; an item's category is its number modulo 7."""
    rng = np.random.default_rng(seed)
    times = START + rng.integers(0, 3 if ties else 500_000, (users, each))
    items = rng.integers(1, 60, (users, each))
    kinds = rng.choice(["pv", "buy", "cart", "fav"], (users, each))
    found = [
        (f"u{u}", f"i{items[u, e]}", f"c{items[u, e] % 7}", kinds[u, e], int(times[u, e]))
        for u in range(users)
        for e in range(each)
    ]
    return [found[place] for place in rng.permutation(len(found))]


events_of_few_users = st.lists(
    st.tuples(
        st.sampled_from(["ann", "bob", "cy"]),
        st.sampled_from(["x", "y", "z"]),
        st.sampled_from(["c", "d"]),
        st.sampled_from(["pv", "buy"]),
        st.integers(START, START + 6),
    ),
    min_size=2,
    max_size=40,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events_of_few_users, st.integers(1, 5), st.integers(0, 3), st.integers(0, 2))
def test_histories_are_those_of_a_plain_loop_and_know_nothing_of_the_future(tmp_path, events, length, least, seed):
    whole = run(tmp_path, events, seed=seed, history=1000, min_history=0)
    order: dict[str, list[Event]] = {}  # each user's events: every candidate's history is what was there before
    for row in whole.table.sort(pl.col("history:item").list.len()).iter_rows(named=True):
        found = order.setdefault(row["user"], [])
        assert [(item, category, time) for item, category, _, time in steps(row)] == found
        found.append((row["item"], row["category"], row["timestamp"]))
        assert not Counter(steps(row)) - Counter(event[1:] for event in events if event[0] == row["user"])
    for user, found in order.items():
        own = [event[1:] for event in events if event[0] == user]
        assert Counter(found) == Counter((item, category, time) for item, category, _, time in own)
        assert [event[-1] for event in found] == sorted(event[-1] for event in found)

    if max(map(len, order.values())) <= least:
        with pytest.raises(DataError, match="no rows to write"):
            run(tmp_path, events, seed=seed, history=length, min_history=least)
        return
    cut = run(tmp_path, events, seed=seed, history=length, min_history=least)
    expected = []
    for user, found in order.items():
        for place in range(least, len(found)):
            expected.append((user, *found[place], tuple(found[max(place - length, 0) : place])))
    assert Counter(expected) == Counter(
        (row["user"], row["item"], row["category"], row["timestamp"], tuple((i, c, t) for i, c, _, t in steps(row)))
        for row in cut.table.iter_rows(named=True)
    )
    sizes = [len(found) for found in order.values()]
    counts = cut.counts
    assert counts["events"] == len(events)
    assert counts["users"] == len(order)
    assert counts["users with one event"] == sizes.count(1)
    assert counts["positives"] == len(expected) == sum(cut.rows.values())
    assert counts["events with too little history"] == len(events) - len(expected)
    assert counts["truncated histories"] == sum(max(size - max(length + 1, least), 0) for size in sizes)
    assert counts["empty histories"] == (len(order) if least == 0 else 0)
    assert counts["duplicate events, kept"] == len(events) - len(set(events))
    same = Counter((event[0], event[-1]) for event in events)
    assert counts["events at the same time as another of the user"] == sum(n for n in same.values() if n > 1)


@pytest.mark.parametrize("lines", ["as they are", "sorted by item", "reversed"])
def test_of_events_at_the_same_time_neither_ids_nor_lines_tell_the_order(tmp_path, lines):
    rng = np.random.default_rng(3)
    events = [(f"u{u}", 10_000 + int(i), "c", "pv", START) for u in range(800) for i in rng.permutation(500)[:5]]
    if lines != "as they are":
        events.sort(key=lambda event: event[1], reverse=lines == "reversed")
    found = run(tmp_path, events, history=1).table
    later = (found["item"].cast(int) > found["history:item"].list.last().cast(int)).to_numpy()
    assert len(later) == 3200
    assert abs(later.mean() - 0.5) < 0.05  # 4 standard errors of rows that are not independent
    other = run(tmp_path, events, history=1, seed=1).table
    assert not found.sort("user", "item").equals(other.sort("user", "item"))


def test_neither_threads_nor_memory_change_a_row(tmp_path):
    log = write(tmp_path / "log.csv", made_up(60, 30, ties=True))
    found = []
    for memory, threads, block in ((1 << 30, 1, 1 << 20), (100_000, 2, 3000)):
        raw = Taobao(EventOptions(negatives="popularity", num_negatives=2, windows_per_user=7))
        options = PrepareOptions(memory=memory, threads=threads, block_bytes=block, overwrite=True)
        prepare(raw, [log], tmp_path / "out", options)
        found.append(rows_of(tmp_path / "out"))
        mixed = found[-1].filter(pl.col("split") == "train")["group"].to_numpy()
        assert (mixed[1:] == mixed[:-1]).mean() < 0.3  # rows of a user do not lie side by side
    assert Counter(map(repr, found[0].rows())) == Counter(map(repr, found[1].rows()))


@pytest.mark.parametrize(("kind", "share"), [("uniform", 1 / 3), ("popularity", 3 / 4)])
def test_negatives_are_other_items_with_their_categories(tmp_path, kind, share):
    rng = np.random.default_rng(0)
    drawn = rng.choice([1, 1, 1, 1, 1, 1, 2, 2, 3, 3], 4000)  # 60%, 20%, 20%; item 4 is what is predicted
    events = [(n % 400, i, f"c{i}", "pv", START + n) for n, i in enumerate(drawn)]
    events += [(user, 4, "c4", "pv", START + 9000) for user in range(400)]
    report = run(tmp_path, events, negatives=kind, num_negatives=5, windows_per_user=-1)
    positive = report.table.filter(pl.col("label") == 1)
    negative = report.table.filter(pl.col("label") == 0)
    assert set(positive["item"]) == {"4"}
    assert positive.height == 400
    assert negative.height == 2000
    assert "4" not in set(negative["item"])
    assert (report.table["category"] == "c" + report.table["item"]).all()
    same = ["user", "timestamp", "group", "history:item", "history:category", "history:behaviour", "history:time"]
    pairs = negative.join(positive.select(same), on="user", suffix=" of the positive")
    assert pairs.height == 2000
    assert all((pairs[name] == pairs[f"{name} of the positive"]).all() for name in same[1:])
    expected = share if kind == "uniform" else 0.6
    assert abs((negative["item"] == "1").mean() - expected) < 0.05
    assert report.label_mean() == pytest.approx(1 / 6)


def test_items_that_share_id_0_are_in_histories_only(tmp_path):
    events = [(u, i, "c", "pv", START + i) for u in range(20) for i in range(5)]
    events += [(u, 1000 + u, "c", "pv", START + 7) for u in range(20)]
    events += [(u, 2, "c", "pv", START + 9) for u in range(20)]
    raw = Taobao(EventOptions(negatives="uniform", num_negatives=3))
    options = PrepareOptions(min_count=10, split="none")
    report = prepare(raw, [write(tmp_path / "log.csv", events)], tmp_path / "out", options)
    table = pl.read_parquet(tmp_path / "out" / "train" / "*.parquet")
    assert table["item"].min() == 1
    assert table["history:item"].explode().min() == 0
    assert report.counts["events of rare items, no candidates"] == 20
    assert report.counts["positives"] == 20 * 5


def test_splits_keep_users_or_times_apart(tmp_path):
    events = made_up(200, 12)
    by_user = run(tmp_path, events, split="users:0.6,0.2,0.2").table
    assert set(by_user["split"]) == {"train", "val", "test"}
    assert by_user.group_by("user").agg(pl.col("split").n_unique())["split"].max() == 1
    shares = by_user.group_by("split").agg(pl.col("user").n_unique() / 200)
    assert dict(shares.iter_rows())["train"] == pytest.approx(0.6, abs=0.12)
    assert not run(tmp_path, events, split="users:0.6,0.2,0.2", seed=1).table["split"].equals(by_user["split"])

    by_time = run(tmp_path, events, split="time:0.8,0.1,0.1").table
    ends = {
        row[0]: row[1:]
        for row in by_time.group_by("split").agg(a=pl.col("timestamp").min(), b=pl.col("timestamp").max()).iter_rows()
    }
    assert ends["train"][1] < ends["val"][0]
    assert ends["val"][1] < ends["test"][0]
    test = by_time.filter(pl.col("split") == "test")
    assert (test["history:time"].list.min() < ends["val"][0]).any()  # a history reaches back into the training time
    assert sum(by_time["split"] == "train") / by_time.height == pytest.approx(0.8, abs=0.05)

    chosen = run(tmp_path, events, windows_per_user=3, split="random:0.5,0.5").table
    assert set(chosen.group_by("user").len()["len"]) == {3}
    last = run(tmp_path, events, windows_per_user=-1).table
    assert {(row["user"], row["timestamp"]) for row in last.iter_rows(named=True)} == {
        (f"u{u}", max(event[-1] for event in events if event[0] == f"u{u}")) for u in range(200)
    }


def test_behaviours_and_times_that_are_not_wanted_are_counted_and_left_out(tmp_path):
    events = [("u", n, "c", kind, START + n) for n, kind in enumerate(["pv", "buy", "pv", "cart", "buy", "buy"])]
    events += [("u", 9, "c", "buy", START - 1), ("u", 9, "c", "pv", 1512316800), ("u", 9, "c", "pv", -1800)]
    report = run(tmp_path, events, behaviours=("buy",), time_range=Taobao.time_range)
    assert report.counts["events outside the time range"] == 3
    assert report.counts["events of other behaviours"] == 3
    assert sorted(report.table["history:item"].to_list()) == [["1"], ["1", "4"]]
    facts = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert facts["stats"]["events"] == report.counts
    assert "behaviour" not in report.table.columns  # of a candidate: not known before it happened
    with pytest.raises(RecloomError, match="no behaviour named 'bye'"):
        EventOptions(behaviours=("bye",)) and Taobao(EventOptions(behaviours=("bye",)))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("u,i,c,look,1511539200", "line 3, field behaviour: 'look' is none of pv, buy, cart, fav"),
        ("u,i,c,,1511539200", "line 3, field behaviour: is none of pv"),
        (
            "u,i,c,pv,1511539200000",
            "line 3, field timestamp: 1511539200000 seconds is before 1970 or after 5138 .*unit",
        ),
        ("u,i,c,pv,-5", "line 3, field timestamp: -5 seconds is before 1970"),
        ("u,i,c,pv,yesterday", "line 3, field timestamp: 'yesterday' is neither unix seconds nor"),
        ("u,i,c,pv,", "line 3, field timestamp: is empty"),
        (",i,c,pv,1511539200", "line 3, field user: is empty"),
        ("u,,c,pv,1511539200", "line 3, field item: is empty"),
        ("u,i,pv,1511539200", "line 3: 4 columns where 5 are expected"),
    ],
)
def test_a_bad_row_is_named_or_counted(tmp_path, line, complaint):
    good = made_up(2, 5)
    log = tmp_path / "log.csv"
    log.write_text(
        "\n".join([",".join(map(str, e)) for e in good[:2]] + [line] + [",".join(map(str, e)) for e in good[2:]])
    )
    with pytest.raises(DataError, match=complaint):
        prepare(Taobao(EventOptions()), [log], tmp_path / "out", PrepareOptions(split="none"))
    assert not (tmp_path / "out").exists()
    report = prepare(Taobao(EventOptions()), [log], tmp_path / "out", PrepareOptions(split="none", max_bad_rows=1))
    assert report.bad_rows == 1
    assert report.counts["events"] == 10


@pytest.mark.parametrize(
    ("said", "factor", "hint"), [("s", 1000, "ms"), ("s", 10**6, "us"), ("ms", 1, "s"), ("ms", 10**6, "us")]
)
def test_times_in_another_unit_are_told_at_once(tmp_path, said, factor, hint):
    log = write(tmp_path / "log.csv", [(*event[:4], event[4] * factor) for event in made_up(3, 5)])
    for allowed in (0, 100):
        with pytest.raises(DataError, match=f"(?s)times like .*--time-unit {hint}"):
            prepare(Taobao(EventOptions(time_unit=said)), [log], tmp_path / "out", PrepareOptions(max_bad_rows=allowed))
    report = prepare(Taobao(EventOptions(time_unit=hint)), [log], tmp_path / "out", PrepareOptions(split="none"))
    assert report.rows == {"train": 12}
    assert pl.read_parquet(tmp_path / "out" / "train" / "*.parquet")["timestamp"].min() >= START


def test_a_log_of_nothing_usable_is_refused(tmp_path):
    once = [(f"u{n}", 1, "c", "pv", START) for n in range(5)]
    with pytest.raises(DataError, match="no rows to write"):
        run(tmp_path, once)
    with pytest.raises(
        DataError, match=r"no events to use; 5 outside|no events to use; 5 events outside the time range"
    ):
        run(tmp_path, once, time_range=(0, 9))
    with pytest.raises(DataError, match="fewer than two items"):
        run(tmp_path, [("u", 1, "c", "pv", START + n) for n in range(5)], negatives="uniform", num_negatives=1)
    with pytest.raises(DataError, match="--split reference is not for the format 'taobao'"):
        run(tmp_path, once, split="reference")
    assert not (tmp_path / "out").exists()
    with pytest.raises(RecloomError, match="ends before it begins"):
        parse_time_range("2017-12-03,2017-11-25")
    assert parse_time_range("2017-11-25,2017-12-03T23:59:59+08:00") == (START + 8 * 3600, 1512316799)
    assert parse_time_range("2017-11-25T00:00+08:00,2017-12-03") == (START, 1512345599)


def test_a_full_disk_and_a_killed_run_leave_no_spill(tmp_path, monkeypatch):
    log, out = write(tmp_path / "log.csv", made_up(5, 5)), tmp_path / "out"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("recloom.data.events.spill.Spill.add", full)
        with pytest.raises(DataError, match="the disk is full"):
            prepare(Taobao(), [log], out)
    assert not out.exists()
    (out / "spill").mkdir(parents=True)
    (out / ".unfinished").touch()
    (out / "spill" / "events-00000").write_bytes(b"half")
    prepare(Taobao(), [log], out, PrepareOptions(split="none"))
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "schema.json", "train", "vocabulary"]


def test_any_table_of_events(tmp_path):
    events = made_up(4, 6)
    expected = run(tmp_path, events).table
    names = ["visitor", "sku", "group_of", "action", "at"]
    frame = pl.DataFrame(events, schema=names, orient="row").with_columns(pl.from_epoch("at"))
    frame.write_parquet(tmp_path / "log.parquet")
    frame.write_csv(tmp_path / "log.tsv", separator="\t", datetime_format="%Y-%m-%dT%H:%M:%SZ")
    with gzip.open(tmp_path / "log.csv.gz", "wt") as file:
        file.write("".join(",".join(map(str, (*event[:4], event[4] + 0.25))) + "\n" for event in events))
    columns = {"user": "visitor", "item": "sku", "time": "at", "keys": ("group_of",), "behaviour": "action"}
    for name in ("log.parquet", "log.tsv", "log.csv.gz"):
        header = tuple(names) if name == "log.csv.gz" else ()
        raw = Events(EventColumns(**columns, header=header))
        prepare(raw, [tmp_path / name], tmp_path / "out", PrepareOptions(split="none", overwrite=True))
        table = rows_of(tmp_path / "out")
        for ours, theirs in (
            ("visitor", "user"),
            ("sku", "item"),
            ("at", "timestamp"),
            ("history:action", "history:behaviour"),
        ):
            assert table[ours].sort().to_list() == expected[theirs].sort().to_list()
    with pytest.raises(DataError, match=r"no column 'skus'(?s:.*)Did you mean 'sku'"):
        prepare(Events(EventColumns(**{**columns, "item": "skus"})), [tmp_path / "log.tsv"], tmp_path / "out2")
    with pytest.raises(DataError, match="two roles"):
        Events(EventColumns(user="a", item="a"))
    with pytest.raises(DataError, match="'label' has a name that shards need"):
        Events(EventColumns(behaviour="label"))


def test_layouts_of_movielens(tmp_path):
    rows = [(u, i, 1 + (u + i) % 5, START + 10 * i) for u in range(3) for i in range(4)]
    layouts = {
        "u.data": ("\t", ""),
        "ratings.dat": ("::", ""),
        "ratings.csv": (",", "userId,movieId,rating,timestamp\n"),
        "ml.inter": ("\t", "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"),
    }
    found = []
    for name, (separator, header) in layouts.items():
        (tmp_path / name).write_text(header + "".join(separator.join(map(str, row)) + "\n" for row in rows))
        prepare(MovieLens(), [tmp_path / name], tmp_path / "out", PrepareOptions(split="none", overwrite=True))
        found.append(rows_of(tmp_path / "out").sort("user", "timestamp"))
    assert found[0].height == 9
    assert found[0]["history:rating"].to_list()[:3] == [["1"], ["1", "2"], ["1", "2", "3"]]
    assert all(frame.drop("group").equals(found[0].drop("group")) for frame in found[1:])
    (tmp_path / "bad").write_text("1;2;3;4\n")
    with pytest.raises(DataError, match="line 1: not ratings of MovieLens"):
        prepare(MovieLens(), [tmp_path / "bad"], tmp_path / "out", PrepareOptions(overwrite=True))


def test_in_batch_negatives_come_from_other_rows_of_the_block(tmp_path):
    run(tmp_path, made_up(40, 20), split="users:0.7,0.3")
    rows = pl.read_parquet(tmp_path / "out" / "train" / "*.parquet").height

    def epochs(count: int, split: str = "train", **options: Any) -> list[Any]:
        data = ParquetClicks(
            tmp_path / "out", batch_size=4, eval_batch_size=64, num_workers=0, in_batch_negatives=3, **options
        )
        loader = data.train_dataloader() if split == "train" else data.val_dataloader()
        return [list(loader) for _ in range(count)]

    first, second = epochs(2)
    again = epochs(1)[0]
    assert len(first) == rows
    category = {int(b.sparse_features["item"][0][0]): int(b.sparse_features["category"][0][0]) for b in first}
    for batch, other in zip(first, again, strict=True):
        assert batch.labels.tolist() == [1, 0, 0, 0]
        user, item, kind = (batch.sparse_features[name][0].tolist() for name in ("user", "item", "category"))
        assert len(set(user)) == 1
        assert item[0] not in item[1:]
        assert kind == [category[i] for i in item]
        history = batch.sequences["history"]
        assert len({tuple(history.rows(n, n + 1).values.flatten().tolist()) for n in range(4)}) == 1
        assert item == other.sparse_features["item"][0].tolist()  # a function of seed, epoch and block

    def negatives(batches: list[Any]) -> list[tuple[int, ...]]:
        return sorted(
            (*b.sparse_features["user"][0][:1].tolist(), int(b.timestamps[0]), *b.sparse_features["item"][0].tolist())
            for b in batches
        )

    assert negatives(first) != negatives(second)
    drawn = [item for b in first for item in b.sparse_features["item"][0][1:].tolist()]
    occurring = [int(b.sparse_features["item"][0][0]) for b in first]
    top = Counter(occurring).most_common(1)[0][0]
    assert drawn.count(top) / len(drawn) == pytest.approx(occurring.count(top) / len(occurring), abs=0.02)
    once, twice = epochs(2, "val")
    other = epochs(1, "val", seed=5)[0]
    for one, two, three in zip(once, twice, other, strict=True):
        assert one.sparse_features["item"][0].tolist() == two.sparse_features["item"][0].tolist()
        assert one.sparse_features["item"][0].tolist() == three.sparse_features["item"][0].tolist()
    run(tmp_path, made_up(40, 20), negatives="uniform", num_negatives=1)
    with pytest.raises(DataError, match="in_batch_negatives is for data without negatives"):
        epochs(1)


def test_command_line_shows_event_options_for_event_logs_only(tmp_path, capsys):
    for name, shown in (("criteo", False), ("taobao", True), ("events", True)):
        with pytest.raises(SystemExit):
            recloom(["prepare", name, "--help"])
        assert ("--windows-per-user" in capsys.readouterr().out) == shown
    log = write(tmp_path / "log.csv", made_up(10, 5))
    command = ["prepare", "taobao", "--input", str(log), "--output", str(tmp_path / "out"), "--split", "none"]
    options = ["--history", "3", "--negatives", "uniform:2", "--windows-per-user", "last", "--no-user"]
    assert recloom([*command, *options, "--behaviours", "pv,buy,cart,fav", "--time-range", "none"]) == 0
    assert "positives: 10" in capsys.readouterr().out
    schema = json.loads((tmp_path / "out" / "schema.json").read_text())
    assert [feature["name"] for feature in schema["sparse"]] == ["item", "category"]
    assert [key["table"] for key in schema["sequences"][0]["keys"]] == ["item", "category", "behaviour"]
    assert schema["sequences"][0]["max_length"] == 3
    assert schema["sequences"][0]["timestamps"]
    for wrong in (["--negatives", "uniform"], ["--history", "0"], ["--time-range", "now,then"]):
        with pytest.raises(SystemExit):
            recloom([*command, *wrong])
    assert recloom(["prepare", "criteo", "--input", str(log), "--output", "x", "--split", "users:0.9,0.1"]) == 2


def test_counts_of_the_samples(tmp_path, samples):
    """The same counts as a plain loop over the lines finds."""
    path = next((samples / "taobao_userbehavior_head").glob("*.csv"))
    events = [line.split(",") for line in path.read_text().splitlines()]
    inside = [event for event in events if START <= int(event[4]) <= 1512316799]
    assert_counts(prepare(Taobao(), [path], tmp_path / "taobao"), inside, len(events))
    path = samples / "ml-100k" / "ml-100k.inter"
    events = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    assert_counts(prepare(MovieLens(), [path], tmp_path / "ml"), events, len(events))


def assert_counts(report: Any, events: list[list[str]], lines: int) -> None:
    users = Counter(event[0] for event in events)
    times = Counter((event[0], event[-1]) for event in events)
    counts = report.counts
    assert counts.get("events outside the time range", 0) == lines - len(events)
    assert (counts["events"], counts["users"]) == (len(events), len(users))
    assert counts["users with one event"] == sum(n == 1 for n in users.values())
    assert counts["positives"] == sum(report.rows.values()) == len(events) - len(users)
    assert counts["truncated histories"] == sum(max(n - 21, 0) for n in users.values())
    assert counts["events at the same time as another of the user"] == sum(n for n in times.values() if n > 1)
    assert counts["duplicate events, kept"] == len(events) - len(set(map(tuple, events)))
    assert report.cardinalities["item"] == len({event[1] for event in events}) + 1
