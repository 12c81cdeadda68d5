"""Shard directories: written whole or not at all, read back exactly, damage named."""

import errno
import json
import os
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recloom.batch import Batch, KeyedJaggedTensor, Sequences
from recloom.cli.callbacks import PredictionWriter
from recloom.data.manifest import Manifest
from recloom.data.parquet import ParquetClicks
from recloom.data.shards import ShardWriter, write_shards
from recloom.errors import DataError
from recloom.features import DenseFeature, FeatureSchema, SequenceFeature, SparseFeature

HISTORY = SequenceFeature(
    "visits", (SparseFeature("site", 9, table="site"), SparseFeature("act", 5)), 6, timestamps=True
)
SCHEMA = FeatureSchema(
    dense=(DenseFeature("d0"), DenseFeature("d1")),
    sparse=(SparseFeature("user", 1000), SparseFeature("tags", 50, max_length=0), SparseFeature("site", 9)),
    sequences=(HISTORY,),
    labels=("click", "buy"),
    weight="importance",
    timestamp="time",
    group="session",
)
ONE_HOT = FeatureSchema(dense=(DenseFeature("d0"),), sparse=(SparseFeature("a", 1000), SparseFeature("b", 9)))


def batch(count, start=0, schema=SCHEMA):
    """Rows numbered from `start`, every column a function of the number."""
    row = torch.arange(start, start + count)
    if schema is ONE_HOT:
        ids = KeyedJaggedTensor(["a", "b"], torch.stack([row % 1000, row % 9]))
        return Batch(row[:, None].float(), ids, (row % 2).float())
    lengths = torch.stack([torch.ones_like(row), row % 4, torch.ones_like(row)]).reshape(-1)
    tags = torch.repeat_interleave(row, row % 4) % 50
    step = torch.repeat_interleave(row, row % 7)
    visits = Sequences(
        ["site", "act"],
        torch.stack([step % 9, step % 5], dim=1),
        torch.cat([torch.zeros(1, dtype=torch.int64), (row % 7).cumsum(0)]),
        1_600_000_000 + 60 * step,
    )
    return Batch(
        torch.stack([row.float(), -row.float()], dim=1),
        KeyedJaggedTensor(["user", "tags", "site"], torch.cat([row % 1000, tags, row % 9]), lengths),
        torch.stack([row % 2, row % 3 == 0], dim=1).float(),
        sequences={"visits": visits},
        weights=row / 2,
        timestamps=1_700_000_000 + row,
        extras={"group": row // 10},
    )


def equal(found, expected):
    assert torch.equal(found.dense_features, expected.dense_features)
    assert found.sparse_features.keys == expected.sparse_features.keys
    assert torch.equal(found.sparse_features.values, expected.sparse_features.values)
    assert torch.equal(found.sparse_features.lengths, expected.sparse_features.lengths)
    assert torch.equal(found.labels, expected.labels)
    for name in ("weights", "timestamps"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours is theirs is None or torch.equal(ours, theirs)
    assert found.sequences.keys() == expected.sequences.keys()
    for name, ours in found.sequences.items():
        theirs = expected.sequences[name]
        assert ours.keys == theirs.keys
        assert torch.equal(ours.values, theirs.values)
        assert torch.equal(ours.offsets, theirs.offsets)
        assert torch.equal(ours.timestamps, theirs.timestamps)
    assert found.extras.keys() == expected.extras.keys()
    assert all(torch.equal(found.extras[name], expected.extras[name]) for name in found.extras)


@pytest.fixture
def data(tmp_path):
    """1000 training rows in row groups of 64 and shards of 4 of them, 100 validation rows."""
    path = tmp_path / "data"
    parts = {"train": [batch(300), batch(700, 300)], "val": [batch(100, 1000)]}
    write_shards(parts, SCHEMA, path, rows_per_shard=256, row_group_rows=64)
    return path


def read(path, split="train", **options):
    module = ParquetClicks(path, **{"batch_size": 50, "eval_batch_size": 64, "num_workers": 0, **options})
    return list(module.train_dataloader() if split == "train" else module.val_dataloader())


@pytest.mark.parametrize("schema", [SCHEMA, ONE_HOT])
def test_reads_back_what_was_written(tmp_path, schema):
    write_shards({"train": [batch(1000, schema=schema)]}, schema, tmp_path, rows_per_shard=256, row_group_rows=64)
    for index, found in enumerate(read(tmp_path, shuffle=False)):
        equal(found, batch(50, 50 * index, schema))
        assert found.sparse_features.values.dtype == torch.int64
        assert found.sparse_features.one_hot == (schema is ONE_HOT)


def test_manifest_counts_every_row_group(data):
    manifest = Manifest.load(data)
    shards = manifest.splits["train"]
    assert [shard.row_groups for shard in shards] == [[64] * 4] * 3 + [[64, 64, 64, 40]]
    assert manifest.rows("train") == 1000
    assert sorted(str(file.relative_to(data)) for file in data.rglob("*") if file.is_file()) == sorted(
        ["manifest.json", "schema.json", "val/part-00000.parquet", *(shard.file for shard in shards)]
    )


@pytest.mark.parametrize("schema", [SCHEMA, ONE_HOT])
def test_shuffling_mixes_row_groups_and_keeps_rows_together(tmp_path, schema):
    write_shards({"train": [batch(1000, schema=schema)]}, schema, tmp_path, rows_per_shard=256, row_group_rows=64)
    found = read(tmp_path, shuffle_rows=256)
    order = [int(row) for part in found for row in part.dense_features[:, 0]]
    assert sorted(order) == list(range(1000))
    assert len({row // 64 for row in order[:50]}) >= 3
    for part in found:
        rows = [batch(1, int(row), schema) for row in part.dense_features[:, 0]]
        equal(part, Batch.concat(rows))


def test_epochs_differ_and_a_run_resumes_in_the_middle(data):
    def loader():
        return ParquetClicks(data, batch_size=30, num_workers=0, shuffle_rows=200).train_dataloader()

    whole = loader()
    first, second = list(whole), list(whole)
    assert not torch.equal(first[0].labels, second[0].labels)
    stopped, resumed = loader(), loader()
    iterator = iter(stopped)
    for _ in range(17):
        next(iterator)
    resumed.load_state_dict(stopped.state_dict())
    for found, expected in zip([*resumed, *resumed], [*first[17:], *second], strict=True):
        equal(found, expected)


def test_bag_weights_are_read(tmp_path):
    table = pa.table(
        {"tags": [[1, 2], [], [3]], "tags:weight": [[0.5, 2.0], [], [7.0]], "a": [4, 5, 6], "label": [0, 1, 0]}
    )
    schema = FeatureSchema(sparse=(SparseFeature("tags", 9, max_length=0), SparseFeature("a", 9)))
    with ShardWriter(tmp_path / "data", schema, format="test", source={}) as writer:
        writer.add("train", table)
        writer.add("train", table)
        writer.finish()
    (found,) = read(tmp_path / "data", shuffle=False, batch_size=4)
    sparse = found.sparse_features
    assert sparse.values.tolist() == [1, 2, 3, 1, 2, 4, 5, 6, 4]
    assert sparse.weights.tolist() == [0.5, 2.0, 7.0, 0.5, 2.0, 1, 1, 1, 1]


def test_limit_rows_takes_the_first_rows(data):
    equal(Batch.concat(read(data, shuffle=False, limit_rows=150)), batch(150))
    equal(Batch.concat(read(data, "val", limit_rows=70)), batch(70, 1000))


def test_ranks_and_workers_divide_the_data(data):
    module = ParquetClicks(data, batch_size=7, num_workers=1, shuffle=False)
    rows = [int(row) for part in module.train_dataloader() for row in part.dense_features[:, 0]]
    assert rows == list(range(994))


# Damage


def shard(data, number=2):
    return data / f"train/part-{number:05d}.parquet"


def test_a_truncated_shard_is_found_before_training(data):
    content = shard(data).read_bytes()
    shard(data).write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"part-00002.*truncated"):
        read(data)
    with pytest.raises(DataError, match=r"part-00002.parquet, row group \d.*cannot be read"):
        read(data, verify="none")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_page_is_found_when_it_is_read(data, workers):
    meta = pq.read_metadata(shard(data)).row_group(1).column(2)
    with shard(data).open("r+b") as file:
        file.seek(meta.data_page_offset + meta.total_compressed_size - 8)
        old = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([old[0] ^ 1]))
    with pytest.raises(DataError, match=r"part-00002.parquet, row group 1: the shard cannot be read"):
        read(data, num_workers=workers)
    with pytest.raises(DataError, match=r"part-00002.parquet.*sha256"):
        ParquetClicks(data, verify="full").prepare_data()


def test_a_missing_shard_is_named(data):
    shard(data).unlink()
    with pytest.raises(DataError, match=r"part-00002.*missing"):
        read(data)


@pytest.mark.parametrize("feature", ["site", "tags"])
def test_an_id_outside_its_table_names_feature_and_shard(data, feature):
    manifest, schema = Manifest.load(data), json.loads((data / "schema.json").read_text())
    next(item for item in schema["sparse"] if item["name"] == feature)["num_embeddings"] = 8
    (data / "schema.json").write_text(json.dumps(schema))
    with pytest.raises(DataError, match=r"schema\.json: it is not the one that was written"):
        read(data)
    manifest.save(data)
    with pytest.raises(DataError, match=rf"part-0000\d.parquet, row group \d: feature '{feature}' has the id \d+"):
        read(data)


@pytest.mark.parametrize(
    ("column", "lists", "complaint"),
    [
        ("visits:act", [[1], [2, 3]], "the lists of 'visits:act' and 'visits:site' differ in length"),
        ("visits:act", [[1, 2], [5]], "feature 'visits:act' has the id 5, its table has 5 rows"),
        ("visits:act", [[1, 2], [None]], "column 'visits:act' has 1 empty values"),
        ("visits:time", [[], [1, 2, 3]], "the lists of 'visits:time' and 'visits:site' differ in length"),
        (None, [[1] * 7, []], "a 'visits' of 7 steps where the schema has at most 6"),
    ],
)
def test_histories_that_do_not_fit_together_are_named(tmp_path, column, lists, complaint):
    schema = FeatureSchema(sparse=(SparseFeature("site", 9),), sequences=(HISTORY,))
    steps = {f"visits:{name}": lists if column is None else [[1, 2], [3]] for name in ("site", "act", "time")}
    with ShardWriter(tmp_path / "data", schema, format="test", source={}) as writer:
        writer.add("train", pa.table({**steps, **({column: lists} if column else {}), "site": [1, 2], "label": [0, 1]}))
        writer.finish()
    with pytest.raises(DataError, match=f"part-00000.parquet, row group 0: {complaint}"):
        read(tmp_path / "data", batch_size=2)


def test_a_schema_of_other_data_is_refused(data):
    manifest = Manifest.load(data)
    FeatureSchema(dense=(DenseFeature("d7"),), labels=("click",)).save(data / "schema.json")
    manifest.save(data)
    with pytest.raises(DataError, match="'d7' is missing"):
        read(data)
    FeatureSchema(dense=(DenseFeature("user"),), labels=("click",)).save(data / "schema.json")
    manifest.save(data)
    with pytest.raises(DataError, match="'user' is int32, it should be float"):
        read(data)


def test_what_is_no_data_set_is_refused(data, tmp_path):
    with pytest.raises(DataError, match="no 'test' split here, only: train, val"):
        ParquetClicks(data).test_dataloader()
    with pytest.raises(DataError, match="no such directory"):
        ParquetClicks(tmp_path / "nothing")
    (data / "manifest.json").write_text('{"version": 1, "spl')
    with pytest.raises(DataError, match=r"manifest.json: not a manifest"):
        ParquetClicks(data)
    (data / "manifest.json").unlink()
    with pytest.raises(DataError, match="there is no data set here"):
        ParquetClicks(data)


# Writing


def test_an_exception_leaves_nothing_behind(tmp_path):
    def broken():
        yield batch(200)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards({"train": broken()}, SCHEMA, tmp_path / "data", row_group_rows=64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_explained_and_leaves_nothing_behind(tmp_path, monkeypatch, code):
    def full(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"data: the disk is full\n.*Nothing half-written"):
        write_shards({"train": [batch(600)]}, SCHEMA, tmp_path / "data", row_group_rows=64, rows_per_shard=256)
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_run_is_taken_over_and_two_writers_are_not(tmp_path):
    path = tmp_path / "data"
    killed = ShardWriter(path, SCHEMA, format="test", source={}, row_group_rows=64)
    killed.add("train", pa.table(pq.read_table(_example(tmp_path))))
    with pytest.raises(DataError, match="another process is writing"):
        ShardWriter(path, SCHEMA, format="test", source={})
    killed._lock.close()  # what the end of a killed process does
    with pytest.raises(DataError, match="has not finished here"):
        ParquetClicks(path)
    write_shards({"train": [batch(100)]}, SCHEMA, path)
    equal(Batch.concat(read(path, shuffle=False)), batch(100))


def _example(tmp_path):
    write_shards({"train": [batch(500)]}, SCHEMA, tmp_path / "example")
    return tmp_path / "example/train/part-00000.parquet"


def test_other_files_are_never_removed(data):
    with pytest.raises(DataError, match=r"data set here already\n.*--overwrite"):
        write_shards({"train": [batch(100)]}, SCHEMA, data)
    (data / "notes.txt").write_text("mine")
    write_shards({"train": [batch(64)]}, SCHEMA, data, overwrite=True)
    assert (data / "notes.txt").read_text() == "mine"
    assert not (data / "val").exists()
    assert Manifest.load(data).rows("train") == 64
    np.testing.assert_array_equal(read(data, shuffle=False, batch_size=64)[0].labels, batch(64).labels)
    (data / "manifest.json").unlink()
    with pytest.raises(DataError, match="not empty"):
        write_shards({"train": [batch(100)]}, SCHEMA, data)


@pytest.mark.parametrize("ranks", [1, 3])
def test_predictions_are_joined_to_the_rows_of_the_shards(tmp_path, ranks):
    shop, run = tmp_path / "shop", tmp_path / "run"
    parts = {"train": [batch(64)], "test": [batch(333, 5000)]}
    write_shards(parts, SCHEMA, shop, rows_per_shard=128, row_group_rows=64)
    module = ParquetClicks(shop, batch_size=50, eval_batch_size=48, num_workers=0)
    for rank in range(ranks):
        if ranks > 1:
            shares = {"rank": rank, "num_replicas": ranks}
            module.trainer = SimpleNamespace(distributed_sampler_kwargs=shares, world_size=ranks, current_epoch=0)
        loader = module.predict_dataloader()
        loop = SimpleNamespace(return_predictions=True)
        trainer = SimpleNamespace(world_size=ranks, global_rank=rank, predict_loop=loop, predict_dataloaders=loader)
        writer = PredictionWriter(run)
        writer.on_predict_start(trainer, None)
        for index, found in enumerate(loader):
            outputs = {"probability": found.dense_features[:, 0], "label": found.labels}
            writer.on_predict_batch_end(trainer, None, outputs, found, index)
        writer.on_predict_end(trainer, None)
    predictions = pl.concat([pl.read_parquet(file) for file in sorted(run.glob("predictions*.parquet"))])
    shards = pl.scan_parquet(f"{shop}/test/*.parquet").with_row_index("row")  # as docs/python.md says
    joined = shards.join(predictions.lazy(), on=pl.col("row").cast(pl.Int64)).collect()
    assert joined.height == 333
    assert (joined["d0"] == joined["probability"]).all()
    assert (joined["click"] == joined["label_0"]).all()
    assert (joined["session"] == joined["group"]).all()
    assert (joined["time"] == joined["timestamp"]).all()
