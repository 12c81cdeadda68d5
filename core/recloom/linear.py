"""A linear layer that trains faster on CPU: the same parameters and results as nn.Linear, better matrix products.

torch hands fp32 products to MKL, which on some processors, and for widths that are not whole cache lines (the 367 of
DLRM's over arch), falls well below the rate that oneDNN reaches. `benchmarks/README.md` has the measurements.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CACHE_LINE = 16  # floats
Module = TypeVar("Module", bound=nn.Module)
SMALLEST_BATCH, SMALLEST_WIDTH = 512, 64  # under these MKL's products, or the calls into Python, decide


class Linear(nn.Linear):
    """nn.Linear with other matrix products for large fp32 batches in training on CPU; else nn.Linear itself."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ... x in_features to ... x out_features."""
        return (linear if torch.is_grad_enabled() else F.linear)(input, self.weight, self.bias)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return input weight^T + bias as F.linear does; by other matrix products for large fp32 batches on CPU."""
    if (
        not torch.compiler.is_compiling()  # first: what follows would fix the batch size of an exported model
        and input.ndim == 2
        and input.device.type == "cpu"
        and input.dtype == weight.dtype == torch.float32
        and input.shape[0] >= SMALLEST_BATCH
        and not torch.is_autocast_enabled("cpu")
    ):
        if torch.is_grad_enabled():
            return _Linear.apply(input, weight, bias)  # type: ignore[no-untyped-call]
        return _product(input, weight, bias)
    return F.linear(input, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _product(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t(), None) if wants_input else None,
            _weight_gradient(gradient, input) if wants_weight else None,
            gradient.sum(0) if wants_bias else None,
        )


def for_inference(module: Module) -> Module:
    """Return a copy for inference, equal to rounding, that shares all but the linear layers' weights with the module.

    Those lie in memory as in x out, in the order in which products read them (a product of 256 x 2,112 with 128
    outputs is some 5% faster so), and a ReLU after a linear layer of an nn.Sequential is a part of that layer.
    """
    weights = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Linear)}
    shared = {id(p): p for p in [*module.parameters(), *module.buffers()] if id(p) not in weights}
    copied = copy.deepcopy(module, shared)  # type: ignore[arg-type]
    for layer in copied.modules():
        if isinstance(layer, nn.Linear):
            layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t(), requires_grad=False)
    for parent in [m for m in copied.modules() if isinstance(m, nn.Sequential)]:
        children = list(parent.named_children())
        for (name, layer), (after, relu) in itertools.pairwise(children):
            if type(layer) in (nn.Linear, Linear) and type(relu) is nn.ReLU:
                parent.register_module(name, _LinearReLU(cast(nn.Linear, layer)))
                delattr(parent, after)
    return copied


class _LinearReLU(nn.Linear):
    """A linear layer and the ReLU after it, for inference."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, input: Tensor) -> Tensor:
        """Map ... x in_features to ... x out_features."""
        return F.linear(input, self.weight, self.bias).relu_()


def _product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return input weight^T + bias; by oneDNN for large, dense operands (for others it may be very slow)."""
    multiply = _onednn()
    if multiply is None or min(weight.shape) < SMALLEST_WIDTH or not (_whole(input) and _whole(weight)):
        return F.linear(input, weight, bias)
    return multiply(input, weight, bias, "none", [], "")


def _whole(matrix: Tensor) -> bool:
    """Whether a matrix, or its transpose, lies in memory without gaps."""
    return matrix.is_contiguous() or matrix.t().is_contiguous()


def _weight_gradient(gradient: Tensor, input: Tensor) -> Tensor:
    """Return gradient^T input, out x in."""
    if input.shape[1] % CACHE_LINE and input.shape[0] > input.shape[1]:
        # rows of the result that straddle cache lines: its transpose is so much faster that copying it pays
        return (input.t() @ gradient).t().contiguous()
    return gradient.t() @ input


@functools.cache
def _onednn() -> Callable[..., Tensor] | None:
    """Return oneDNN's linear operation, where this torch has it and its result is right."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return None
    multiply: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise
    a, b, c = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3), torch.arange(4.0)
    try:
        right = torch.equal(multiply(a, b, c, "none", [], ""), F.linear(a, b, c))
    except (RuntimeError, TypeError):  # another signature, or a build without the operation behind it
        return None
    return multiply if right else None
