"""The linear layer against nn.Linear."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recloom import linear


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("shape", [(13, 64), (67, 64), (128, 70), (64, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_results_and_gradients_equal_torch(monkeypatch, onednn, shape, bias):
    if not onednn:
        monkeypatch.setattr(linear, "_onednn", lambda: None)
    torch.manual_seed(0)
    layer, theirs = linear.Linear(*shape, bias=bias), nn.Linear(*shape, bias=bias)
    theirs.load_state_dict(layer.state_dict())
    rows = linear.SMALLEST_BATCH + 1
    inputs = torch.randn(rows, shape[0]), torch.randn(rows, 2 * shape[0])[:, ::2]  # the second one has gaps
    for given in inputs:
        mine, other = given.clone().requires_grad_(), given.clone().requires_grad_()
        outputs = layer(mine), theirs(other)
        torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)
        goal = torch.randn(rows, shape[1])
        for output in outputs:
            (output * goal).sum().backward()
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-4)
    for p, q in zip(layer.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-3, rtol=1e-3)
        assert p.grad.is_contiguous()


def test_a_copy_for_inference_computes_the_same_and_shares_the_rest() -> None:
    torch.manual_seed(0)
    table, layers = (
        nn.Embedding(10, 6),
        nn.Sequential(linear.Linear(6, 5), nn.ReLU(), linear.Linear(5, 4), nn.Sigmoid()),
    )
    model = nn.Sequential(table, layers)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copied = linear.for_inference(model)
    ids = torch.arange(10)
    assert (layers(table(ids)) > 0.5).any()
    torch.testing.assert_close(copied(ids), model(ids))
    assert len(copied[1]) == 3  # the ReLU is a part of its layer
    assert copied[0].weight.data_ptr() == table.weight.data_ptr()
    assert copied[1][0].weight.t().is_contiguous()
    assert layers[0].weight.is_contiguous()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
