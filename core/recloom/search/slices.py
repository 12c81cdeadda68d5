"""Slices of large weights as leaves of autograd: a supernet's step costs what the path's slices cost.

Autograd's gradient of `weight[:16, :64]` is a tensor as large as the weight, zero nearly everywhere, which is then
clipped, and applied by the optimizer. A leaf that shares the slice's memory has a gradient of the slice's size, and
for optimizers that leave a weight alone where its gradient is zero (SGD, Adagrad) updating the slice alone is the same
to the bit. `SlicedOptimizer` marks its parameters; from then on `part` of a marked parameter gives such leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recloom.optim import CompositeOptimizer, OptimizerConfig, clip_dense_norm, lr_policy
from recloom.rowgrad import row_parameters

Index = tuple[slice, ...]
_MARK = "recloom_slices"
_RULES = ("SGD", "Adagrad")
_HARMLESS = {"eps", "initial_accumulator_value", "fused", "foreach", "maximize"}


def part(parameter: Tensor, *index: slice) -> Tensor:
    """Return parameter[index]; the parameter itself if that is all of it, a leaf of its own if it is marked.

    Args:
        parameter: A weight.
        index: A slice for each of its first dimensions, with bounds (`slice(0, 16)`) and without steps.
    """
    if all(i.start == 0 and i.stop == size for i, size in zip(index, parameter.shape, strict=False)):
        return parameter
    taken: list[tuple[Index, Tensor]] | None = getattr(parameter, _MARK, None)
    if taken is None or not (parameter.requires_grad and torch.is_grad_enabled()):
        return parameter[index]
    leaf = parameter.detach()[index].requires_grad_()
    taken.append((index, leaf))
    return leaf


def can_slice(config: OptimizerConfig) -> bool:
    """Return whether dense updates leave a weight, and the optimizer's state, alone where the gradient is zero."""
    return config.dense in _RULES and not {k for k, v in config.dense_options.items() if v} - _HARMLESS


class SlicedOptimizer(CompositeOptimizer):
    """A CompositeOptimizer that updates only the slices that were used.

    Parameters that were used whole are updated by the optimizer of torch as always. Gradients of slices count for
    `clip_norm`, and are averaged over ranks. Where several slices of a weight were used between two steps (gradients
    accumulated over batches), their gradients are added up first.

    Args:
        dense: Dense parameters; they are marked until `release`.
        rows: Parameters with row gradients.
        config: Optimizers and learning rates, of a kind that `can_slice`.
    """

    def __init__(self, dense: Iterable[nn.Parameter], rows: Iterable[nn.Parameter], config: OptimizerConfig) -> None:
        dense = list(dense)
        super().__init__(dense, rows, config)
        self._adagrad = config.dense == "Adagrad"
        self._initial = float(config.dense_options.get("initial_accumulator_value", 0.0))
        self._sign = -1.0 if config.dense_options.get("maximize") else 1.0
        for parameter in dense:
            setattr(parameter, _MARK, [])

    def release(self) -> None:
        """Unmark the parameters: slices are ordinary views again."""
        for parameter, _, _ in self._dense():
            if hasattr(parameter, _MARK):
                delattr(parameter, _MARK)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients, and forget the slices."""
        super().zero_grad(set_to_none)
        for _, taken, _ in self._dense():
            taken.clear()

    def gradients(self) -> list[Tensor]:
        """Return all dense tensors that have a gradient: parameters and slices."""
        found: list[Tensor] = []
        for parameter, taken, _ in self._dense():
            found += [leaf for _, leaf in taken if leaf.grad is not None]
            if parameter.grad is not None:
                found.append(parameter)
        return found

    def merge(self) -> None:
        """Add up the gradients of weights that have several, in one of the weight's size."""
        for parameter, taken, _ in self._dense():
            used = [(index, leaf) for index, leaf in taken if leaf.grad is not None]
            if len(used) + (parameter.grad is not None) > 1 and _overlap(parameter, used):
                whole = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                for index, leaf in used:
                    assert leaf.grad is not None
                    whole[index] += leaf.grad
                parameter.grad = whole
                taken.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update what was used."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.merge()
        self._average()
        clip, self.clip_norm = self.clip_norm, None
        if clip is not None:
            clip_dense_norm(self.gradients(), clip)
        super().step()
        self.clip_norm = clip
        for parameter, taken, group in self._dense():
            for index, leaf in taken:
                if leaf.grad is not None:
                    self._update(parameter, index, leaf.detach(), self._sign * leaf.grad, group)
        return loss

    def _update(self, parameter: Tensor, index: Index, leaf: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if self._adagrad:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state["sum"] = torch.full_like(parameter, self._initial)
            total = state["sum"][index]
            total.addcmul_(gradient, gradient)
            leaf.addcdiv_(gradient, total.sqrt().add_(group["eps"]), value=-float(group["lr"]))
        else:
            leaf.add_(gradient, alpha=-float(group["lr"]))

    def _average(self) -> None:
        """Average the gradients of slices over the ranks, which all take the same path."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            for tensor in self.gradients():
                assert tensor.grad is not None
                dist.all_reduce(tensor.grad)
                tensor.grad /= dist.get_world_size()

    def _dense(self) -> Iterator[tuple[nn.Parameter, list[tuple[Index, Tensor]], dict[str, Any]]]:
        for group in self.param_groups:
            if "rows" not in group:
                for parameter in group["params"]:
                    yield parameter, getattr(parameter, _MARK, []), group


def _overlap(parameter: nn.Parameter, used: list[tuple[Index, Tensor]]) -> bool:
    """Return whether a value has more than one gradient."""
    if parameter.grad is not None:
        return True
    for place, (first, _) in enumerate(used):
        for second, _ in used[:place]:
            if all(max(a.start, b.start) < min(a.stop, b.stop) for a, b in zip(first, second, strict=True)):
                return True
    return False


def build_sliced_optimizer(
    module: nn.Module, config: OptimizerConfig
) -> tuple[CompositeOptimizer, list[Callable[[int], float]] | None]:
    """Return the optimizer of a supernet and its learning-rate policy, as `recloom.optim.build_optimizer` does.

    It updates slices alone where its kind allows that, and whole parameters otherwise.
    """
    rows = [parameter for _, parameter in row_parameters(module) if parameter.requires_grad]
    chosen = set(rows)
    dense = [parameter for parameter in module.parameters() if parameter.requires_grad and parameter not in chosen]
    kind = SlicedOptimizer if can_slice(config) else CompositeOptimizer
    optimizer = kind(dense, rows, config)
    if not config.warmup_steps and not config.decay_steps:
        return optimizer, None
    return optimizer, [lr_policy(config, group["lr"]) for group in optimizer.param_groups]
