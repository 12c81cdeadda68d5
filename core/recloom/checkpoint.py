"""What recloom adds to Lightning's checkpoints, and how a model is read back from one: `weights_only=True`, always."""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from recloom import archives, sharded_checkpoint
from recloom.errors import DataError, RecloomError

RANDOM_STATE = "recloom_random_state"


def read(path: str | Path, map_location: Any = "cpu", whole: bool = True) -> dict[str, Any]:
    """Return the checkpoint at `path`.

    Args:
        path: The file.
        map_location: As in `torch.load`.
        whole: Put tensors that the checkpoint of a sharded run keeps beside its file into what is returned.

    Raises:
        DataError: There is none, it is truncated or damaged, or it holds objects that only unpickling could build.
    """
    try:
        verify(path)
        found = torch.load(path, map_location=map_location, weights_only=True, mmap=True)
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no checkpoint here", "Name a .ckpt file of a run's checkpoints folder."
        ) from None
    except DataError:
        raise
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... by how the file is broken
        cause = str(error).strip().split("\n")[0]
        raise DataError(f"{path}: not a checkpoint that can be read safely: {cause}", "Use an earlier one.") from error
    return sharded_checkpoint.complete(found, path) if whole else found


def verify(path: str | Path) -> None:
    """Compare a checkpoint with the checksums that it holds, which `torch.load` does not; once for each file.

    Raises:
        DataError: It is cut short or damaged.
        FileNotFoundError: There is none.
    """
    if zipfile.is_zipfile(path):
        facts = os.stat(path)
        _verify(Path(path), facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(64)
def _verify(path: Path, size: int, changed: int) -> None:
    archives.check(path, "Use an earlier one.")


def to_primitives(value: Any) -> Any:
    """Return `value` as what a checkpoint may hold: numbers, strings, lists, dicts.

    A dataclass becomes a dict; a class or function its import path; a partial a class_path with init_args.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): to_primitives(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [to_primitives(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_primitives(dataclasses.asdict(value))
    if isinstance(value, functools.partial):
        return {"class_path": to_primitives(value.func), "init_args": to_primitives(value.keywords)}
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)


def add_extras(checkpoint: dict[str, Any], world_size: int) -> None:
    """Make `checkpoint`'s hyper-parameters primitive and add the random states of `world_size` ranks.

    All ranks together, unless `world_size` is 1: then only this rank's is added.
    """
    if "hyper_parameters" in checkpoint:
        checkpoint["hyper_parameters"] = to_primitives(dict(checkpoint["hyper_parameters"]))
    version, keys, position, has_gauss, gauss = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [str(version), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": to_primitives(random.getstate()),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    states = [state]
    if world_size > 1:
        states = [{} for _ in range(world_size)]
        dist.all_gather_object(states, state)
    checkpoint[RANDOM_STATE] = states


def restore_random_state(checkpoint: dict[str, Any]) -> None:
    """Set this rank's random state from `checkpoint`; with another number of ranks the run is only seeded alike."""
    states = checkpoint.get(RANDOM_STATE, [])
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if len(states) != world:
        return
    state = states[dist.get_rank() if world > 1 else 0]
    torch.set_rng_state(state["torch"].cpu())
    version, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((version, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    outer, inner, last = state["python"]
    random.setstate((outer, tuple(inner), last))
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([item.cpu() for item in state["cuda"]])


def load_weights(module: torch.nn.Module, path: str | Path) -> None:
    """Load the weights of the checkpoint at `path` into `module`; RecloomError names what does not fit."""
    state: dict[str, Tensor] = read(path).get("state_dict", {})
    own = module.state_dict()
    problems = [f"{name} is missing" for name in own.keys() - state.keys()]
    problems += [f"{name} is not of this model" for name in state.keys() - own.keys()]
    problems += [
        f"{name} is {tuple(state[name].shape)} there, {tuple(own[name].shape)} here"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    ]
    if problems:
        raise misfit(path, problems)
    module.load_state_dict(state)


def misfit(path: str | Path, problems: list[str]) -> RecloomError:
    """Return the error about a checkpoint whose weights are another model's."""
    shown = "; ".join(sorted(problems)[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
    return RecloomError(f"{path}: its weights do not fit the model: {shown}", "Use the run's own config.yaml.")


def explain_restoring(error: Exception, path: str | Path) -> RecloomError | None:
    """Return the error behind what torch raised while a Trainer restored the checkpoint at `path`; None if another."""
    text = str(error)
    if "loading state_dict for" in text:
        found = [f"{name} is missing" for name in _names(text, "Missing")]
        found += [f"{name} is not of this model" for name in _names(text, "Unexpected")]
        sizes = re.findall(r"size mismatch for (\S+): .*?Size\((.*?)\) from .*?Size\((.*?)\)", text)
        return misfit(path, found + [f"{name} is {there} there, {here} here" for name, there, here in sizes])
    if text.startswith("loaded state dict "):  # torch.optim.Optimizer.load_state_dict
        cause = text.removeprefix("loaded state dict ")
        return RecloomError(f"{path}: its optimizer's state {cause}", "Use the run's own config.yaml.")
    return None


def _names(text: str, kind: str) -> list[str]:
    told = re.search(rf"{kind} key\(s\) in state_dict: (.*)", text)
    return re.findall(r'"([^"]+)"', told[1]) if told else []
