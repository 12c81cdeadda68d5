"""Weights of the reference implementation and of TorchRec: the same logits, read safely, and back again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from recloom.errors import RecloomError
from recloom.testing import run_cli, tiny_batch, tiny_schema
from recloom_dlrm.interactions import ConcatInteraction
from recloom_dlrm.model import DLRM
from recloom_dlrm.weights import export_weights, import_weights, read_weights

BAGS = "sparse_arch.embedding_bag_collection.embedding_bags"


def foreign(layout, seed=0, width=8):
    """Random weights of a DLRM 3-16-8, 12-6-1 over the tiny schema's four tables, by their names there."""
    generator = torch.Generator().manual_seed(seed)
    schema = tiny_schema()
    vectors = len(schema.sparse) + 1
    bottom, top = (3, 16, width), (width + vectors * (vectors - 1) // 2, 12, 6, 1)
    state = {}
    for index, feature in enumerate(schema.sparse):
        name = f"emb_l.{index}.weight" if layout == "reference" else f"{BAGS}.t_{feature.name}.weight"
        state[name] = torch.randn(feature.num_embeddings, width, generator=generator)
    names = {
        "reference": (["bot_l.0", "bot_l.2"], ["top_l.0", "top_l.2", "top_l.4"]),
        "torchrec": (
            [f"dense_arch.model._mlp.{i}._linear" for i in (0, 1)],
            [*(f"over_arch.model.0._mlp.{i}._linear" for i in (0, 1)), "over_arch.model.1"],
        ),
    }[layout]
    for linears, widths in zip(names, (bottom, top), strict=True):
        for name, inner, outer in zip(linears, widths, widths[1:], strict=False):
            state[f"{name}.weight"] = torch.randn(outer, inner, generator=generator) / inner**0.5
            state[f"{name}.bias"] = torch.randn(outer, generator=generator)
    return state


def forward(layout, state, batch):
    """The paper's equations on these weights; pairs in the order that each implementation reads them in."""
    linears = [name.removesuffix(".weight") for name in state if f"{name.removesuffix('weight')}bias" in state]
    bottom = [name for name in linears if name.startswith(("bot", "dense"))]
    tables = [value for name, value in state.items() if name.startswith(("emb_l", BAGS))]
    x = batch.dense_features
    for name in bottom:
        x = torch.relu(x @ state[f"{name}.weight"].T + state[f"{name}.bias"])
    vectors = [x]
    for table, key in zip(tables, batch.sparse_features.keys, strict=True):
        values, lengths = batch.sparse_features[key]
        vectors.append(torch.stack([bag.sum(0) for bag in torch.split(table[values], lengths.tolist())]))
    count = len(vectors)
    lower = [(i, j) for i in range(count) for j in range(i)]
    upper = [(i, j) for i in range(count) for j in range(i + 1, count)]
    pairs = lower if layout == "reference" else upper
    x = torch.cat([x, torch.stack([(vectors[i] * vectors[j]).sum(1) for i, j in pairs], dim=1)], dim=1)
    top = linears[len(bottom) :]
    for name in top:
        x = x @ state[f"{name}.weight"].T + state[f"{name}.bias"]
        x = x if name == top[-1] else torch.relu(x)
    return x.squeeze(1)


def ours(**options):
    return DLRM(tiny_schema().to_dict(), 8, (16,), (12, 6), **options)


@pytest.mark.parametrize("layout", ["reference", "torchrec"])
def test_imported_weights_give_the_same_logits(layout):
    state, batch = foreign(layout), tiny_batch(rows=32)
    model = ours()
    import_weights(model, {f"module.model.{name}": value for name, value in state.items()}, layout)
    torch.testing.assert_close(model.logits(batch), forward(layout, state, batch), atol=1e-5, rtol=1e-5)
    back = export_weights(model, layout)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_torchrecs_own_model_gives_the_same_logits():
    torchrec = pytest.importorskip("torchrec")
    from torchrec.models.dlrm import DLRM as Theirs

    torch.manual_seed(0)
    tables = [
        torchrec.EmbeddingBagConfig(
            name=f"t_{f.name}", embedding_dim=8, num_embeddings=f.num_embeddings, feature_names=[f.name]
        )
        for f in tiny_schema().sparse
    ]
    theirs = Theirs(torchrec.EmbeddingBagCollection(tables=tables), 3, [16, 8], [12, 6, 1])
    model, batch = ours(), tiny_batch(rows=32)
    import_weights(model, theirs.state_dict(), "torchrec")
    sparse = batch.sparse_features
    jagged = torchrec.KeyedJaggedTensor(sparse.keys, sparse.values, lengths=sparse.lengths)
    expected = theirs(batch.dense_features, jagged).squeeze(1)
    torch.testing.assert_close(model.logits(batch), expected, atol=1e-5, rtol=1e-5)
    theirs.load_state_dict(export_weights(model, "torchrec"))


def test_what_does_not_fit_is_named():
    state = foreign("reference")
    with pytest.raises(RecloomError, match=r"emb_l.0.weight is \(40, 8\) there, \(40, 16\) here"):
        import_weights(DLRM(tiny_schema().to_dict(), 16, (16,), (12, 6)), state, "reference")
    del state["top_l.4.bias"]
    model = ours()
    before = model.over_arch.linears()[0].weight.clone()
    with pytest.raises(RecloomError, match=r"top_l.4.bias is missing"):
        import_weights(model, state, "reference")
    assert torch.equal(model.over_arch.linears()[0].weight, before), "a failed import changed the model"
    with pytest.raises(RecloomError, match="there is no dense_arch"):
        import_weights(model, state, "torchrec")
    with pytest.raises(RecloomError, match="DotInteraction"):
        import_weights(
            DLRM(tiny_schema().to_dict(), 8, (16,), (12, 6), ConcatInteraction), foreign("torchrec"), "torchrec"
        )


def test_only_data_is_read_from_a_file(tmp_path: Path):
    path = tmp_path / "weights.pt"
    # as the reference saves: numpy's scalars beside the state dict
    torch.save({"state_dict": foreign("reference"), "test_acc": np.float64(0.78), "iter": np.int64(3)}, path)
    assert read_weights(path).keys() == foreign("reference").keys()
    torch.save({"state_dict": foreign("reference"), "callback": Path.unlink}, path)
    with pytest.raises(RecloomError, match="no weights that can be read safely"):
        read_weights(path)
    path.write_bytes(b"not a file of weights")
    with pytest.raises(RecloomError, match="no weights that can be read safely"):
        read_weights(path)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    data = {"num_train": 512, "num_val": 256, "num_test": 256, "batch_size": 64, "num_workers": 0, "num_dense": 3}
    data |= {"cardinalities": [40, 30, 24, 15], "multi_hot": {"c3": 2}}
    document = {
        "model": {
            "class_path": "DLRM",
            "init_args": {"embedding_dim": 8, "dense_arch": [16], "over_arch": [12, 6], "optimizer": {"dense": "Adam"}},
        },
        "data": {"class_path": "SyntheticClicks", "init_args": data},
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_command_writes_a_checkpoint_to_test_and_to_train_from(config: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights, checkpoint = tmp_path / "weights.pt", tmp_path / "imported" / "dlrm.ckpt"
    torch.save(foreign("reference"), weights)
    command = ["import-weights", "--config", str(config), "--from", "reference", str(weights)]
    code, out, err = run_cli([*command, "--output", str(checkpoint)])
    assert code == 0, err
    assert "1,385 weights" in out
    code, out, err = run_cli(["test", "--config", str(config), "--ckpt_path", str(checkpoint)])
    assert code == 0, err
    assert "test_ne" in out
    fit = ["fit", "--config", str(config), "--ckpt_path", str(checkpoint), "--run_dir", "run"]
    code, _, err = run_cli(fit)
    assert code == 0, err
    trained = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert trained["global_step"] == 8
    moved = trained["state_dict"]["sparse_arch.weight"] - torch.cat(
        [foreign("reference")[f"emb_l.{i}.weight"] for i in range(4)]
    )
    assert 0 < float(moved.abs().max()) < 2, "training did not start from the imported rows"
    assert run_cli([*command[:4], "torchrec", str(weights), "--output", str(checkpoint)])[0] == 2
