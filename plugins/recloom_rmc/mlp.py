"""Linear layers with ReLU between, and after the last one too."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from recloom.errors import RecloomError
from recloom.linear import Linear


def mlp(inputs: int, widths: Sequence[int], name: str) -> nn.Sequential:
    """Return Linear and ReLU for each of `widths`; `name` is that of the option they come from."""
    if not widths or min(widths) < 1:
        raise RecloomError(f"{name} is {list(widths)}", "Give at least one width, each at least 1.")
    layers: list[nn.Module] = []
    for width in widths:
        layers += [Linear(inputs, width), nn.ReLU(inplace=True)]
        inputs = width
    return nn.Sequential(*layers)
