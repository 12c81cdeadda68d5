"""A model's synchronised weights as one vector: parameters become views of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recloom.errors import RecloomError
from recloom.rowgrad import is_row_parameter

ALIGN = 16
"""Parameters begin at multiples of so many elements, as in memory of their own: kernels round alike then."""


@dataclass(frozen=True)
class RowSegment:
    """An embedding weight's place in the vector.

    Args:
        start: Its first element.
        rows: Number of rows, R.
        width: Width of a row, D.
    """

    start: int
    rows: int
    width: int

    @property
    def stop(self) -> int:
        """The element after its last."""
        return self.start + self.rows * self.width


class FlatView:
    """Parameters as views of one vector: those that take dense gradients first, then embedding weights.

    Only `.data` is swapped: parameters stay the objects that optimizers and modules hold, and an operation on the
    vector is not seen by autograd, so that another thread may write to it between a forward and its backward.

    Args:
        named: The parameters to synchronise, by name; of one type, on one device.
        allocate: Makes the vector's memory, zeros, given its length and a tensor of the right type and device.
    """

    def __init__(
        self,
        named: dict[str, nn.Parameter],
        allocate: Callable[[int, Tensor], Tensor] = lambda length, like: torch.zeros(
            length, dtype=like.dtype, device=like.device
        ),
    ) -> None:
        kinds = {(p.dtype, p.device): name for name, p in named.items()}
        if len(kinds) > 1:
            (first, other) = list(kinds.items())[:2]
            raise RecloomError(
                f"{first[1]} is {first[0][0]} on {first[0][1]}, and {other[1]} is {other[0][0]} on {other[0][1]}",
                "Weights that are synchronised have one type and one device: leave some out with `exclude`.",
            )
        if not named:
            raise RecloomError("no parameter is left to synchronise", "Check `exclude`.")
        self.names = sorted(named, key=lambda name: is_row_parameter(named[name]))  # stable: dense ones first
        self.parameters = [named[name] for name in self.names]
        self.offsets: list[int] = []
        self.segments: list[RowSegment] = []
        length = 0
        for parameter in self.parameters:
            self.offsets.append(length)
            if is_row_parameter(parameter):
                self.segments.append(RowSegment(length, parameter.shape[0], parameter.shape[1]))
            length += -(-parameter.numel() // ALIGN) * ALIGN
        self.flat = allocate(length, self.parameters[0].detach())
        with torch.no_grad():
            for part, parameter in zip(self.split(self.flat), self.parameters, strict=True):
                part.copy_(parameter.detach())
                parameter.data = part

    def split(self, vector: Tensor) -> list[Tensor]:
        """Return the parts of `vector`, of the vector's length, as views in the parameters' shapes."""
        return [
            vector[start : start + parameter.numel()].view(parameter.shape)
            for start, parameter in zip(self.offsets, self.parameters, strict=True)
        ]

    def check(self) -> None:
        """Raise RecloomError if something has given a parameter other memory since: it would no longer be synced."""
        base, size = self.flat.data_ptr(), self.flat.element_size()
        for name, start, parameter in zip(self.names, self.offsets, self.parameters, strict=True):
            if parameter.data_ptr() != base + start * size:
                raise RecloomError(
                    f"{name} was moved to other memory during training",
                    "Move, cast and replace parameters before the fit starts.",
                )


def touched(snapshot: Tensor, reference: Tensor, segments: Sequence[RowSegment]) -> Tensor:
    """Return for each row of the segments, one after the other, 1.0 if it differs from `reference`, else 0.0."""
    found = [(snapshot[s.start : s.stop] != reference[s.start : s.stop]).view(s.rows, s.width).any(1) for s in segments]
    return torch.cat(found).to(snapshot.dtype)


def mean_of_touching(
    mean: Tensor, reference: Tensor, shares: Tensor, replicas: int, segments: Sequence[RowSegment]
) -> Tensor:
    """Return `mean` with each row the mean over the replicas that changed it, in place.

    A row of a table is changed by few replicas between two rounds. The mean over all would undo most of what those
    learnt; here the others, which have nothing to say, do not count.

    Args:
        mean: Mean over replicas, P.
        reference: What all replicas last agreed on, P.
        shares: For each row of the segments the share of replicas that changed it.
        replicas: Number of replicas.
        segments: Where rows are.
    """
    place = 0
    for s in segments:
        share = shares[place : place + s.rows].mul(replicas).round_()[:, None]  # R x 1, how many changed it
        rows, old = mean[s.start : s.stop].view(s.rows, s.width), reference[s.start : s.stop].view(s.rows, s.width)
        moved = (rows - old).mul_(replicas).div_(share.clamp(min=1.0))
        rows.copy_(torch.where(share > 0, old + moved, old))
        place += s.rows
    return mean
