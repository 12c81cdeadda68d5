"""The published algorithms: model averaging, BMUF, EASGD; and a DiLoCo-style outer optimizer.

Equations are those of ShadowSync (Zheng et al. 2020, arXiv 2003.03477) and of the papers it builds on, in the notation
w(i) for replica i, w_c for the mean of the replicas, w_g for the global model, c for the server's centre.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from recloom.errors import RecloomError
from recloom.sync import SyncAlgorithm


class MA(SyncAlgorithm):
    """Model averaging: replicas move towards their mean."""

    def target(self, received: Tensor) -> Tensor:
        """Return w_c."""
        return received


class BMUF(SyncAlgorithm):
    """Blockwise model-update filtering (Chen and Huo 2016): the global model takes a step towards the mean.

    d = w_c - w_g; v = momentum v + step d; w_g = w_g + v, or with Nesterov's momentum w_g + momentum v is what replicas
    move towards. With step 1 and momentum 0 it is model averaging.

    Args:
        step: Size of the step towards the mean.
        momentum: Block momentum.
        nesterov: Let replicas move towards where the momentum will carry the global model.
    """

    def __init__(self, step: float = 1.0, momentum: float = 0.0, nesterov: bool = False) -> None:
        if not 0 < step or not 0 <= momentum < 1:
            raise RecloomError(
                f"BMUF: step {step}, momentum {momentum}", "The step is positive, the momentum in [0, 1)."
            )
        self.step = step
        self.momentum = momentum
        self.nesterov = nesterov
        self._global = torch.empty(0)
        self._velocity = torch.empty(0)

    def start(self, weights: Tensor) -> None:
        """Begin with w_g at the common weights."""
        self._global = weights.clone()
        self._velocity = torch.zeros_like(weights) if self.momentum else torch.empty(0)

    def target(self, received: Tensor) -> Tensor:
        """Return the new w_g."""
        if not self.momentum:
            self._global = torch.lerp(self._global, received, self.step)  # with step 1, w_c to the bit
            return self._global
        self._velocity.mul_(self.momentum).add_(received - self._global, alpha=self.step)
        self._global = self._global + self._velocity
        if not self.nesterov:
            return self._global
        return torch.add(self._global, self._velocity, alpha=self.momentum)

    def state_dict(self) -> dict[str, Tensor]:
        """Return w_g and the velocity."""
        return {"global": self._global, "velocity": self._velocity}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back w_g and the velocity."""
        self._global = state["global"].clone()
        self._velocity = state["velocity"].clone()


class EASGD(SyncAlgorithm):
    """Elastic averaging SGD (Zhang et al. 2015) with a server: replica and centre move towards one another.

    Sequential, as ShadowSync has it: c = (1 - alpha) c + alpha w(i), and the replica moves towards the new c.
    Symmetric, as in EASGD's own paper: both move by the difference of the old values.

    Args:
        alpha: How far the centre moves towards a replica.
        symmetric: Answer with the centre's old value.
    """

    exchange: ClassVar[Literal["mean", "server"]] = "server"

    def __init__(self, alpha: float = 0.5, symmetric: bool = False) -> None:
        if not 0 < alpha <= 1:
            raise RecloomError(f"EASGD: alpha is {alpha}", "It is above 0 and at most 1.")
        self.alpha = alpha
        self.symmetric = symmetric

    def target(self, received: Tensor) -> Tensor:
        """Return the centre that the server answered with."""
        return received

    def merge(self, center: Tensor, pushed: Tensor) -> Tensor:
        """Move the centre by alpha towards the replica; return it, or what it was."""
        if not self.symmetric:
            return center.lerp_(pushed, self.alpha)
        old = center.clone()
        center.lerp_(pushed, self.alpha)
        return old


class DiLoCo(SyncAlgorithm):
    """An outer optimizer on the replicas' progress (Douillard et al. 2023): SGD with Nesterov's momentum.

    The outer gradient is g = w_g - w_c; v = momentum v + g; w_g = w_g - lr (g + momentum v).

    Args:
        lr: Outer learning rate.
        momentum: Outer momentum.
    """

    def __init__(self, lr: float = 0.7, momentum: float = 0.9) -> None:
        if not 0 < lr or not 0 <= momentum < 1:
            raise RecloomError(f"DiLoCo: lr {lr}, momentum {momentum}", "lr is positive, the momentum in [0, 1).")
        self.lr = lr
        self.momentum = momentum
        self._global = torch.empty(0)
        self._velocity = torch.empty(0)

    def start(self, weights: Tensor) -> None:
        """Begin with w_g at the common weights."""
        self._global = weights.clone()
        self._velocity = torch.zeros_like(weights)

    def target(self, received: Tensor) -> Tensor:
        """Return the new w_g."""
        gradient = self._global - received
        self._velocity.mul_(self.momentum).add_(gradient)
        step = gradient.add_(self._velocity, alpha=self.momentum)
        self._global = torch.add(self._global, step, alpha=-self.lr)
        return self._global

    def state_dict(self) -> dict[str, Tensor]:
        """Return w_g and the velocity."""
        return {"global": self._global, "velocity": self._velocity}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back w_g and the velocity."""
        self._global = state["global"].clone()
        self._velocity = state["velocity"].clone()
