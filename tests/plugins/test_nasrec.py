"""NASRec: the published models' costs, the space, the supernet's arithmetic in both modes, its training by slices."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from recloom.batch import Batch, KeyedJaggedTensor
from recloom.errors import DataError, RecloomError
from recloom.features import DenseFeature, FeatureSchema, SparseFeature
from recloom.optim import OptimizerConfig, build_optimizer
from recloom.search.slices import SlicedOptimizer, build_sliced_optimizer
from recloom.testing import check_plugin, tiny_batch, tiny_schema
from recloom_nasrec.architecture import load, published
from recloom_nasrec.bench import reference
from recloom_nasrec.bench.supernet import main as bench
from recloom_nasrec.counting import program
from recloom_nasrec.materialise import materialise
from recloom_nasrec.model import NASRecNet
from recloom_nasrec.sampling import PathSampler, full_path
from recloom_nasrec.space import NASRecSpace
from recloom_nasrec.supernet import NASRecSupernet

FEATURES = {"criteo": (13, 26), "avazu": (0, 23), "kdd": (3, 10)}
README = {  # the reference's table of results, multiply-accumulates in millions
    **{"criteo_small": 2.20, "criteo_full": 1.45, "avazu_small": 3.08},
    **{"avazu_full": 1.87, "kdd_small": 3.48, "kdd_full": 1.09},
}
MEASURED = {  # the same models by fvcore 0.1.5 on the reference, which leaves attention's two products out
    **{"criteo_small": 2.208, "criteo_full": 1.261, "avazu_small": 3.086},
    **{"avazu_full": 1.795, "kdd_small": 3.483, "kdd_full": 0.887},
}
CHECKOUT = os.environ.get("RECLOOM_NASREC_REFERENCE")


def schema_of(dense, sparse, rows=30):
    return FeatureSchema(
        tuple(DenseFeature(f"d{i}") for i in range(dense)), tuple(SparseFeature(f"c{i}", rows) for i in range(sparse))
    )


def tiny_space(size="full", **options):
    return NASRecSpace(size, 4, 16, (16, 32, 64, 128), (4, 8, 16), **options)


def tiny_net(size="full", seed=0, **options):
    """A supernet whose biases and normalisations are not at their trivial initial values."""
    torch.manual_seed(seed)
    net = NASRecSupernet(tiny_space(size), tiny_schema().to_dict(), **options)
    with torch.no_grad():
        for parameter in net.network.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return net


def logits(net, path, mode=None):
    net.path, net.mode = path, mode or net.mode
    with torch.no_grad():
        return net.logits(tiny_batch())


@pytest.mark.parametrize("name", sorted(README))
def test_published_costs(name):
    data, size = name.split("_")
    schema, architecture = schema_of(*FEATURES[data]), load(name)
    padded = program(architecture, schema, form="padded")
    assert padded.macs / 1e6 == pytest.approx(README[name], rel=0.02)
    attention = sum(work.macs for work in padded.works if work.name.endswith((".scores", ".values")))
    norms = sum(5 * work.columns * work.vectors for work in padded.works if work.name.endswith("norm.norm"))
    norms += sum(5 * work.columns * work.vectors for work in padded.works if work.name.endswith("_norm"))
    assert (padded.macs - attention + norms) / 1e6 == pytest.approx(MEASURED[name], abs=6e-4)
    ours = NASRecSpace(size).program(NASRecSpace(size).genotype(architecture), schema)
    eager = program(architecture, schema, form="padded", dead=True)
    assert ours.macs <= padded.macs <= eager.macs
    model = NASRecNet(schema.to_dict(), name)
    assert ours.parameters == sum(parameter.numel() for parameter in model.network.parameters())
    assert ours.table_bytes == 4 * sum(parameter.numel() for parameter in model.sparse_arch.parameters())


def test_size_of_the_spaces():
    """As counted from the reference: 10^39.7 and 10^43.9; small has no use for left and right, 7! of each."""
    assert NASRecSpace("full").log10_size == pytest.approx(43.9, abs=0.05)
    assert NASRecSpace("small").log10_size + 2 * math.log10(math.factorial(7)) == pytest.approx(39.7, abs=0.05)


@pytest.mark.parametrize("size", ["small", "full"])
def test_genotypes(size):
    space, rng = NASRecSpace(size), np.random.default_rng(0)
    numbers = []
    for _ in range(60):
        genotype = space.sample(rng)
        assert space.valid(genotype)
        assert space.valid(space.mutate(genotype, rng, 5))
        assert space.valid(space.crossover(genotype, space.sample(rng), rng))
        canonical = space.canonical(genotype)
        assert space.canonical(canonical) == canonical
        assert space.genotype(space.architecture(genotype)) == genotype
        numbers.append(len(space.architecture(genotype)[-1].dense_from))
    assert set(numbers) == {1, 2, 3, 4}
    assert all(space.valid(near) for near in space.neighbours(canonical))
    assert not space.valid(tuple(0 for _ in space.choices))  # no connections


@pytest.mark.parametrize("size", ["small", "full"])
def test_canonical_is_the_same_model(size):
    net, rng = tiny_net(size), np.random.default_rng(2)
    dead = 0
    for _ in range(40):
        genotype = net.nasrec.sample(rng)
        canonical = net.nasrec.canonical(genotype)
        dead += canonical != genotype
        assert torch.equal(logits(net, genotype), logits(net, canonical))
        for other in (genotype, canonical):
            built = program(net.nasrec.architecture(other), tiny_schema())
            assert built.macs == net.nasrec.program(canonical, tiny_schema()).macs
    assert dead > 20


def test_what_does_not_matter():
    """Without a way from block 1 to the head, and without mergers, its choices change nothing; others' do."""
    space = tiny_space()
    smallest = full_path(space)[0]
    plain = replace(smallest, dense_ops=("fc",), sparse_ops=("efc",), interact=False, fm=False)
    last = replace(plain, dense_ops=("sum",), left=(0,), right=(2,), dense_from=(1, 3), sparse_from=(0,))
    blocks = (plain, replace(plain, dense_from=(0,)), plain, last)
    found = space.architecture(space.canonical(space.genotype(blocks)))
    assert found[0].dense_dim == found[2].dense_dim == 16  # blocks 1 and 3 are dead: dense_from of a sum is not read
    assert found[1].dense_dim == 128
    assert found[1].sparse_dim == 4  # nobody takes block 2's tokens
    swapped = (*blocks[:3], replace(last, left=(2,), right=(0,)))
    assert space.canonical(space.genotype(swapped)) == space.canonical(space.genotype(blocks))


# The supernet


def naive(net, path, dense, tokens):
    """The published arithmetic, B x N x D tokens, everything at its full size; with our parameters."""
    most, count = max(net.nasrec.dense_dims), max(net.nasrec.sparse_dims)
    n0 = tokens.shape[1]
    features, sparse = [dense], [tokens]

    def lin(layer, x):
        return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)

    def norm(layer, x):
        return x if layer is None else F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias)

    def masked(x, keep):
        return x * (torch.arange(x.shape[-1]) < keep)

    for block, made in zip(path, net.network.blocks, strict=True):
        ops = {**made.dense_ops, **made.sparse_ops}

        def pick(sources, values, axis):
            return torch.cat([v if j in sources else torch.zeros_like(v) for j, v in enumerate(values)], dim=axis)

        x, y = pick(block.dense_from, features, 1), pick(block.sparse_from, sparse, 1)
        left, right = pick(block.left, features, 1), pick(block.right, features, 1)
        out = torch.zeros(len(x), most)
        if "fc" in block.dense_ops:
            out = out + masked(F.relu(norm(ops["fc"].norm, lin(ops["fc"].linear, x))), block.dense_dim)
        if "dot" in block.dense_ops:
            op = ops["dot"]
            z = norm(op.project_norm, lin(op.project, y.transpose(1, 2))).transpose(1, 2)
            t = torch.cat([norm(op.features_norm, lin(op.features, x)).unsqueeze(1), z], dim=1)
            products = t @ t.transpose(1, 2)
            i, j = torch.tril_indices(t.shape[1], t.shape[1], offset=-1)
            out = out + masked(norm(op.norm, lin(op.linear, products[:, i, j])), block.dense_dim)
        if "gating" in block.dense_ops:
            op = ops["gating"]
            gated = right * torch.sigmoid(lin(op.gate, left))
            out = out + masked(norm(op.norm, lin(op.linear, gated)), block.dense_dim)
        if "sum" in block.dense_ops:
            out = out + masked(norm(ops["sum"].norm, lin(ops["sum"].linear, left + right)), block.dense_dim)
        new = torch.zeros(len(x), count, tokens.shape[2])
        if "efc" in block.sparse_ops:
            t = masked(F.relu(norm(ops["efc"].norm, lin(ops["efc"].linear, y.transpose(1, 2)))), block.sparse_dim)
            new = new + t.transpose(1, 2)
        if "transformer" in block.sparse_ops:
            op = ops["transformer"]
            t = masked(norm(op.norm, lin(op.project, y.transpose(1, 2))), block.sparse_dim).transpose(1, 2)
            q, k, v = (s.unflatten(2, (8, 2)).transpose(1, 2) for s in lin(op.attend, t).chunk(3, dim=2))
            weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(2), dim=-1)
            t = norm(op.attend_norm, lin(op.out, (weights @ v).transpose(1, 2).flatten(2)) + t)
            t = norm(op.second_norm, t + lin(op.second, F.relu(lin(op.first, t))))
            new = new + masked(t.transpose(1, 2), block.sparse_dim).transpose(1, 2)
        more = torch.zeros(len(x), 8, tokens.shape[2])
        if block.interact:
            more = norm(made.interact.norm, lin(made.interact.linear, out)).view(len(x), 8, -1)
        if block.fm:
            pairs = new.sum(1) ** 2 - (new**2).sum(1)
            out = out + masked(norm(made.fm.norm, lin(made.fm.linear, pairs)), block.dense_dim)
        features.append(out)
        sparse.append(torch.cat([more, new], dim=1))
    assert sparse[0].shape[1] == n0
    head = net.network.head
    return features[-1] @ head.features[0] + (sparse[-1] * head.tokens[0].T).sum((1, 2)) + head.bias


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "plain"])
@pytest.mark.parametrize("size", ["small", "full"])
def test_mask_mode_is_the_published_arithmetic(size, norm):
    net = tiny_net(size, mode="mask", layer_norm=norm)
    batch = tiny_batch()
    dense, tokens = net.embed(batch)
    sampler = PathSampler(net.nasrec, "any-operator any-connection", 8, "block")
    for step in range(16):
        path = sampler(step, np.random.default_rng(step))
        with torch.no_grad():
            expected = naive(net, path, dense, tokens.transpose(1, 2))
        torch.testing.assert_close(logits(net, path), expected, atol=2e-4, rtol=1e-4)


def test_fast_equals_mask_without_norms_and_attention():
    net = tiny_net("full", layer_norm=False)
    sampler = PathSampler(net.nasrec, "any-operator any-connection", 8, "block")
    for step in range(24):
        path = tuple(replace(b, sparse_ops=("efc",)) for b in sampler(step, np.random.default_rng(step)))
        torch.testing.assert_close(logits(net, path, "fast"), logits(net, path, "mask"), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "attention"])
def test_fast_and_mask_differ_where_said(norm):
    """Slices normalise over themselves, and no zeros take part in softmax: at full width there is no difference."""
    net, rng = tiny_net("full", layer_norm=norm), np.random.default_rng(3)
    full = full_path(net.nasrec)
    torch.testing.assert_close(logits(net, full, "fast"), logits(net, full, "mask"), atol=1e-4, rtol=1e-4)
    relative = []
    for _ in range(40):
        path = net.nasrec.sample(rng)
        fast, mask = logits(net, path, "fast"), logits(net, path, "mask")
        relative.append(float((fast - mask).norm() / mask.norm()))
    assert max(relative) > 1e-3
    assert np.median(relative) < (0.6 if norm else 0.1)


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "plain"])
@pytest.mark.parametrize("size", ["small", "full"])
def test_a_model_cut_out_is_the_fast_path(size, norm):
    net, rng = tiny_net(size, layer_norm=norm), np.random.default_rng(4)
    for _ in range(12):
        genotype = net.nasrec.sample(rng)
        model = materialise(net, genotype).eval()
        with torch.no_grad():
            torch.testing.assert_close(model.logits(tiny_batch()), logits(net, genotype), atol=1e-5, rtol=1e-6)


def train(net, optimizer, steps, every=1):
    batches = [tiny_batch(seed=i) for i in range(4)]
    for step in range(steps):
        net.path = net.sample_path(step)
        if step % every == 0:
            optimizer.zero_grad()
        net.loss(net.logits(batches[step % 4]), batches[step % 4]).backward()
        if step % every == every - 1:
            optimizer.step()


@pytest.mark.parametrize("every", [1, 3], ids=["each step", "accumulated"])
@pytest.mark.parametrize("kind", ["Adagrad", "SGD"])
def test_updating_slices_is_updating_all(kind, every):
    """The same weights as after whole gradients, and only the slices have gradients."""
    options = {"eps": 1e-2} if kind == "Adagrad" else {}
    config = OptimizerConfig(kind, 0.05, options, sparse="adagrad", sparse_lr=0.05, sparse_eps=1e-2, clip_norm=0.5)
    nets = [tiny_net(warmup_steps=6, warmup_coin="block") for _ in range(2)]
    sliced, whole = build_sliced_optimizer(nets[0], config)[0], build_optimizer(nets[1], config)[0]
    assert isinstance(sliced, SlicedOptimizer)
    train(nets[0], sliced, 12, every)
    train(nets[1], whole, 12, every)
    for (name, mine), other in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4, msg=name)
    nets[0].path = next(
        nets[0].sample_path(step) for step in range(20, 99) if nets[0].sample_path(step)[-1].dense_dim < 99
    )
    sliced.zero_grad()
    nets[0].logits(tiny_batch()).sum().backward()
    assert sum(t.grad.numel() for t in sliced.gradients()) < 0.2 * sum(p.numel() for p in nets[0].network.parameters())
    sliced.release()
    assert nets[0].logits(tiny_batch()).sum().backward() is None
    assert nets[0].network.head.features.grad.shape == nets[0].network.head.features.shape


def test_momentum_updates_whole_weights():
    config = OptimizerConfig(dense="SGD", dense_options={"momentum": 0.9})
    assert not isinstance(build_sliced_optimizer(tiny_net(), config)[0], SlicedOptimizer)


def test_paths_that_are_ranked_together_share_their_parts():
    net, rng = tiny_net(), np.random.default_rng(5)
    parent = net.nasrec.sample(rng)
    paths = [net.nasrec.canonical(net.nasrec.mutate(parent, rng)) for _ in range(12)]
    batch = tiny_batch()
    computed = []
    for block in net.network.blocks:
        for operator in (*block.dense_ops.values(), *block.sparse_ops.values()):
            operator.register_forward_hook(lambda *_: computed.append(1))
    for path, x in zip(paths, net.features(net.embed(batch), paths), strict=True):
        weight, bias = net.head(path)
        torch.testing.assert_close(torch.addmv(bias, x, weight), logits(net, path), atol=1e-5, rtol=1e-5)
    together, alone = len(computed) // 2, len(computed) - len(computed) // 2
    computed.clear()
    net.features(net.embed(batch), paths)
    together = len(computed)
    computed.clear()
    for path in paths:
        net.features(net.embed(batch), [path])
    alone = len(computed)
    assert together < 0.6 * alone
    memory = {}
    net.features(net.embed(batch), paths[:6], memory)
    computed.clear()
    net.features(net.embed(batch), paths[:6], memory)
    assert not computed


def test_paths_of_training():
    space = NASRecSpace("full")
    default = PathSampler(space, "single-operator any-connection", 100, "step")
    full = [default(step, np.random.default_rng([0, step])) == full_path(space) for step in range(100)]
    assert 35 < sum(full) < 65
    assert sum(full[:50]) > sum(full[50:])
    assert default(7, np.random.default_rng(1)) == default(7, np.random.default_rng(1))
    later = [default(100, np.random.default_rng(i))[6] for i in range(400)]
    assert np.mean([len(block.dense_from) for block in later]) == pytest.approx(2.5, abs=0.15)  # 1 + B(3, 0.5)
    assert {len(block.dense_ops) for block in later} == {1}
    single = PathSampler(space, "single-operator single-connection", 0, "step")
    assert {len(single(0, np.random.default_rng(i))[6].sparse_from) for i in range(50)} == {1}
    several = PathSampler(space, "any-operator any-connection", 0, "step")
    assert {len(several(0, np.random.default_rng(i))[6].dense_ops) for i in range(50)} == {1, 2, 3, 4}
    blocks = PathSampler(space, "single-operator any-connection", 100, "block")
    kinds = [len(block.dense_ops) for i in range(40) for block in blocks(50, np.random.default_rng(i))]
    assert 0.35 < np.mean(np.array(kinds) == 4) < 0.65


def test_training_by_lightning(tmp_path: Path):
    net = tiny_net(warmup_steps=4)
    loader = DataLoader([tiny_batch(seed=i) for i in range(6)], batch_size=None)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=2, enable_checkpointing=False, gradient_clip_val=1.0, **options)
    before = logits(net, net.nasrec.sample(np.random.default_rng(0)))
    net.train()
    trainer.fit(net, loader)
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    assert not torch.equal(before, logits(net, net.nasrec.sample(np.random.default_rng(0))))
    again = tiny_net(warmup_steps=4, seed=1)
    pl.Trainer(max_epochs=3, enable_checkpointing=False, gradient_clip_val=1.0, **options).fit(
        again, loader, ckpt_path=tmp_path / "net.ckpt", weights_only=True
    )
    straight = tiny_net(warmup_steps=4)
    pl.Trainer(max_epochs=3, enable_checkpointing=False, gradient_clip_val=1.0, **options).fit(straight, loader)
    for mine, other in zip(again.parameters(), straight.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


# Models of their own


def test_components_do_what_they_say():
    check_plugin("nasrec")


def test_a_model_with_histories_and_from_a_file(tmp_path: Path):
    space = tiny_space()
    section = space.model_config(space.sample(np.random.default_rng(0)))
    path = tmp_path / "found.yaml"
    path.write_text(__import__("yaml").safe_dump(section["init_args"]["architecture"]))
    schema = tiny_schema(histories=True)
    from recloom.plugins import catalog

    encoder = catalog().sequence_encoders.load("DIN")
    model = NASRecNet(schema.to_dict(), str(path), sequence_encoder=encoder)
    assert model.network.stem.tokens == len(schema.sparse) + 1
    assert model.logits(tiny_batch(schema)).shape == (16,)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dense_op": "fcc"}, "dense_op is 'fcc'"),
        ({"dense_from": [3]}, "dense_from is \\[3\\]"),
        ({"dense_from": 0}, "dense_from is 0"),
        ({"speed": 3}, "'speed' is no choice"),
        ({"fm": "yes"}, "fm is 'yes'"),
    ],
)
def test_errors_name_the_block(change, told):
    document = tiny_space().model_config(tiny_space().sample(np.random.default_rng(0)))["init_args"]["architecture"]
    document["block2"] = {**document["block2"], **change}
    with pytest.raises(DataError, match=f"block2: {told}"):
        load(document)


def test_unknown_architecture():
    with pytest.raises(RecloomError, match="criteo_smal"):
        load("criteo_smal")
    assert published() == sorted(README)


def test_benchmark_runs(capsys):
    small = ["--sizes", "small", "--steps", "1", "--batch", "8", "--rows", "5", "--candidates", "2"]
    assert bench([*small, "--one-by-one", "1", "--tune", "1", "--test", "1024"]) == 0
    assert "samples per CPU second" in capsys.readouterr().out


# Beside the reference implementation


@pytest.fixture
def checkout():
    if not CHECKOUT:
        pytest.skip("RECLOOM_NASREC_REFERENCE names no checkout of facebookresearch/NasRec")
    return Path(CHECKOUT)


def one_hot(dense, sparse, rows):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, rows, (sparse, 16), generator=generator)
    names = [f"c{i}" for i in range(sparse)]
    batch = Batch(torch.rand(16, dense, generator=generator), KeyedJaggedTensor(names, ids.flatten()), torch.zeros(16))
    return batch, ids.t()


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "plain"])
@pytest.mark.parametrize("size", ["small", "full"])
def test_mask_mode_is_the_reference(checkout, size, norm):
    torch.manual_seed(0)
    net = NASRecSupernet(NASRecSpace(size, 4), schema_of(3, 6).to_dict(), mode="mask", layer_norm=norm)
    theirs = reference.build(checkout, size, 3, [30] * 6, norm, 4)
    reference.copy_weights(net, theirs)
    batch, ids = one_hot(3, 6, 30)
    sampler = PathSampler(net.nasrec, "any-operator any-connection", 8, "block")
    for step in range(12):
        net.path = sampler(step, np.random.default_rng(step))
        theirs.configure_choice(reference.choices(size, net.path, checkout))
        with torch.no_grad():
            expected = theirs(batch.dense_features, ids).squeeze(1)
            torch.testing.assert_close(net.logits(batch), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(README))
def test_published_models_are_the_references(checkout, name):
    data, size = name.split("_")
    dense, sparse = max(1, FEATURES[data][0]), FEATURES[data][1]
    torch.manual_seed(0)
    model = NASRecNet(schema_of(dense, sparse).to_dict(), name)
    choice = reference.choices(size, load(name), checkout)
    theirs = reference.build(checkout, size, dense, [30] * sparse, False, choice=choice)
    reference.copy_model(model, theirs)
    batch, ids = one_hot(dense, sparse, 30)
    with torch.no_grad():
        expected = theirs(batch.dense_features, ids).squeeze(1)
        torch.testing.assert_close(model.logits(batch), expected, atol=1e-4, rtol=1e-4)
