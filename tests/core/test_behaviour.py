"""Synthetic behaviour: its probabilities follow from what a model sees, and only real times show what is due."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from recloom.batch import Batch
from recloom.data.behaviour import SyntheticBehaviour
from recloom.data.world import world_of
from recloom.errors import RecloomError
from recloom.features import FeatureSchema

DAY = 86_400
PERIODS = (1.0, 3.5, 7.0)


def behaviour(**options):
    sizes = {"num_train": 30_000, "num_val": 20_000, "num_test": 1000, "num_workers": 0}
    return SyntheticBehaviour(**{**sizes, **options})


def rows(module, split="train"):
    source = module.source(split)
    return Batch.concat([source.load(0, index) for index in range(len(source.block_rows(0)))])


def same(a, b):
    x, y = a.sequences["history"], b.sequences["history"]
    return (
        torch.equal(a.sparse_features.values, b.sparse_features.values)
        and torch.equal(x.values, y.values)
        and torch.equal(x.offsets, y.offsets)
        and torch.equal(x.timestamps, y.timestamps)
        and torch.equal(a.timestamps, b.timestamps)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.extras["probability"], b.extras["probability"])
    )


def seen(batch, times, length=50):
    """What the click depends on, from the batch alone: (how current, B x P kernels of the gaps, per period).

    `times` gives the B x L gaps in days, or puts something else in their place.
    """
    ids, mask = batch.sequences["history"].padded(length)
    alike = ((ids[..., 1] == batch.sparse_features["category"][0][:, None]) & mask).numpy()
    weights = alike * 0.5 ** (np.arange(length)[::-1] / 10)
    current = weights.sum(1)
    kernels = [(weights * np.cos(2 * np.pi * gaps)).sum(1) / (1 + current) for gaps in times(batch, length)]
    return current, np.stack(kernels, axis=1)


def real_gaps(batch, length):
    gaps = batch.sequences["history"].gaps(batch.timestamps, length).double().numpy() / DAY
    return [gaps / period for period in PERIODS]


def places(batch, length):
    place = np.arange(length)[None, ::-1]
    return [place / period for period in (2, 3, 4, 6, 8, 11, 16, 22, 32)]


def test_rows_depend_on_the_seed_and_on_nothing_else():
    options = {"num_train": 40_000, "batch_size": 4096}
    in_process = list(behaviour(**options).train_dataloader())
    in_workers = list(behaviour(**options, num_workers=2).train_dataloader())
    assert len(in_process) == len(in_workers) == 9
    assert all(map(same, in_process, in_workers))
    assert not same(in_process[0], next(iter(behaviour(**options, seed=1).train_dataloader())))


def test_batches_fit_the_schema_and_histories_end_before_now():
    module = behaviour(max_length=20, mean_length=8)
    schema, batch = FeatureSchema.from_dict(module.schema), rows(module)
    history, (feature,) = batch.sequences["history"], schema.sequences
    assert batch.sparse_features.keys == schema.sparse_names == history.keys == ["item", "category"]
    assert [key.table_name for key in feature.keys] == ["item", "category"], "steps share the candidates' tables"
    assert history.values.amax(0).tolist() < [5000, 40]
    assert (history.values >= 0).all()
    lengths = history.lengths
    assert lengths.min() == 0
    assert lengths.max() == feature.max_length == 20
    assert (lengths == 0).double().mean() == pytest.approx(1 / 9, abs=0.01)
    assert len(lengths.unique()) == 21
    owner = torch.arange(len(batch)).repeat_interleave(lengths)
    assert (history.timestamps < batch.timestamps[owner]).all(), "nothing of the future"
    steps = history.timestamps.diff()
    assert (steps[owner[1:] == owner[:-1]] >= 0).all(), "oldest first"
    assert torch.equal(history.values[:, 0] % 40, history.values[:, 1])


@pytest.mark.parametrize("options", [{}, {"periodicity": 0.2, "switching": 1.0, "quality": 0.7, "signal": 1.0}])
def test_probabilities_are_the_documented_function_of_history_and_candidate(options):
    module = behaviour(**options)
    batch, world, config = rows(module, "val"), world_of(module.config), module.config
    items, categories = (batch.sparse_features[key][0].numpy() for key in ("item", "category"))
    current, kernels = seen(batch, real_gaps)
    period = [PERIODS.index(seconds / DAY) for seconds in world.periods[categories]]
    terms = [kernels[np.arange(len(batch)), period], np.log1p(current), world.quality[items]]
    logits = torch.logit(batch.extras["probability"].double()).numpy()
    design = np.stack([*terms, np.ones(len(batch))], axis=1)
    weights, *_ = np.linalg.lstsq(design, logits, rcond=None)
    assert np.abs(design @ weights - logits).max() < 1e-3
    shares = (weights[:3] * np.std(terms, axis=1)) ** 2 / config.signal**2
    rest = 1 - config.periodicity
    expected = [config.periodicity, rest * (1 - config.quality), rest * config.quality]
    assert shares == pytest.approx(expected, abs=0.05)


def test_labels_follow_the_probabilities_and_the_oracle_measures_them():
    module = behaviour(num_val=60_000, base_ctr=0.2)
    batch = rows(module, "val")
    chances, labels = batch.extras["probability"].double().numpy(), batch.labels.double().numpy()
    assert chances.mean() == pytest.approx(0.2, abs=0.005)
    for low, high in ((0, 0.05), (0.05, 0.3), (0.3, 0.6), (0.6, 1)):
        part = (chances >= low) & (chances < high)
        assert labels[part].mean() == pytest.approx(chances[part].mean(), abs=5 * (0.25 / part.sum()) ** 0.5)
    oracle = module.oracle("val")
    assert oracle["logloss"] == pytest.approx(log_loss(labels, chances), rel=1e-6)
    assert oracle["auc"] == pytest.approx(roc_auc_score(labels, chances), abs=1e-9)
    logits = np.log(chances / (1 - chances))
    for scale, shift in ((0.8, 0), (1.25, 0), (1, 0.2), (1, -0.2)):  # any other prediction is worse
        assert log_loss(labels, 1 / (1 + np.exp(-(scale * logits + shift)))) > oracle["logloss"] + 1e-4


def auc(module, times):
    """AUC of a logistic regression on how current an interest is, and on periodic kernels by period and candidate."""

    def features(batch):
        current, kernels = seen(batch, times)
        period = world_of(module.config).periods[batch.sparse_features["category"][0].numpy()]
        parts = [kernels * (period == days * DAY)[:, None] for days in PERIODS]
        return np.concatenate([np.log1p(current)[:, None], *parts], axis=1)

    train, val = rows(module), rows(module, "val")
    model = LogisticRegression(C=100, max_iter=200).fit(features(train), train.labels.numpy())
    return roc_auc_score(val.labels.numpy(), model.predict_proba(features(val))[:, 1])


def test_real_gaps_beat_places_where_time_matters_and_only_there():
    periodic = behaviour()
    assert auc(periodic, real_gaps) > auc(periodic, places) + 0.08
    timeless = behaviour(periodicity=0.0)
    assert abs(auc(timeless, real_gaps) - auc(timeless, places)) < 0.005


def test_interests_switch():
    def stopped(module):
        """Share of the candidates of interests, seen at least 3 times, that are not among the latest third."""
        batch = rows(module)
        ids, mask = batch.sequences["history"].padded(50)
        alike = (ids[..., 1] == batch.sparse_features["category"][0][:, None]) & mask
        often = (alike.sum(1) >= 3) & (mask.sum(1) >= 30)
        return (~alike[often, -15:].any(1)).double().mean().item()

    assert stopped(behaviour(switching=1.0)) > stopped(behaviour(switching=0.0)) + 0.1


def test_users_come_back_if_they_are_shared():
    def interests(batch):
        """B x categories: whether the history has the category; without noise and switches these are the interests."""
        history = batch.sequences["history"]
        found = torch.zeros(len(batch), 40, dtype=torch.bool)
        found[torch.arange(len(batch)).repeat_interleave(history.lengths), history.values[:, 1].long()] = True
        return found

    options = {"num_train": 5000, "num_val": 5000, "switching": 0.0, "noise": 0.0, "num_test": 0}
    shared = behaviour(**options, shared_users=True)
    assert shared.schema["sparse"][2]["num_embeddings"] == 5000
    train, val = rows(shared), rows(shared, "val")
    assert torch.equal(val.sparse_features["user"][0], torch.arange(5000).int())
    known = (train.sequences["history"].lengths >= 20) & (val.sequences["history"].lengths >= 20)
    before, after = interests(train)[known], interests(val)[known]
    assert (before == after).all(1).double().mean() > 0.95
    apart = behaviour(**options)
    assert apart.schema["sparse"][-1]["name"] == "category"
    before, after = interests(rows(apart))[known], interests(rows(apart, "val"))[known]
    assert (before == after).all(1).double().mean() < 0.05


def test_mistakes_are_named():
    with pytest.raises(RecloomError, match="periods"):
        behaviour(periods=(1.0, 0.3))
    with pytest.raises(RecloomError, match="num_items"):
        behaviour(num_items=5001)
    with pytest.raises(RecloomError, match="switching"):
        behaviour(switching=1.5)
