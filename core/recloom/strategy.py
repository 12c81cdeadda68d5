"""What strategies build on: which parameters are replicated and which sharded, and checkpoints of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from recloom import checkpoint as checkpoints
from recloom import dcp, sharded_checkpoint
from recloom.dcp import RowSpans
from recloom.errors import DataError
from recloom.plugins import host
from recloom.rowgrad import row_parameters

Shards = dict[str, tuple[Tensor, RowSpans]]


def mark_sharded(parameter: nn.Parameter, spans: RowSpans) -> None:
    """Mark `parameter` as this rank's rows of a larger one: the optimizer and checkpoints treat it as such."""
    parameter.__dict__.update(recloom_sharded=True, recloom_spans=spans)


def spans_of(parameter: Tensor) -> RowSpans | None:
    """Return which rows `parameter` holds if it was marked as sharded, None if it is replicated."""
    return parameter.__dict__.get("recloom_spans")


def partition(module: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Return the parameters of `module` by name: (replicated on all ranks, sharded over them)."""
    named = dict(module.named_parameters())
    sharded = {name: parameter for name, parameter in named.items() if spans_of(parameter) is not None}
    return {name: parameter for name, parameter in named.items() if name not in sharded}, sharded


def prepare_for_ddp(module: nn.Module) -> None:
    """Make DistributedDataParallel, and Lightning's synchronisation of weights, leave some tensors of `module` alone.

    Parameters with row gradients: the optimizer exchanges those gradients; sharded parameters: ranks hold different
    rows; buffers that are not saved: they are constants of the model, and would be broadcast before every forward.
    Call it after layers were replaced and before the module is wrapped; it may be called again.
    """
    ignored = {name for name, _ in row_parameters(module)} | partition(module)[1].keys()
    saved = module.state_dict(keep_vars=True).keys()
    ignored |= {name for name, _ in module.named_buffers() if name not in saved}
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, sorted(ignored))


class RecloomStrategy(DDPStrategy):
    """DistributedDataParallel that knows sharded parameters: calls the hook `configure_strategy`, saves them sharded.

    Any number of ranks can read a checkpoint, so can strategies that hold everything (`recloom.sharded_checkpoint`);
    this strategy also reads their checkpoints. Reading is `weights_only=True`, always.

    Args:
        process_group_backend: gloo, nccl, ...; by default what suits the accelerator.
        timeout: How long a collective waits for the other ranks.
        find_unused_parameters: As in DistributedDataParallel: for models whose loss leaves parameters out.
    """

    def __init__(
        self,
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=30),
        find_unused_parameters: bool = False,
    ) -> None:
        super().__init__(
            process_group_backend=process_group_backend,
            timeout=timeout,
            find_unused_parameters=find_unused_parameters,
        )
        self._shards: Path | None = None
        self._files: dist.ProcessGroup | None = None

    def partition_parameters(self, module: pl.LightningModule) -> None:
        """Shard parameters of `module`, a subclass's choice; `configure_model` has run, no optimizer exists yet."""

    def setup(self, trainer: pl.Trainer) -> None:
        """Shard, let plugins adapt the strategy, then wrap the module and make its optimizers."""
        module = self.lightning_module
        assert module is not None
        self.partition_parameters(module)
        host().hook.configure_strategy(strategy=self, module=module)
        prepare_for_ddp(module)
        super().setup(trainer)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """A checkpoint is read after parameters were sharded: each rank reads its own rows only."""
        return True

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write the checkpoint: all ranks their shards, then rank 0 the file."""
        path = Path(filepath)
        tensors = self._take_shards(checkpoint)
        if not tensors:
            if self.is_global_zero:
                sharded_checkpoint.write_file(checkpoint, path)
                sharded_checkpoint.remove(path)
            return
        folder = self.broadcast(sharded_checkpoint.new_folder(path, checkpoint["global_step"]))
        if self._files is None:
            self._files = dist.new_group(backend="gloo")
        dcp.save(folder, tensors, self._files)
        if self.is_global_zero:
            sharded_checkpoint.write(checkpoint, path, folder)

    def remove_checkpoint(self, filepath: str | Path) -> None:
        """Remove the file, and its sharded_checkpoint."""
        super().remove_checkpoint(filepath)
        if self.is_global_zero:
            sharded_checkpoint.remove(Path(filepath))

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the checkpoint's file; the shards are read when there is memory to put them in."""
        loaded = checkpoints.read(checkpoint_path, whole=False)
        if self._sharded():
            self._shards = sharded_checkpoint.take_folder(loaded, Path(checkpoint_path))
        else:
            sharded_checkpoint.complete(loaded, checkpoint_path)
        return loaded

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load the weights; of sharded ones this rank's rows."""
        state, wanted = checkpoint["state_dict"], {}
        for name, parameter in self._sharded():
            spans = spans_of(parameter)
            assert spans is not None
            if self._shards is not None:
                wanted[sharded_checkpoint.weight_name(name)] = (parameter, spans)
            elif name in state:
                parameter.detach().copy_(_rows(name, state[name], parameter, spans))
            state[name] = parameter.detach()
        if self._shards is not None:
            dcp.load(self._shards, wanted)
        super().load_model_state_dict(checkpoint, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the optimizers' states; of sharded parameters those of this rank's rows."""
        wanted: Shards = {}
        for i, index, parameter in _sharded_states(self.optimizers):
            spans = spans_of(parameter)
            assert spans is not None
            states = checkpoint["optimizer_states"][i]["state"]
            if self._shards is None:
                for key, value in states.get(index, {}).items():
                    if value.ndim and len(value) == spans.total:
                        states[index][key] = spans.take(value)
                continue
            for key, stored in sharded_checkpoint.stored_states(self._shards, i, index):
                local = torch.empty(spans.rows, *stored.size[1:], dtype=stored.properties.dtype)
                states.setdefault(index, {})[key] = local
                wanted[sharded_checkpoint.state_name(i, index, key)] = (local, spans)
        if self._shards is not None:
            dcp.load(self._shards, wanted)
        super().load_optimizer_state_dict(checkpoint)

    def _sharded(self) -> list[tuple[str, nn.Parameter]]:
        assert self.lightning_module is not None
        return list(partition(self.lightning_module)[1].items())

    def _take_shards(self, checkpoint: dict[str, Any]) -> Shards:
        """Move the sharded tensors out of `checkpoint`; return them by their names on disk."""
        found: Shards = {}
        for name, parameter in self._sharded():
            spans = spans_of(parameter)
            assert spans is not None
            found[sharded_checkpoint.weight_name(name)] = (checkpoint["state_dict"].pop(name), spans)
        for i, index, parameter in _sharded_states(self.optimizers):
            spans = spans_of(parameter)
            assert spans is not None
            if "optimizer_states" not in checkpoint:  # a checkpoint of weights only
                break
            states = checkpoint["optimizer_states"][i]["state"]
            rows = {
                key: value for key, value in states.get(index, {}).items() if value.ndim and len(value) == spans.rows
            }
            found.update({sharded_checkpoint.state_name(i, index, key): (value, spans) for key, value in rows.items()})
            # a new dict: this one is the optimizer's own. What stays is shared by all rows, such as a step count
            states[index] = {key: value for key, value in states.get(index, {}).items() if key not in rows}
        return found


def _sharded_states(optimizers: list[Optimizer]) -> Iterator[tuple[int, int, nn.Parameter]]:
    """Yield (optimizer, the parameter's number in it, parameter) for each sharded parameter."""
    for i, optimizer in enumerate(optimizers):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, parameter in enumerate(parameters):
            if spans_of(parameter) is not None:
                yield i, index, parameter


def _rows(name: str, whole: Tensor, parameter: Tensor, spans: RowSpans) -> Tensor:
    if whole.shape != (spans.total, *parameter.shape[1:]):
        sizes = f"{tuple(whole.shape)} in the checkpoint, {(spans.total, *parameter.shape[1:])} here"
        raise DataError(f"{name} is {sizes}", "Use the run's own config.yaml.")
    return spans.take(whole)
