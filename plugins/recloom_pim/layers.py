"""Linear layers on crossbars: any module's, with their parameters and names as they were."""

from __future__ import annotations

import functools
import re
import zlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom.linear import Linear
from recloom.search.operators import Pieces, SlicedLinear
from recloom.search.slices import part
from recloom_pim.crossbars import Crossbars
from recloom_pim.quantise import Device, Precision, crossbar_linear

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)(?:\.|$)")


class Board:
    """The crossbars that the layers of a module share; what it holds can change between two forward passes.

    Args:
        crossbars: Their configuration; None: layers compute in full precision.
        device: Imperfections; None: operands are quantised, and nothing else.
        prefix: What names of layers are told without, if they begin with it.
    """

    def __init__(self, crossbars: Crossbars | None, device: Device | None, prefix: str = "") -> None:
        self.crossbars = crossbars
        self.device = device
        self.prefix = prefix
        self.layers: list[str] = []
        self.exact_training = False  # whether training steps compute in full precision for now

    def linear(self, layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None, name: str = "") -> Tensor:
        """Return the layer's output; in training each call draws a chip, in evaluation rows are divided over chips.

        `name` is the weight's, for a layer that has several.
        """
        if self.crossbars is None or (layer.training and self.exact_training):
            return F.linear(x, weight, bias)
        p, device = Precision.of(self.crossbars, layer.pim_group), self.device
        if layer.training or device is None:
            return crossbar_linear(x, weight, bias, p, device)
        found = []
        own = (device.seed, layer.pim_place, *([zlib.crc32(name.encode())] if name else []))
        for chip, rows in enumerate(x.tensor_split(device.draws)):
            generator = torch.Generator(x.device).manual_seed(hash((*own, chip)) % 2**63)
            found.append(crossbar_linear(rows, weight, bias, p, device, generator))
        return torch.cat(found)

    def rows(self) -> list[tuple[str, str]]:
        """Return what reports say about it."""
        h = self.crossbars
        if h is None:
            return []
        words = f"{h.rows} x {h.columns}, {h.cell_bits}-bit cells, {h.dac_bits}-bit DACs, {h.adc_bits}-bit ADCs"
        return [("crossbars", words), ("layers on crossbars", str(len(self.layers)))]


class CrossbarLinear(nn.Linear):
    """A linear layer of a board; layers become one by `place`."""

    pim_board: Board
    pim_group: str
    pim_place: int

    def forward(self, input: Tensor) -> Tensor:
        """Map ... x in_features to ... x out_features."""
        return self.pim_board.linear(self, input, self.weight, self.bias)


class CrossbarSlicedLinear(CrossbarLinear, SlicedLinear):
    """A linear layer on any pieces of its input, of a board."""

    def pieces(self, inputs: Pieces, rows: slice) -> Tensor:
        """Return ... x rows of all pieces together: they share crossbars."""
        values = [piece.values for piece in inputs]
        weights = [part(self.weight, rows, piece.columns) for piece in inputs]
        bias = None if self.bias is None else part(self.bias, rows)
        x = values[0] if len(values) == 1 else torch.cat(values, -1)
        return self.pim_board.linear(self, x, weights[0] if len(weights) == 1 else torch.cat(weights, -1), bias)


_BECOME: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: CrossbarLinear,
    Linear: CrossbarLinear,
    SlicedLinear: CrossbarSlicedLinear,
}


def group_of(name: str) -> str:
    """Return a layer's group by its name: "block3" of "network.blocks.2. ...", "head" of a last layer; or its start."""
    if name.rpartition(".")[2] == "head":
        return "head"
    found = _BLOCK.search(name)
    return f"block{int(found[1]) + 1}" if found else name.split(".")[0]


def place(module: nn.Module, board: Board) -> None:
    """Let the linear layers of a module compute on a board; those that do already are left alone.

    nn.Linear, recloom's Linear and SlicedLinear themselves change their class, as torch's parametrisations do:
    parameters, their names and checkpoints stay the same. So do modules with weights of their own that have a method
    `product` (operators of search spaces, blocks); the attribute `group` of one says its group, if it has it. Other
    weights, and products of two computed operands, stay in full precision.

    Args:
        module: Any module.
        board: The board.
    """
    for name, layer in module.named_modules():
        kind = _BECOME.get(type(layer))
        if kind is not None:
            layer.__class__ = kind
        elif _has_products(layer):
            layer.product = functools.partial(board.linear, layer)  # type: ignore[assignment]
        else:
            continue
        name = name.removeprefix(board.prefix)
        group = str(getattr(layer, "group", "")) or group_of(name)
        layer.pim_board, layer.pim_group, layer.pim_place = board, group, len(board.layers)  # type: ignore[assignment]
        board.layers.append(name)


def _has_products(layer: nn.Module) -> bool:
    """Return whether a module computes products by a method `product` that was not replaced yet."""
    matrices = any(parameter.ndim > 1 for parameter in layer.parameters(recurse=False))
    return matrices and hasattr(type(layer), "product") and "product" not in vars(layer)
