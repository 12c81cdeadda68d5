"""The contract of algorithms that bring replicas of a model together; when and over what is a strategy's business.

A replica is one flat vector of P weights. A round takes a copy of every replica, the strategy exchanges them, the
algorithm says what each is to move towards, and the strategy writes that into the replica, which may have been trained
on in the meantime.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor

from recloom.errors import RecloomError


class SyncAlgorithm(ABC):
    """What replicas move towards, from what was exchanged.

    With `exchange` "mean" every replica receives the mean of all, in one round that all take part in; with "server"
    each sends its weights to a server that holds a centre, at its own pace, and receives what `merge` returns.
    """

    exchange: ClassVar[Literal["mean", "server"]] = "mean"
    """How replicas are exchanged."""

    def start(self, weights: Tensor) -> None:  # noqa: B027 (nothing to note is usual)
        """Take note of the weights, P, that all replicas begin with."""

    @abstractmethod
    def target(self, received: Tensor) -> Tensor:
        """Return what the replica moves towards, P, given what it received, P. The two may be one tensor."""

    def merge(self, center: Tensor, pushed: Tensor) -> Tensor:
        """Move the server's `center`, P, in place for a replica's `pushed` weights; return what to answer, P.

        Called on the server, for its part of the vector, only where `exchange` is "server".
        """
        raise RecloomError(
            f"{type(self).__name__} has no rule for a server", 'Define `merge`, or leave `exchange` at "mean".'
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps: tensors of the replica's size, or smaller."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Take back what `state_dict` returned; called after `start`."""
