"""Where the time of a forward pass goes: FC, embedding gather, interaction, concatenation, the rest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from recloom.embedding import EmbeddingBagCollection
from recloom.model import Interaction

KINDS = ("FC", "gather", "interaction", "concatenation", "other")
_MARK = "rmc:"


def breakdown(model: nn.Module, inputs: Sequence[tuple[Tensor, ...]]) -> dict[str, float]:
    """Return the share of torch.profiler's CPU time by kind, of forward passes over `inputs`.

    Linear layers and ReLUs are FC; lookups are gather, whichever kernel makes them; what `Interaction`s do is
    interaction; aten::cat is concatenation. The profiler's own work on an operator counts as other, which shows at
    batch 1.
    """
    with torch.inference_mode(), _marked(model):
        _profile(model, inputs[:1])  # the first run prepares the profiler
        times = _profile(model, inputs)
    whole = times[_MARK + "forward"]
    shares = {
        "FC": times.get("aten::linear", 0.0) + times.get("aten::relu_", 0.0) + times.get("aten::relu", 0.0),
        "gather": times.get(_MARK + "gather", 0.0),
        "interaction": times.get(_MARK + "interaction", 0.0),
        "concatenation": times.get("aten::cat", 0.0),
    }
    shares["other"] = max(0.0, whole - sum(shares.values()))
    return {kind: shares[kind] / whole for kind in KINDS}


def _profile(model: nn.Module, inputs: Sequence[tuple[Tensor, ...]]) -> dict[str, float]:
    """Return microseconds a pass by operator or marked range: of each call in a pass the least over passes.

    The profiler knows wall time only; where others use the CPU too, a mean would count their turns.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its lines on stderr say when it starts and stops
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for item in inputs:
            with record_function(_MARK + "forward"):
                model(*item)
    times: dict[str, list[float]] = {}
    for event in sorted(found.events(), key=lambda event: event.time_range.start):
        times.setdefault(event.name, []).append(float(event.cpu_time_total))
    regular = {name: spent for name, spent in times.items() if len(spent) % len(inputs) == 0}
    return {name: float(np.reshape(spent, (len(inputs), -1)).min(axis=0).sum()) for name, spent in regular.items()}


@contextmanager
def _marked(model: nn.Module) -> Iterator[None]:
    """Give the model's parts a named range in the profile, while it lasts."""
    hooks = []
    for module in model.modules():
        kind = _kind(module)
        if kind is None:
            continue
        ranges: list[record_function] = []

        def enter(module: nn.Module, inputs: object, kind: str = kind, ranges: list[record_function] = ranges) -> None:
            ranges.append(record_function(_MARK + kind))
            ranges[-1].__enter__()

        def leave(module: nn.Module, inputs: object, output: object, ranges: list[record_function] = ranges) -> None:
            ranges.pop().__exit__(None, None, None)

        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, EmbeddingBagCollection):
        return "gather"
    return "interaction" if isinstance(module, Interaction) else None


def parts(model: nn.Module) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the model's MLPs alone: its bottom MLP on B x dense and its top MLP on B x width."""

    def run(dense: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            return model.dense_arch(dense), model.over_arch(vectors)  # type: ignore[operator]

    return run
