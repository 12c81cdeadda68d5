"""The dot interaction's kernel against plain torch operations, in fp32 and under bfloat16 autocast."""

from __future__ import annotations

import pytest
import torch

from recloom_dlrm import dots
from recloom_dlrm.interactions import DotInteraction


@pytest.fixture(params=["native", "torch"])
def path(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(dots, "_library", lambda: None)
    elif dots._library() is None:
        pytest.skip("no C compiler")


@pytest.mark.parametrize("shape", [(27, 16), (2, 8), (9, 32), (5, 24), (40, 64), (3, 5), (1, 8), (33, 16)])
@pytest.mark.parametrize("itself", [False, True])
def test_products_and_gradients_equal_torch(path, shape, itself):
    torch.manual_seed(0)
    interaction = DotInteraction(*shape, itself=itself)
    vectors = torch.randn(7, *shape)
    mine, other = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    output, expected = interaction(mine), dots.plain_dots(other, itself)
    assert output.shape == (7, interaction.output_dim)
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-5)
    goal = torch.randn_like(output)
    output.backward(goal)
    expected.backward(goal)
    torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-5)

    mine.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        output = interaction(mine)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, atol=0.1, rtol=0.02)
    output.backward(goal.bfloat16())
    torch.testing.assert_close(mine.grad, other.grad, atol=0.3, rtol=0.05)


def test_strided_vectors_are_read_in_place():
    """Vectors that are a slice of something larger, or transposed."""
    wide, turned = torch.randn(4, 9, 16)[:, 2:7], torch.randn(5, 16, 4).permute(2, 0, 1)
    interaction = DotInteraction(5, 16)
    for vectors in (wide, turned):
        torch.testing.assert_close(interaction(vectors), dots.plain_dots(vectors, False), atol=1e-5, rtol=1e-5)


def test_the_same_bits_for_any_number_of_threads():
    vectors, results = torch.randn(50, 27, 16, requires_grad=True), []
    previous = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            vectors.grad = None
            DotInteraction(27, 16)(vectors).sin().sum().backward()
            results.append(vectors.grad.clone())
        finally:
            torch.set_num_threads(previous)
    assert torch.equal(*results)
