"""Encoders of histories against their papers' equations in plain loops; gap features; the cost table."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from recloom.errors import RecloomError
from recloom.gaps import DAY, WEEK, GapFeatures
from recloom.plugins import catalog
from recloom.sequence import AuxiliaryLoss, take_auxiliary_losses
from recloom.testing import run_cli
from recloom.testing.components import sequence_encoder_problems
from recloom_tsl.cost import LiveBytes, cost_table
from recloom_tsl.encoders.dien import next_step_loss
from recloom_tsl.encoders.recurrence import CHUNK, run, run_gru

W, L = 8, 6
CASES = {
    "mean": ("MeanPooling", {}),
    "mean-gap": ("MeanPooling", {"time": "gap"}),
    "din": ("DIN", {"hidden": (7, 5)}),
    "din-gap": ("DIN", {"hidden": (7, 5), "activation": "prelu", "time": "gap"}),
    "din-softmax": ("DIN", {"hidden": (7,), "activation": "sigmoid", "softmax": True}),
    "dien": ("DIEN", {}),
    "dien-agru": ("DIEN", {"cell": "agru", "time": "gap"}),
    "dien-aigru": ("DIEN", {"cell": "aigru"}),
    "gru": ("GRU", {"hidden": 5}),
    "gru-gap": ("GRU", {"num_layers": 2, "time": "gap"}),
    "bst": ("Transformer", {"num_heads": 4, "num_blocks": 2}),
    "bst-position": ("Transformer", {"time": "position", "output": "mean", "expansion": 2}),
    "sasrec": ("Transformer", {"style": "sasrec"}),
    "sasrec-gap": ("Transformer", {"style": "sasrec", "num_heads": 2, "num_blocks": 3, "time": "gap"}),
}
cases = pytest.mark.parametrize("case", CASES)


def make(case, width=W, length=L):
    torch.manual_seed(0)
    name, options = CASES[case]
    encoder = catalog().sequence_encoders.load(name)(width, length, **options)
    for parameter in encoder.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return encoder


def inputs(lengths=(6, 0, 1, 3), dtype=torch.float64):
    """Histories with something at the padded places too."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(L) >= L - torch.tensor(lengths)[:, None]
    steps = torch.randn(len(lengths), L, W, generator=generator).to(dtype).requires_grad_()
    query = torch.randn(len(lengths), W, generator=generator).to(dtype).requires_grad_()
    gaps = torch.rand(len(lengths), L, generator=generator).sort(dim=1, descending=True).values * 20 * DAY * mask
    return steps, query, mask, gaps


# The papers' equations, one history at a time. `history` is the list of its steps, oldest first; `past` their gaps.


def features(encoder, gap):
    return encoder.gap_features(gap.view(1, 1)).view(-1)


def naive_mean(encoder, history, past, query):
    if encoder.gap_features is None:
        return sum(history) / len(history)
    weights = [torch.log(1 + torch.exp(encoder.weigh(features(encoder, g)) + math.log(math.e - 1))) for g in past]
    return sum(w * h for w, h in zip(weights, history, strict=True)) / sum(weights)


def naive_din(encoder, history, past, query, statistics):
    scores = []
    for h, gap in zip(history, past, strict=True):
        x = torch.cat([h, query, h - query, h * query])
        if encoder.gap_features is not None:
            x = torch.cat([x, features(encoder, gap)])
        for layer, (linear, act) in enumerate(zip(encoder.layers, encoder.activations, strict=True)):
            x = linear(x)
            statistics.setdefault(layer, []).append(x)
            x = dice(act, x, *statistics["moments"][layer]) if hasattr(act, "alpha") else act(x[None])[0]
        scores.append(encoder.score(x))
    if encoder.softmax:
        exps = [torch.exp(s / math.sqrt(W)) for s in scores]
        scores = [e / sum(exps) for e in exps]
    return sum(s * h for s, h in zip(scores, history, strict=True))


def dice(act, s, mean, variance):
    p = 1 / (1 + torch.exp(-(s - mean) / torch.sqrt(variance + 1e-8)))
    return p * s + (1 - p) * act.alpha * s


def gru_cell(x, h, w, u, b, c):
    """torch's GRU cell, whose z is the paper's 1 - u."""
    xr, xz, xn = (w @ x + b).chunk(3)
    hr, hz, hn = (u @ h + c).chunk(3)
    r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
    return (1 - z) * torch.tanh(xn + r * hn) + z * h


def gru_states(module, xs):
    for layer in range(module.num_layers):
        weights = [getattr(module, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        h, states = xs[0].new_zeros(module.hidden_size), []
        for x in xs:
            h = gru_cell(x, h, *weights)
            states.append(h)
        xs = states
    return xs


def with_gaps(encoder, history, past):
    if encoder.gap_features is None:
        return history
    return [torch.cat([h, features(encoder, g)]) for h, g in zip(history, past, strict=True)]


def naive_gru(encoder, history, past, query):
    return gru_states(encoder.gru, with_gaps(encoder, history, past))[-1]


def naive_dien(encoder, history, past, query):
    interests = gru_states(encoder.extractor, with_gaps(encoder, history, past))
    exps = [torch.exp(h @ encoder.attention.weight @ query) for h in interests]
    shares = [e / sum(exps) for e in exps]
    evolution = encoder.evolution
    if isinstance(evolution, nn.GRU):
        return gru_states(evolution, [a * h for a, h in zip(shares, interests, strict=True)])[-1]
    state = torch.zeros_like(query)
    gates = len(evolution.bias) // W
    for i, a in zip(interests, shares, strict=True):
        x = (evolution.weight_input @ i + evolution.bias).chunk(gates)
        s = (evolution.weight_state @ state).chunk(gates)
        u = a * torch.sigmoid(x[0] + s[0]) if gates == 3 else a
        r = torch.sigmoid(x[-2] + s[-2])
        state = (1 - u) * state + u * torch.tanh(x[-1] + r * s[-1])
    return state


def attention(block, xs, causal):
    """Multi-head attention of the vectors `xs`, place by place."""
    wq, wk, wv = block.projections.weight.chunk(3)
    d = W // block.num_heads
    found = []
    for i, x in enumerate(xs):
        seen = xs[: i + 1] if causal else xs
        heads = []
        for part in (slice(h * d, h * d + d) for h in range(block.num_heads)):
            exps = [torch.exp((wq @ x)[part] @ (wk @ y)[part] / math.sqrt(d)) for y in seen]
            heads.append(sum(e * (wv @ y)[part] for e, y in zip(exps, seen, strict=True)) / sum(exps))
        found.append(torch.cat(heads))
    return found


def naive_bst(encoder, history, past, query):
    xs = [*history, query]
    if encoder.time == "gap":
        places = [features(encoder, g) for g in [*past, torch.zeros(())]]
    else:
        places = [encoder.positions[len(xs) - 1 - i] for i in range(len(xs))]
    xs = [encoder.merge.weight @ torch.cat([x, p]) for x, p in zip(xs, places, strict=True)]
    for block in encoder.blocks:
        attended = attention(block.attention, xs, causal=False)
        xs = [block.norms[0](x + block.project.weight @ a) for x, a in zip(xs, attended, strict=True)]
        xs = [block.norms[1](x + block.feed_forward(x)) for x in xs]
    if encoder.output == "mean":
        mean = sum(xs[:-1]) / len(history) if history else torch.zeros_like(query)
        return torch.cat([xs[-1], mean])
    return torch.cat([query.new_zeros((L + 1 - len(xs)) * W), *xs])


def naive_sasrec(encoder, history, past, query):
    if encoder.time == "gap":
        xs = [h + encoder.merge.weight @ features(encoder, g) for h, g in zip(history, past, strict=True)]
    else:
        xs = [h + encoder.positions[len(history) - i] for i, h in enumerate(history)]
    for block in encoder.blocks:
        attended = attention(block.attention, [block.norms[0](x) for x in xs], causal=True)
        xs = [x + a for x, a in zip(xs, attended, strict=True)]
        xs = [x + block.feed_forward(block.norms[1](x)) for x in xs]
    return encoder.norm(xs[-1])


def naive(encoder, steps, query, mask, gaps):
    kind = type(encoder).__name__
    name = encoder.style if kind == "Transformer" else kind
    function = {"MeanPooling": naive_mean, "DIEN": naive_dien, "GRU": naive_gru}.get(name)
    function = function or {"bst": naive_bst, "sasrec": naive_sasrec}.get(name)
    rows = [([*steps[i][mask[i]]], [*gaps[i][mask[i]]], query[i]) for i in range(len(steps))]
    if kind == "DIN":
        found = {"moments": [(torch.zeros(()), torch.ones(()))] * 2}
        for layer in range(len(encoder.layers)):  # a layer's statistics need those of the layers before
            for history, past, q in rows:
                if history:
                    naive_din(encoder, history, past, q, found)
            values = torch.stack(found[layer])
            found["moments"][layer] = (values.mean(0), values.var(0, unbiased=False))
            for known in range(len(encoder.layers)):
                found.pop(known, None)

        def function(encoder, history, past, query):
            return naive_din(encoder, history, past, query, found)

    empty = query.new_zeros(encoder.output_dim)
    return torch.stack([function(encoder, *row) if row[0] or name == "bst" else empty for row in rows])


@cases
def test_equations_forward_and_gradients(case):
    encoder = make(case).double()
    if case.startswith(("bst", "sasrec")):
        encoder.eval()  # dropout is random; everything else is as in training
    data = inputs()
    found, expected = encoder(*data), naive(encoder, *data)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-7)
    weights = torch.randn_like(expected)
    wanted = [*data[:2], *encoder.parameters()]
    ours = torch.autograd.grad((found * weights).sum(), wanted, allow_unused=True)
    theirs = torch.autograd.grad((expected * weights).sum(), wanted, allow_unused=True)
    for ours_, theirs_ in zip(ours, theirs, strict=True):
        assert (ours_ is None) == (theirs_ is None)
        if ours_ is not None:
            torch.testing.assert_close(ours_, theirs_, atol=1e-6, rtol=1e-6)


@cases
def test_contract(case):
    name, options = CASES[case]
    torch.manual_seed(3)
    assert list(sequence_encoder_problems(catalog().sequence_encoders.load(name), options)) == []


@cases
def test_bf16_autocast_trains(case):
    encoder = make(case).eval()
    data = inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = encoder(*data)
    exact = encoder(*data)
    assert float(((out.float() - exact).norm() / exact.norm()).detach()) < 0.05
    out.float().square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in encoder.parameters() if p.grad is not None)
    assert data[0].grad.isfinite().all()


def test_dice_statistics_are_those_of_real_steps():
    encoder = make("din")
    steps, query, mask, gaps = inputs(dtype=torch.float32)
    encoder(steps, query, mask, gaps)
    seen = encoder.activations[0]
    loud = torch.where(mask[..., None], steps, torch.tensor(1e4))
    other = make("din")
    other(loud, query, mask, gaps)
    torch.testing.assert_close(seen.mean, other.activations[0].mean)
    assert not torch.equal(seen.mean, torch.zeros_like(seen.mean))
    before = seen.mean.clone()
    for lengths in ((0, 0), (1, 0)):  # a batch of one step has no variance, one of none no mean
        out = encoder(*inputs(lengths, torch.float32))
        assert out.isfinite().all()
    assert torch.equal(seen.mean, before)


def test_auxiliary_loss_is_equation_6():
    """Sample 0 repeats one step and sample 1 another: whatever negative is drawn for one is the other's step."""
    torch.manual_seed(0)
    a, b = torch.randn(2, W)
    lengths = torch.tensor([3, 4, 0])
    places = torch.arange(5) < lengths[:, None]
    steps = torch.stack([a, b, a])[:, None].expand(-1, 5, -1).clone().requires_grad_()
    states = torch.randn(3, 5, W, requires_grad=True)
    found = next_step_loss(states, steps, places)
    terms = []
    for i, (own, other) in enumerate(((a, b), (b, a))):
        for t in range(int(lengths[i]) - 1):
            terms.append(
                -torch.log(torch.sigmoid(states[i, t] @ own)) - torch.log(1 - torch.sigmoid(states[i, t] @ other))
            )
    torch.testing.assert_close(found, sum(terms) / len(terms))
    found.backward()
    assert bool((states.grad.abs().sum(-1) > 0)[:, :-1].equal(places[:, 1:]))  # the last state has no next step
    assert not steps.grad[~places].any()
    assert next_step_loss(states[:1], steps[:1], places[:1]) == 0  # no other sample


def test_auxiliary_loss_while_training_only_and_seeded():
    encoder = make("dien")
    losses = []
    for _ in range(2):
        torch.manual_seed(5)
        encoder(*inputs(dtype=torch.float32))
        losses.extend(take_auxiliary_losses([m for m in encoder.modules() if isinstance(m, AuxiliaryLoss)]))
    assert len(losses) == 2
    assert losses[0] == losses[1] > 0
    encoder.eval()(*inputs(dtype=torch.float32))
    assert encoder.auxiliary_loss is None


def test_recurrence_equals_torchs_gru_and_its_gradients_are_exact():
    torch.manual_seed(0)
    module = nn.GRU(3, 5, 2, batch_first=True).double()
    x = torch.randn(2, CHUNK + 3, 3, dtype=torch.float64, requires_grad=True)
    ours, theirs = run_gru(module, x), module(x)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    wanted = [x, *module.parameters()]
    weights = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), wanted),
        torch.autograd.grad((theirs * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-9)
    for gates in (2, 3):  # AGRU, AUGRU
        arguments = [torch.randn(*s, dtype=torch.float64) for s in ((4, 2, 3 * gates), (3 * gates, 3), (3,))]
        arguments.append(torch.rand(4, 2, dtype=torch.float64))
        assert torch.autograd.gradcheck(run, [argument.requires_grad_() for argument in arguments])


def test_gap_features():
    features = GapFeatures()
    assert {DAY, WEEK} <= {round(p) for p in features.periods.tolist()}
    assert features.periods.min() == 3600
    gaps = torch.tensor([[0.0, 2 * WEEK, -5.0]])
    found = features(gaps)
    assert found.shape == (1, 3, features.output_dim)
    zero = torch.cat([torch.zeros(17), torch.ones(16)])
    torch.testing.assert_close(found[0, 0], zero)
    torch.testing.assert_close(found[0, 2], zero)  # a clock that is ahead
    assert float(found[0, 1, 0]) == pytest.approx(math.log1p(2 * WEEK) / math.log1p(30 * DAY))
    phase = 2 * math.pi * 2 * WEEK / features.periods.detach().double()
    torch.testing.assert_close(found[0, 1, 1:17].double(), torch.sin(phase), atol=1e-3, rtol=0)
    torch.testing.assert_close(found[0, 1, 17:].double(), torch.cos(phase), atol=1e-3, rtol=0)
    features.shift.data.fill_(-50.0)
    assert bool((features.periods > 0).all())
    assert torch.allclose(GapFeatures().bfloat16()(gaps).float(), found, atol=0.01)  # periods stay exact
    with pytest.raises(RecloomError, match="no times"):
        features(None)
    with pytest.raises(RecloomError, match="periods"):
        GapFeatures(shortest=100.0, longest=50.0)


def test_gap_features_learn_a_period():
    """A period 5% off is found from gaps of up to 10 days."""
    torch.manual_seed(0)
    features = GapFeatures(1, shortest=1.05 * DAY, longest=6.0 * DAY)
    read = nn.Linear(features.output_dim, 1)
    optimizer = torch.optim.Adam([*features.parameters(), *read.parameters()], lr=0.02)
    for _ in range(400):
        gaps = torch.rand(1, 512) * 10 * DAY
        loss = (read(features(gaps)).squeeze(-1) - torch.cos(2 * math.pi * gaps / DAY)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(features.periods[0]) == pytest.approx(DAY, rel=0.003)
    assert float(loss.detach()) < 0.02


def test_heads_that_do_not_divide_are_refused():
    kind = catalog().sequence_encoders.load("Transformer")
    with pytest.raises(RecloomError, match="3 heads"):
        kind(W, L, num_heads=3)
    assert [kind(width, L).num_heads for width in (8, 32, 48, 64)] == [1, 4, 6, 8]


def test_cost_table():
    encoders = {"mean": ("MeanPooling", {}), "gru": ("GRU", {}), "sasrec": ("Transformer", {"style": "sasrec"})}
    rows = {(row.encoder, row.length): row for row in cost_table(encoders, (16, 32), batch_size=4, width=8, rounds=3)}
    assert set(rows) == {(name, length) for name in encoders for length in (16, 32)}
    assert rows["gru", 32].flops == pytest.approx(2 * rows["gru", 16].flops, rel=0.1)
    assert rows["sasrec", 32].flops > 2.2 * rows["sasrec", 16].flops  # attention grows with the square
    assert all(row.microseconds > 0 and row.peak_bytes > 0 for row in rows.values())
    with LiveBytes() as memory:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b * 2
        view = c[3:]
        del b, c
    assert (memory.live, memory.peak) == (4000, 8000)
    del view
    assert memory.live == 0


def test_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = [f"--data.{k}={v}" for k, v in {"num_train": 64, "num_workers": 0, "batch_size": 32}.items()]
    argv = ["fit", "--model=DLRM", "--data=SyntheticBehaviour", *data, "--trainer.fast_dev_run=true"]
    done = run_cli([*argv, "--model.sequence_encoder=DIEN", "--model.sequence_encoder.time=gap"])
    assert done.code == 0, done.err
