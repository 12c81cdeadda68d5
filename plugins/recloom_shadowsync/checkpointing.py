"""Checkpoints of replicas: the agreed model in the run's file, and beside it what each rank has of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn  # type: ignore[attr-defined]

from recloom.checkpoint import RANDOM_STATE
from recloom_shadowsync import checkpoints
from recloom_shadowsync.apart import ApartStrategy
from recloom_shadowsync.run import Run
from recloom_shadowsync.weights import Weights


class ReplicaCheckpoints(ApartStrategy):
    """A strategy whose ranks train replicas of their own: writes and reads their checkpoints.

    What synchronises them is a subclass's: `_run` while a fit goes on, `_weights` from when the module is set up.
    """

    _run: Run | None = None
    _weights: Weights | None = None
    _restored: dict[str, Any] | None = None

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the model that replicas agree on; before and after training, the weights."""
        state = super().lightning_module_state_dict()
        if self._run is not None and self._training:
            assert self._weights is not None
            state = self._weights.with_model(state, self._run.replica.copies()[0])
        return state

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write the checkpoint: rank 0 the file with the agreed model, every other rank what is its own."""
        if self._run is None:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        checkpoint[checkpoints.KEY] = self._run.state_dict()
        super().save_checkpoint(checkpoint, filepath, storage_options)
        if self.global_rank:
            assert self._weights is not None
            self._weights.drop_shared(checkpoint)
            checkpoints.write_part(checkpoint, Path(filepath), self.global_rank)

    def remove_checkpoint(self, filepath: str | Path) -> None:
        """Remove the file, and what ranks wrote beside it."""
        super().remove_checkpoint(filepath)
        if self.is_global_zero:
            checkpoints.remove_parts(Path(filepath))

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the checkpoint's file and, to train on, what this rank wrote beside it."""
        loaded = super().load_checkpoint(checkpoint_path, weights_only)
        assert self.lightning_module is not None
        if self.lightning_module.trainer.state.fn != TrainerFn.FITTING:
            return loaded
        world = dist.get_world_size()
        own = checkpoints.read_part(loaded, Path(checkpoint_path), self.global_rank, world)
        if own is None:
            if checkpoints.KEY in loaded:
                rank_zero_warn("not all ranks' own states are in the checkpoint: those go on from the agreed model")
            return loaded
        assert self._weights is not None
        if self.global_rank:
            self._weights.take_shared(own, loaded)
        if len(own.get(RANDOM_STATE, [])) == 1:
            own[RANDOM_STATE] = own[RANDOM_STATE] * world
        self._restored = own[checkpoints.KEY]
        return own

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load the agreed model, and over it this rank's own replica."""
        super().load_model_state_dict(checkpoint, strict)
        if self._restored is not None and self._weights is not None:
            self._weights.load_replica(self._restored)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the optimizers' states; those that ranks share go into the memory that they share."""
        super().load_optimizer_state_dict(checkpoint)
        if self._weights is not None:
            self._weights.share_states(self.optimizers)
