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
