"""Synthetic clicks: what is planted is there, the oracle is right, rows are fixed by the seed."""

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from recloom.batch import Batch
from recloom.data.synthetic import SyntheticClicks
from recloom.errors import RecloomError, UnknownNameError
from recloom.features import FeatureSchema


def clicks(**options):
    return SyntheticClicks(**{"num_train": 40_000, "num_val": 20_000, "num_test": 1000, "num_workers": 0, **options})


def rows(module, split="train"):
    source = module.source(split)
    return Batch.concat([source.load(0, index) for index in range(len(source.block_rows(0)))])


def same(a, b):
    return (
        torch.equal(a.dense_features, b.dense_features)
        and torch.equal(a.sparse_features.values, b.sparse_features.values)
        and torch.equal(a.sparse_features.offsets, b.sparse_features.offsets)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.timestamps, b.timestamps)
        and torch.equal(a.extras["probability"], b.extras["probability"])
    )


def test_rows_depend_on_the_seed_and_on_nothing_else():
    in_process = list(clicks(num_train=70_000).train_dataloader())
    in_worker = list(clicks(num_train=70_000, num_workers=1).train_dataloader())
    assert len(in_process) == 68
    assert all(map(same, in_process, in_worker))
    assert not same(in_process[0], next(iter(clicks(num_train=70_000, seed=1).train_dataloader())))
    assert not same(rows(clicks(), "val").rows(0, 1000), rows(clicks(), "test"))


def test_epochs_repeat_the_same_rows_in_another_order():
    loader = clicks(num_train=4 * 32_768, batch_size=32_768).train_dataloader()
    first, second = list(loader), list(loader)
    assert not same(first[0], second[0]) or not same(first[1], second[1])
    assert all(any(same(a, b) for b in second) for a in first)


def test_batches_fit_the_schema():
    module = clicks(multi_hot={"c2": 2.5}, cardinalities=(7, 1, 90))
    schema = FeatureSchema.from_dict(module.schema)
    batch = rows(module)
    assert batch.dense_features.shape == (40_000, len(schema.dense))
    assert batch.sparse_features.keys == schema.sparse_names
    for feature in schema.sparse:
        ids, lengths = batch.sparse_features[feature.name]
        assert 0 <= ids.min() <= ids.max() < feature.num_embeddings
        assert lengths.max() <= feature.max_length
    assert batch.sparse_features["c2"][1].double().mean() == pytest.approx(2.5, abs=0.05)
    assert not batch.sparse_features.one_hot
    assert rows(clicks(multi_hot={})).sparse_features.one_hot


def test_popularity_is_zipf():
    ids = rows(clicks(cardinalities=(1000,), zipf=1.2, num_pairs=0)).sparse_features["c0"][0]
    weights = np.arange(1, 1001) ** -1.2
    counts = np.bincount(ids, minlength=1000)
    expected = weights / weights.sum() * len(ids)
    assert abs(counts[:20] - expected[:20]).max() < 5 * np.sqrt(expected[0])
    assert counts[500:].sum() == pytest.approx(expected[500:].sum(), rel=0.1)


def test_labels_follow_the_probabilities_and_the_oracle_measures_them():
    module = clicks(num_val=100_000, base_ctr=0.1)
    batch = rows(module, "val")
    chances = batch.extras["probability"].double()
    error = float((chances * (1 - chances)).mean() / len(batch)) ** 0.5
    assert chances.mean() == pytest.approx(0.1, abs=0.004)
    for part in (chances < 0.05, chances > 0.3, chances >= 0):
        assert batch.labels[part].double().mean() == pytest.approx(chances[part].mean().item(), abs=12 * error)
    oracle = module.oracle("val")
    labels = batch.labels.numpy()
    assert oracle["logloss"] == pytest.approx(log_loss(labels, chances.numpy()), rel=1e-6)
    assert oracle["auc"] == pytest.approx(roc_auc_score(labels, chances.numpy()), abs=1e-9)
    constant = log_loss(labels, np.full(len(labels), labels.mean(dtype=np.float64)))
    assert oracle["ne"] == pytest.approx(log_loss(labels, chances.numpy()) / constant, rel=1e-6)


def gap(module, cells):
    """NE of a logistic regression on one-hot ids, or on the one-hot pairs of ids, over the oracle's, less 1."""

    def encode(batch):
        columns = [batch.sparse_features[key][0].numpy() for key in batch.sparse_features.keys]
        if cells:
            columns = [a * 100 + b for i, a in enumerate(columns) for b in columns[i + 1 :]]
        parts = [sparse.csr_matrix((np.ones(len(c)), (np.arange(len(c)), c)), shape=(len(c), 10_000)) for c in columns]
        return sparse.hstack(parts).tocsr()

    train, val = rows(module), rows(module, "val")
    model = LogisticRegression(max_iter=300).fit(encode(train), train.labels.numpy())
    loss = log_loss(val.labels.numpy(), model.predict_proba(encode(val))[:, 1])
    return loss / module.oracle("val")["logloss"] - 1


def test_pairs_are_out_of_reach_of_first_order_and_cross_terms_of_second_order():
    small = {"num_train": 120_000, "num_dense": 0, "cardinalities": (12, 15, 18), "multi_hot": {}, "signal": 1.5}
    assert gap(clicks(**small, interaction=0.0), cells=False) < 0.01
    pairs = clicks(**small, interaction=0.7, num_pairs=3)
    assert gap(pairs, cells=False) > 0.08
    assert gap(pairs, cells=True) < 0.03
    assert gap(clicks(**small, interaction=0.7, num_pairs=3, cross=1.0), cells=True) > 0.05


@pytest.mark.parametrize(("drift", "low", "high"), [(0.0, 0.9, 1.0), (1.0, -0.4, 0.4)])
def test_effects_move_with_time_under_drift(drift, low, high):
    module = clicks(num_train=40 * 32_768, cardinalities=(10,) * 12, multi_hot={}, num_pairs=0, drift=drift)
    source = module.source("train")
    start, end = source.load(0, 0), source.load(0, 39)
    assert start.timestamps[0] < start.timestamps[-1] < end.timestamps[0]

    def effects(batch):
        chances = batch.extras["probability"].logit().numpy()
        ids = batch.sparse_features.values.view(12, -1).numpy()
        return np.array([chances[ids[f] == c].mean() for f in range(12) for c in range(10)])

    correlation = np.corrcoef(effects(start), effects(end))[0, 1]
    assert low <= correlation <= high


def test_signal_sets_how_much_can_be_known():
    assert clicks(signal=0.0).oracle()["ne"] == pytest.approx(1.0, abs=1e-3)
    assert clicks(signal=3.0).oracle()["ne"] < clicks(signal=1.0).oracle()["ne"] - 0.2


def test_mistakes_are_named():
    with pytest.raises(UnknownNameError, match="'c11'"):
        clicks(multi_hot={"c11": 3.0})
    with pytest.raises(RecloomError, match="base_ctr"):
        clicks(base_ctr=1.5)
    with pytest.raises(RecloomError, match="batch_size"):
        clicks(batch_size=0)
