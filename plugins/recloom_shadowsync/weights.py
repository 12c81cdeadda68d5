"""Which of a model's weights are synchronised, which are one copy in shared memory, which are left alone."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from recloom.errors import RecloomError
from recloom.rowgrad import row_parameters
from recloom.strategy import partition
from recloom_shadowsync.flat import FlatView
from recloom_shadowsync.shared import SharedMemory

Tables = Literal["synced", "shared", "local"]


class Weights:
    """The weights of a module under a strategy that synchronises. Made by all ranks together, before optimizers are.

    Args:
        module: The model.
        tables: What becomes of embedding tables that are not sharded.
        exclude: Parts of the names of parameters that are not synchronised.
        hogwild: Ranks that share a replica.
    """

    def __init__(self, module: pl.LightningModule, tables: Tables, exclude: list[str], hogwild: int) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        if self.world % hogwild:
            raise RecloomError(
                f"{self.world} ranks cannot share replicas by {hogwild}",
                "Choose a `hogwild` that divides their number.",
            )
        self.group = list(range(self.rank - self.rank % hogwild, self.rank - self.rank % hogwild + hogwild))
        replicated, sharded = partition(module)
        self.sharded = bool(sharded)
        rows = {name: parameter for name, parameter in row_parameters(module) if name in replicated}
        chosen = {
            name: parameter
            for name, parameter in replicated.items()
            if parameter.requires_grad
            and (name not in rows or tables == "synced")
            and not any(part in name for part in exclude)
        }
        self._memory = SharedMemory(self.group) if hogwild > 1 else None
        self.view = FlatView(chosen, self._allocate)
        self.model = None if self._memory is None else self._memory.tensor(len(self.view.flat), self.view.flat.dtype)
        self.shared: dict[nn.Parameter, dict[str, Tensor]] = {}
        self._optimizers: list[Optimizer] = []
        self._machine = SharedMemory(range(self.world)) if tables == "shared" and rows else None
        for parameter in rows.values() if self._machine else ():
            self._share(parameter)
        for tensor in [
            self.view.flat,
            *(p.detach() for p in replicated.values() if not any(p is c for c in chosen.values())),
        ]:
            dist.broadcast(tensor, 0)
        for (
            child
        ) in module.modules():  # a sharded collection's: each rank's batch is a step of its own, as with servers
            if self.sharded and hasattr(child, "row_gradient_factor"):
                setattr(child, "row_gradient_factor", 1.0)  # noqa: B010 (mypy: modules hold tensors and modules)

    def _allocate(self, length: int, like: Tensor) -> Tensor:
        if self._memory is None:
            return torch.zeros(length, dtype=like.dtype, device=like.device)
        if like.device.type != "cpu":
            raise RecloomError("hogwild shares memory of CPUs", "Use accelerator: cpu, or hogwild: 1.")
        return self._memory.tensor(length, like.dtype)

    def _share(self, parameter: nn.Parameter) -> None:
        assert self._machine is not None
        if parameter.device.type != "cpu":
            raise RecloomError("tables: shared is for CPUs", "Use accelerator: cpu, or tables: synced.")
        memory = self._machine.tensor(parameter.numel(), parameter.dtype).view(parameter.shape)
        memory.copy_(parameter.detach())
        parameter.data = memory
        self.shared[parameter] = {}

    def prepare_optimizers(self, optimizers: list[Optimizer]) -> None:
        """Keep optimizers from exchanging rows, and put the states of shared tables into shared memory."""
        self._optimizers = list(optimizers)
        for optimizer in optimizers:
            if hasattr(optimizer, "synchronize_rows"):
                optimizer.synchronize_rows = False
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter in self.shared and group.get("rows", "sgd") != "sgd":
                        assert self._machine is not None
                        shape = parameter.shape[: 1 if group["rows"] == "rowwise_adagrad" else 2]
                        state = self._machine.tensor(shape.numel(), torch.float32).view(shape)
                        self.shared[parameter] = {"sum": state}
                        optimizer.state[parameter] = dict(self.shared[parameter])

    def share_states(self, optimizers: list[Optimizer]) -> None:
        """Move states that were loaded from a checkpoint into the memory that ranks share."""
        for optimizer in optimizers:
            for parameter, states in self.shared.items():
                for key, memory in states.items():
                    if key in optimizer.state[parameter]:
                        memory.copy_(optimizer.state[parameter][key])
                        optimizer.state[parameter][key] = memory

    def with_model(self, state: dict[str, Any], model: Tensor) -> dict[str, Any]:
        """Return a state dict of the module with the synchronised weights taken from `model`, P."""
        flat = self.view.flat
        base, size, end = flat.data_ptr(), flat.element_size(), flat.data_ptr() + flat.numel() * flat.element_size()
        found = dict(state)
        for name, tensor in state.items():
            if isinstance(tensor, Tensor) and base <= tensor.data_ptr() < end and tensor.numel():
                start = (tensor.data_ptr() - base) // size
                found[name] = model[start : start + tensor.numel()].view(tensor.shape)
        return found

    def load_replica(self, saved: dict[str, Any]) -> None:
        """Put a replica from a checkpoint in place."""
        if saved["replica"].shape != self.view.flat.shape:
            raise RecloomError(
                f"the checkpoint's replica has {len(saved['replica']):,} weights,"
                f" and {len(self.view.flat):,} are synced here",
                "Resume with the run's own config: `tables` and `exclude` decide what is synchronised.",
            )
        self.view.flat.copy_(saved["replica"])

    def drop_shared(self, checkpoint: dict[str, Any]) -> None:
        """Leave the states of shared tables out of a rank's part of a checkpoint: rank 0's file has them."""
        for place, index in self._places(checkpoint):
            place["state"] = {
                key: value for key, value in place["state"].items() if key != index
            }  # not the optimizer's

    def take_shared(self, own: dict[str, Any], loaded: dict[str, Any]) -> None:
        """Take the states of shared tables from rank 0's file."""
        for (place, index), (source, _) in zip(self._places(own), self._places(loaded), strict=False):
            if index in source["state"]:
                place["state"][index] = source["state"][index]

    def _places(self, checkpoint: dict[str, Any]) -> list[tuple[dict[str, Any], int]]:
        """Return (an optimizer's entry in the checkpoint, the number of a shared table in it)."""
        found = []
        for entry, optimizer in zip(checkpoint.get("optimizer_states", []), self._optimizers, strict=False):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            found += [(entry, i) for i, parameter in enumerate(parameters) if self.shared.get(parameter)]
        return found
