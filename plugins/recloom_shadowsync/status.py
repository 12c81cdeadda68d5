"""What ranks tell one another in each round, besides weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Status:
    """One rank's state, as it tells it to the others.

    Args:
        rank: Its rank.
        met: How many meetings (validations) it has arrived at, its weights exchanged since.
        done: 1 when it has no more batches and its last weights are exchanged.
        gives: 1 if its weights count in this round.
        steps: Optimizer steps that it has done.
        samples: Samples that it has trained on.
    """

    rank: int
    met: int = 0
    done: int = 0
    gives: int = 1
    steps: int = 0
    samples: int = 0

    def encode(self) -> Tensor:
        """Return it as integers."""
        return torch.tensor(astuple(self), dtype=torch.int64)


FIELDS = len(Status(0).encode())


@dataclass(frozen=True)
class Table:
    """All ranks' states, the same on every rank that took part in the round.

    Args:
        rows: The ranks that are there.
        lost: Number of ranks that were there once and are gone.
    """

    rows: Sequence[Status] = field(default_factory=tuple)
    lost: int = 0

    @classmethod
    def decode(cls, numbers: Tensor, lost: int = 0) -> Table:
        """Return the table behind the rows of `numbers`, ranks x FIELDS."""
        return cls(tuple(Status(*row) for row in numbers.tolist()), lost)

    @property
    def finished(self) -> bool:
        """Whether no rank trains any more."""
        return all(row.done for row in self.rows)

    def complete(self, meeting: int) -> bool:
        """Whether every rank has arrived at meeting number `meeting`, or will not come."""
        return all(row.done or row.met >= meeting for row in self.rows)

    def together(self, meeting: int) -> bool:
        """Whether every rank that the run began with is at meeting number `meeting`."""
        return not self.lost and all(row.met >= meeting for row in self.rows)

    @property
    def samples(self) -> int:
        """Samples that all ranks have trained on."""
        return sum(row.samples for row in self.rows)
