"""EDGE's node embeddings in other models: nothing of later events is in them, and whoever reads them is checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from recloom import intact
from recloom.data.streams.clicks import StreamClicks
from recloom.data.streams.module import EventStreams
from recloom.data.streams.powerlaw import PowerLawStream
from recloom.embedding import EmbeddingBagConfig
from recloom.errors import DataError, RecloomError
from recloom.nodes import NodeEmbeddingBag, NodeVectors
from recloom.testing import run_cli
from recloom_edge.export import export_nodes
from recloom_edge.model import EDGE

CONFIGS = Path(__file__).parents[2] / "configs"
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.logger=false"]
TABLES = [EmbeddingBagConfig("user", 4, 5, ("user", "friend")), EmbeddingBagConfig("item", 4, 3, ("item",))]


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    PowerLawStream(events=3000, sources=80, destinations=40).write(Path("build/wiki"))
    return tmp_path


def test_both_mixes_end_to_end(stream: Path) -> None:
    edge = ["fit", "--config", str(CONFIGS / "edge/wikipedia.yaml"), "--data.path=build/wiki", *QUIET, "--run_dir=edge"]
    small = ["--trainer.max_epochs=1", "--model.dim=16", "--model.static_dim=16", "--trainer.limit_val_batches=1"]
    result = run_cli([*edge, *small, "--trainer.callbacks+=ExportNodes", "--trainer.callbacks.output=build/nodes"])
    assert result.code == 0, result.err
    facts = json.loads(Path("build/nodes/nodes.json").read_text())
    assert facts["tables"] == {"source": [80, 16], "destination": [40, 32]}
    for mix in ("dlrm", "hsnn"):
        config = str(CONFIGS / f"mix/{mix}_with_edge_embeddings.yaml")
        common = ["fit", "--config", config, *QUIET, f"--run_dir={mix}", "--trainer.max_epochs=1"]
        result = run_cli([*common, "--data.batch_size=256"])
        assert result.code == 0, result.err
        assert "validation NE" in result.out
    # the same vectors, as if they knew one second more than the first training row
    vectors = NodeVectors.load("build/nodes")
    NodeVectors(vectors.tables, StreamClicks("build/wiki").first_time + 1).save("build/nodes")
    result = run_cli([*common, "--run_dir=again"])
    assert result.code == 2
    assert "tell the future" in result.err


def test_vectors_know_the_events_up_to_the_cut_and_no_other(stream: Path) -> None:
    data = EventStreams("build/wiki")
    torch.manual_seed(0)
    model = EDGE(data.schema, dim=16, static_dim=16, share=0)
    model.prepare(data.training_stream)
    before = model.snapshot()
    found = export_nodes(model, data)
    stop = data.stream.span("train")[1]
    assert found.as_of == int(data.stream.time[stop - 1]) <= StreamClicks("build/wiki").first_time
    assert all(torch.equal(value, before[name]) for name, value in model.snapshot().items()), "memory is as before"
    data.stream.destination[stop:] = 0  # private pages of the mapped file: another future
    again = export_nodes(model, data)
    assert all(torch.equal(found.tables[name], again.tables[name]) for name in found.tables)
    later = export_nodes(model, data, "all")
    assert later.as_of == int(data.stream.time[-1])
    assert not torch.equal(found.tables["source"], later.tables["source"])
    assert bool((found.tables["destination"][:, :16].abs().sum(1) > 0).any())


def test_rows_come_after_the_cut_and_tell_events_from_others(stream: Path) -> None:
    data = StreamClicks("build/wiki", negatives=2, shuffle=False)
    whole = EventStreams("build/wiki").stream
    start, stop = whole.span("val")
    batches = list(data.val_dataloader())
    rows = data.source("train").load(0, 0)
    assert torch.equal(rows.labels.view(-1, 3)[:, 0], torch.ones(stop - start))
    assert rows.labels.sum() == stop - start
    users, items = rows.sparse_features.values.view(2, -1)
    assert torch.equal(users.view(-1, 3)[:, 0], whole.source[start:stop])
    assert torch.equal(items.view(-1, 3)[:, 0], whole.destination[start:stop])
    assert set(items.tolist()) == set(whole.destination[start:stop].tolist())
    assert int(rows.timestamps.min()) == data.first_time
    assert min(int(batch.timestamps.min()) for batch in batches) > int(rows.timestamps.max())


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("trainable", [True, False])
def test_an_id_is_its_row_and_its_projected_vector(own: bool, trainable: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    NodeVectors({"source": torch.randn(5, 6)}, as_of=7).save(tmp_path)
    bag = NodeEmbeddingBag(TABLES, str(tmp_path), {"user": "source", "other": "source"}, trainable, own)
    vectors, matrix = NodeVectors.load(tmp_path).tables["source"], bag.projections["user"].weight
    rows = bag.table_weight("user") * own + vectors @ matrix.t()
    values, offsets = torch.tensor([0, 1, 2, 4, 3, 2, 0]), torch.tensor([0, 2, 3, 3, 5, 6, 7])
    wanted = [[rows[0] + rows[1], rows[2]], [rows[0] * 0, rows[4] + rows[3]]]
    found = bag(values, offsets)
    assert torch.allclose(found[:, 0], torch.stack(wanted[0]), atol=1e-6)
    assert torch.allclose(found[:, 1], torch.stack(wanted[1]), atol=1e-6)
    assert torch.equal(found[:, 2], bag.table_weight("item")[torch.tensor([2, 0])])
    assert torch.allclose(bag(torch.tensor([1, 3, 2]))[0, 1], rows[3], atol=1e-6)
    assert torch.allclose(bag.lookup("friend", torch.tensor([[4]])), rows[4], atol=1e-6)
    assert bag.vectors["user"].weight.requires_grad == trainable


def test_what_is_wrong_with_vectors_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no node vectors here"):
        NodeEmbeddingBag(TABLES, str(tmp_path), {"user": "source"})
    NodeVectors({"source": torch.zeros(4, 6)}, as_of=7).save(tmp_path)
    with pytest.raises(DataError, match="5 ids, and there are 4 vectors"):
        NodeEmbeddingBag(TABLES, str(tmp_path), {"user": "source"})
    with pytest.raises(RecloomError, match="no kind of node named 'sauce'"):
        NodeEmbeddingBag(TABLES, str(tmp_path), {"user": "sauce"})
    with pytest.raises(RecloomError, match="none of the tables user, item"):
        NodeEmbeddingBag(TABLES, str(tmp_path), {"usr": "source"})
    whole = (tmp_path / "source.npy").read_bytes()
    (tmp_path / "source.npy").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match=r"source\.npy: it is damaged"):
        NodeVectors.load(tmp_path)
    (tmp_path / "source.npy").write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"source\.npy: it is missing or cut short"):
        NodeVectors.load(tmp_path)
    (tmp_path / "source.npy").write_bytes(whole)
    (tmp_path / "nodes.json").write_text("{}")
    intact.seal(tmp_path)  # written by another program
    with pytest.raises(DataError, match=r"nodes\.json: not a description"):
        NodeVectors.load(tmp_path)
