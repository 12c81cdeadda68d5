"""`recloom export`: files that give the eager model's probabilities, and nothing half-written."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from recloom.batch import Batch
from recloom.checkpoint import read
from recloom.embedding import EmbeddingBagConfig, FusedEmbeddingBag, bag_configs
from recloom.errors import RecloomError
from recloom.export import export_model
from recloom.features import FeatureSchema
from recloom.loading import build_data, load_trained
from recloom.model import RankingModule
from recloom.sequence import SequenceArch, SequenceEncoder
from recloom.testing import run_cli, tiny_batch, tiny_schema

SMALL = [
    *("fit", "--model=DLRM", "--model.embedding_dim=8", "--model.dense_arch=[8]", "--model.over_arch=[8]"),
    *("--data=SyntheticClicks", "--data.num_train=512", "--data.num_val=128", "--data.num_test=64"),
    *("--data.num_workers=0", "--data.batch_size=64", "--data.cardinalities=[50, 20, 9]", "--data.num_dense=3"),
    *("--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"),
]


@pytest.fixture(scope="module", params=["one-hot", "bags"])
def run(request, tmp_path_factory) -> Path:
    """A finished run."""
    path = tmp_path_factory.mktemp("export") / request.param
    multi_hot = "{}" if request.param == "one-hot" else "{c1: 2}"
    code, _, err = run_cli([*SMALL, f"--data.multi_hot={multi_hot}", f"--run_dir={path}"])
    assert code == 0, err
    return path


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_file_gives_the_runs_probabilities(run: Path, format: str):
    code, out, err = run_cli(["export", "--run", str(run), "--format", format])
    assert code == 0, err
    assert "max abs diff to eager" in out
    path = run / {"torch": "model.pt2", "onnx": "model.onnx"}[format]
    described = json.loads((run / f"{path.name}.json").read_text())
    assert described["checked"]["max_abs_diff"] < 1e-5
    assert [feature["name"] for feature in described["schema"]["sparse"]] == ["c0", "c1", "c2"]

    model = load_trained(run / "config.yaml", run / "checkpoints/best.ckpt")
    batch = next(iter(build_data(run / "config.yaml").test_dataloader()))
    for rows in (1, 63):
        part = batch.rows(0, rows)
        sparse = part.sparse_features
        inputs = {"dense": part.dense_features}
        if sparse.one_hot:
            inputs["sparse"] = sparse.values.view(3, rows).t().contiguous()
        else:
            inputs |= {"values": sparse.values, "lengths": sparse.lengths.view(3, rows)}
        assert {described_input["name"] for described_input in described["inputs"]} == inputs.keys()
        with torch.no_grad():
            expected = torch.sigmoid(model.logits(part))
        torch.testing.assert_close(serve(path, inputs), expected, atol=1e-6, rtol=1e-5)


def serve(path: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Run the file as a server would, without recloom."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(**inputs)
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    return torch.from_numpy(session.run(["probability"], {name: value.numpy() for name, value in inputs.items()})[0])


class Sums(RankingModule):
    """Sums of the looked-up rows: id i of feature f counts as 10^f i."""

    def __init__(self, schema, change: float = 0.0) -> None:
        super().__init__(schema.to_dict())
        names = self.schema.sparse_names
        self.tables = FusedEmbeddingBag([EmbeddingBagConfig(n, 1, 4, (n,)) for n in names])
        for index, name in enumerate(names):
            self.tables.table_weight(name).copy_(torch.arange(4.0)[:, None] * 10**index)
        self.change = change

    def forward(self, dense, values, offsets=None, weights=None):
        out = self.tables(values, offsets, weights).sum((1, 2))
        return out + self.change if torch.compiler.is_exporting() else out


def schema(bags: bool):
    sparse = [{"name": f"c{i}", "num_embeddings": 4, "max_length": 3 if bags else 1} for i in range(2)]
    return FeatureSchema.from_dict({"sparse": sparse})


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_ids_that_no_table_has_count_as_the_unknown_id(format: str, tmp_path: Path):
    """Tables lie one after the other in one weight: such an id would read the next table's row."""
    path = tmp_path / {"torch": "m.pt2", "onnx": "m.onnx"}[format]
    export_model(Sums(schema(bags=False)), path, format)
    found = serve(path, {"sparse": torch.tensor([[1, 2], [4, 3], [-1, 99]])})
    torch.testing.assert_close(found, torch.sigmoid(torch.tensor([21.0, 30.0, 0.0])))
    export_model(Sums(schema(bags=True)), path, format)
    values, lengths = torch.tensor([1, 1, 7, 3, -2]), torch.tensor([[2, 1, 0], [0, 1, 1]])
    found = serve(path, {"values": values, "lengths": lengths})
    torch.testing.assert_close(found, torch.sigmoid(torch.tensor([2.0, 30.0, 0.0])))


def test_a_file_that_differs_is_not_kept(tmp_path: Path):
    path = tmp_path / "model.pt2"
    path.write_text("an earlier file")
    with pytest.raises(RecloomError, match="differs from the eager one by 1"):
        export_model(Sums(schema(bags=False), change=1.0), path, logits=True)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
    assert path.read_text() == "an earlier file"
    model = Sums(schema(bags=False), change=1.0)
    model.export_tolerance = 2.0  # a model knows how inexact it is, and the caller decides
    with pytest.raises(RecloomError, match=r"more than 0\.5"):
        export_model(model, path, logits=True, tolerance=0.5)
    assert export_model(model, path, logits=True).max_abs_diff == pytest.approx(1.0)


class Mean(SequenceEncoder):
    """The mean of the steps; neither candidate nor time."""

    uses_query = False

    def __init__(self, width: int, max_length: int) -> None:
        super().__init__(width, max_length)
        self.output_dim = width

    def forward(self, steps, query, mask, gaps=None):
        return (steps * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


class Attention(Mean):
    """A sum of the steps, weighted by likeness to the candidate and by nearness in time."""

    uses_query = True

    def forward(self, steps, query, mask, gaps=None):
        scores = (steps * query[:, None]).sum(-1) - gaps / 36_000
        weights = scores.masked_fill(~mask, -1e9).softmax(-1) * mask
        return (weights[..., None] * steps).sum(1)


class Fixed(Mean):
    """As the mean, of as many samples as there were when it was traced."""

    def forward(self, steps, query, mask, gaps=None):
        return super().forward(steps, query, mask) * torch.ones(len(steps), 1)


class Reader(RankingModule):
    """The sum of the histories' vectors and of the features'."""

    uses_histories = True

    def __init__(self, schema: FeatureSchema, encoder=Mean) -> None:
        super().__init__(schema.to_dict())
        self.tables = FusedEmbeddingBag(bag_configs(self.schema, 4), seed=0)
        self.sequence_arch = SequenceArch(self.schema, self.tables, FusedEmbeddingBag, encoder)

    def forward(self, dense, values, offsets=None, weights=None, histories=None):
        vectors = self.tables(values, offsets, weights)
        return vectors.sum((1, 2)) + 10 * self.sequence_arch(self.tables, vectors, histories).sum((1, 2))


@pytest.mark.parametrize(("encoder", "one_hot"), [(Mean, True), (Attention, False)])
@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_histories_are_inputs_by_their_names(encoder, one_hot: bool, format: str, tmp_path: Path):
    path = tmp_path / {"torch": "m.pt2", "onnx": "m.onnx"}[format]
    model = Reader(tiny_schema(one_hot, histories=True), encoder).eval()
    assert export_model(model, path, format).max_abs_diff < 1e-5
    described = {row["name"]: row for row in json.loads((tmp_path / f"{path.name}.json").read_text())["inputs"]}
    assert described["history"]["shape"] == ["batch", 6, 2]
    assert described["history"]["keys"] == ["item", "action"]
    assert described["history_lengths"]["shape"] == ["batch"]
    assert described["history_gaps"]["dtype"] == "float32"

    batch = tiny_batch(model.schema, rows=30, seed=3)
    inputs = named(batch, 6)
    assert described.keys() == inputs.keys()
    assert 0 in inputs["history_lengths"]
    with torch.no_grad():
        expected = torch.sigmoid(model.logits(batch))
    torch.testing.assert_close(serve(path, inputs), expected, atol=1e-6, rtol=1e-5)

    unknown = {**inputs, "history": torch.where(inputs["history"] == 1, 99, inputs["history"])}
    as_zero = {**inputs, "history": torch.where(inputs["history"] == 1, 0, inputs["history"])}
    torch.testing.assert_close(serve(path, unknown), serve(path, as_zero))
    assert not torch.allclose(serve(path, unknown), expected)


def named(batch: Batch, length: int) -> dict[str, torch.Tensor]:
    """A batch as a server would have it; places without a step hold what the server's memory held."""
    sparse, history = batch.sparse_features, batch.sequences["history"]
    ids, gaps = torch.full((len(batch), length, 2), -7), torch.full((len(batch), length), float("nan"))
    for row, (start, end) in enumerate(itertools.pairwise(history.offsets.tolist())):
        if end > start:
            ids[row, start - end :] = history.values[start:end]
            gaps[row, start - end :] = (batch.timestamps[row] - history.timestamps[start:end]).float()
    found = {"history": ids, "history_lengths": history.lengths, "history_gaps": gaps}
    if batch.dense_features.shape[1]:
        found["dense"] = batch.dense_features
    if sparse.one_hot:
        return {**found, "sparse": sparse.values.view(len(sparse.keys), -1).t().contiguous()}
    return {**found, "values": sparse.values, "lengths": sparse.lengths.view(len(sparse.keys), -1)}


def test_a_run_on_histories_predicts_what_its_export_serves(tmp_path: Path):
    run = tmp_path / "run"
    data = ["--data=SyntheticBehaviour", "--data.num_train=512", "--data.num_val=128", "--data.num_test=96"]
    data += ["--data.num_workers=0", "--data.batch_size=64", "--data.eval_batch_size=64", "--data.max_length=8"]
    model = [*SMALL[1:5], "--model.sequence_encoder=DIN"]
    trainer = [option for option in SMALL if option.startswith("--trainer")]
    best = f"--ckpt_path={run / 'checkpoints/best.ckpt'}"
    for argv in (
        ["fit", *model, *data, *trainer],
        ["predict", f"--config={run / 'config.yaml'}", best],
        ["export"],
    ):
        code, _, err = run_cli([*argv, f"--run_dir={run}"])
        assert code == 0, err
    predicted = torch.from_numpy(pq.read_table(run / "predictions.parquet")["probability"].to_numpy().copy())
    written = pq.read_table(run / "predictions.parquet")
    assert written["row"].to_pylist() == list(range(96)), "the key that joins them to the rows of the split"
    batches = list(build_data(run / "config.yaml").predict_dataloader())
    assert written["label"].to_pylist() == torch.cat([batch.labels for batch in batches]).tolist()
    assert set(written.column_names) >= {"timestamp", "probability"}
    served = [
        serve(run / "model.pt2", named(batch, 8)) for batch in build_data(run / "config.yaml").predict_dataloader()
    ]
    torch.testing.assert_close(torch.cat(served), predicted, atol=1e-5, rtol=0)


def test_histories_get_names_that_are_legal_and_free(tmp_path: Path):
    keys = [{"name": "item", "num_embeddings": 4, "table": "c0"}]
    names = ["dense", "class", "my clicks", "my_clicks", "1st"]
    histories = [{"name": name, "keys": keys, "max_length": 2, "timestamps": True} for name in names]
    plain = schema(bags=False).to_dict()
    export_model(Reader(FeatureSchema.from_dict({**plain, "sequences": histories})), tmp_path / "m.pt2")
    described = json.loads((tmp_path / "m.pt2.json").read_text())["inputs"]
    found = {row["name"]: row["history"] for row in described if "keys" in row}
    legal = ["dense_", "class_", "my_clicks", "my_clicks_", "_1st"]
    assert found == dict(zip(legal, names, strict=True))
    assert not any(row["name"].endswith("_gaps") for row in described)  # steps have times, samples have none

    export_model(Sums(FeatureSchema.from_dict({**plain, "sequences": histories})), tmp_path / "without.pt2")
    described = json.loads((tmp_path / "without.pt2.json").read_text())
    assert [row["name"] for row in described["inputs"]] == ["sparse"]


def test_a_size_that_was_taken_for_a_constant_is_told(tmp_path: Path):
    model = Reader(tiny_schema(one_hot=True, histories=True), Fixed)
    for format, name in (("torch", "model.pt2"), ("onnx", "model.onnx")):
        with pytest.raises(RecloomError, match=f"Reader cannot be exported as {format}: Constraints viol") as raised:
            export_model(model, tmp_path / name, format)
        assert "not len(x)" in raised.value.hint
    assert export_model(model, tmp_path / "model.onnx", "onnx", batch_size=3).batches == (3, 3, 3)


def test_fixed_batch_size_and_logits(tmp_path: Path):
    path = tmp_path / "model.pt2"
    done = export_model(Sums(schema(bags=False)), path, batch_size=3, logits=True)
    assert done.batches == (3, 3, 3)
    described = json.loads((tmp_path / "model.pt2.json").read_text())
    assert described["inputs"][0]["shape"] == [3, 2]
    assert described["outputs"][0]["name"] == "logit"
    assert serve(path, {"sparse": torch.tensor([[1, 2]] * 3)}).tolist() == [21, 21, 21]
    with pytest.raises(Exception, match=r"size|shape|Guard"):
        serve(path, {"sparse": torch.tensor([[1, 2]])})


def test_a_model_that_needs_more_of_the_batch_is_refused(tmp_path: Path):
    class Timed(Sums):
        def logits(self, batch):
            return super().logits(batch) + batch.timestamps

    with pytest.raises(RecloomError, match="Timed needs more of a batch"):
        export_model(Timed(schema(bags=False)), tmp_path / "model.pt2")

    class Untraceable(Sums):
        def forward(self, dense, values, offsets=None, weights=None):
            return nn.functional.relu(dense) if float(values.sum()) > 3 else dense

    with pytest.raises(RecloomError, match="Untraceable cannot be exported as torch"):
        export_model(Untraceable(schema(bags=False)), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_mistakes_are_told_with_exit_code_2(run: Path, tmp_path: Path):
    for argv, cause in (
        ([], "give either --run DIR or --config FILE"),
        (["--run", str(tmp_path)], "there is no run here"),
        (["--run", str(run), "--ckpt_path", "missing.ckpt"], "missing.ckpt: there is no such checkpoint"),
        (["--config", str(run / "config.yaml")], "--config needs --ckpt_path"),
        (["--run", str(run), "--output", "model.bin"], "named *.pt2"),
        (["--run", str(run), "--batch-size", "many"], "'many' is neither a positive number"),
        (["--run", str(run), "--tolerance", "-1"], "more than -1"),
    ):
        code, _, err = run_cli(["export", *argv])
        assert code == 2, argv
        assert cause in err


def test_weights_of_another_model_are_refused(run: Path, tmp_path: Path):
    state = read(run / "checkpoints/best.ckpt")
    del state["state_dict"]["over_arch.0.bias"]
    torch.save(state, tmp_path / "other.ckpt")
    code, _, err = run_cli(
        ["export", "--config", str(run / "config.yaml"), "--ckpt_path", str(tmp_path / "other.ckpt")]
    )
    assert code == 2
    assert "over_arch.0.bias is missing" in err
