"""DLRM's weights in other implementations' layouts: the reference's and TorchRec's; `recloom import-weights`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from recloom import checkpoint
from recloom.errors import DataError, RecloomError
from recloom.loading import build_model
from recloom_dlrm.interactions import DotInteraction
from recloom_dlrm.layers import MLP
from recloom_dlrm.model import DLRM

Layout = Literal["reference", "torchrec"]
_REFERENCE_ANCHOR = "bot_l.0.weight"
_TORCHREC_ANCHOR = "dense_arch.model._mlp.0._linear.weight"


def import_weights(model: DLRM, state: Mapping[str, Tensor], layout: Layout) -> None:
    """Copy another implementation's weights into `model`, which then gives the same logits.

    Tables are matched by name (`t_NAME` in TorchRec), or else by position.

    Args:
        model: A DLRM of the same sizes, with tables that are stored whole (FusedEmbeddingBag).
        state: The other model's state dict; a common prefix of its names, as wrappers add, is ignored.
        layout: "reference": facebookresearch/dlrm's DLRM_Net; "torchrec": torchrec.models.dlrm.DLRM.

    Raises:
        RecloomError: A weight is missing or has another shape.
    """
    state = _without_prefix(state, _REFERENCE_ANCHOR if layout == "reference" else _TORCHREC_ANCHOR)
    order = _columns(model) if layout == "torchrec" else None
    pairs = list(_pairs(model, _table_names(model, state, layout), layout))
    problems = [
        f"{name} is missing"
        if name not in state
        else f"{name} is {tuple(state[name].shape)} there, {tuple(ours.shape)} here"
        for name, ours in pairs
        if name not in state or state[name].shape != ours.shape
    ]
    if problems:
        shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise RecloomError(f"the {layout} weights do not fit the model: {shown}", "Configure the same sizes.")
    first = _first_over_weight(model, layout)
    with torch.no_grad():
        for name, ours in pairs:
            found = state[name]
            ours.copy_(found if order is None or name != first else found.index_select(1, order))


def export_weights(model: DLRM, layout: Layout) -> dict[str, Tensor]:
    """Return a copy of the weights of `model` in another implementation's layout; see `import_weights`."""
    names = [
        f"emb_l.{i}.weight" if layout == "reference" else f"{_BAGS}.t_{table.name}.weight"
        for i, table in enumerate(model.sparse_arch.tables)
    ]
    state = {name: ours.detach().clone() for name, ours in _pairs(model, names, layout)}
    if layout == "torchrec":
        first = _first_over_weight(model, layout)
        state[first] = state[first].index_select(1, torch.argsort(_columns(model)))
    return state


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict in the file at `path`: itself, or under "state_dict" or "model_state_dict".

    Only tensors and plain values are read; NumPy's scalars too, which the reference's checkpoints hold.

    Raises:
        DataError: There is no such file, or none with weights that can be read safely.
    """
    scalars: list[Any] = [np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8"))]
    scalars.append((np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"))
    scalars.append((np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"))
    try:
        checkpoint.verify(path)
        with torch.serialization.safe_globals(scalars):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file", "Name a file that torch.save wrote.") from None
    except DataError:
        raise
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... by how the file is broken
        cause = str(error).strip().split("\n")[0]
        raise DataError(f"{path}: no weights that can be read safely: {cause}", "Save a state dict.") from error
    for key in ("state_dict", "model_state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, dict) else {}
    if not tensors:
        raise DataError(f"{path}: it holds no state dict", "Save one: torch.save(model.state_dict(), FILE).")
    return tensors


def main(argv: list[str]) -> int:
    """`recloom import-weights`: write a checkpoint of the configured DLRM with another implementation's weights."""
    parser = argparse.ArgumentParser(
        prog="recloom import-weights",
        description="Turn weights of another DLRM implementation into a checkpoint of the configured model, "
        "for test, predict, export, and as a start of fit (--ckpt_path).",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="config with the DLRM and its data")
    parser.add_argument("--from", required=True, choices=("reference", "torchrec"), dest="layout", help="their layout")
    parser.add_argument("file", metavar="WEIGHTS", help="a state dict that torch.save wrote")
    parser.add_argument("--output", required=True, metavar="CKPT", help="the checkpoint to write")
    options = parser.parse_args(argv)
    model = build_model(Path(options.config))
    if not isinstance(model, DLRM):
        raise RecloomError(f"{options.config}: {type(model).__name__} is no DLRM", "Configure `model: DLRM`.")
    import_weights(model, read_weights(Path(options.file)), options.layout)
    save_checkpoint(model, Path(options.output))
    print(f"{options.output}: {sum(p.numel() for p in model.parameters()):,} weights from {options.file}")
    return 0


def save_checkpoint(model: DLRM, path: Path) -> None:
    """Write a checkpoint at step 0, which `fit --ckpt_path` starts from and the other commands evaluate."""
    configured = model.configure_optimizers()
    scheduled = isinstance(configured, dict)
    optimizer = configured["optimizer"] if scheduled else configured
    schedulers = [configured["lr_scheduler"]["scheduler"].state_dict()] if scheduled else []
    state: dict[str, Any] = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": version("lightning"),
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": schedulers,
        "hyper_parameters": dict(model.hparams),
    }
    model.on_save_checkpoint(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    torch.save(state, aside)
    os.replace(aside, path)


_BAGS = "sparse_arch.embedding_bag_collection.embedding_bags"


def _pairs(model: DLRM, tables: list[str], layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Yield (their name, our weight) for each weight; `tables` are their names of our tables."""
    for name, table in zip(tables, model.sparse_arch.tables, strict=True):
        yield name, model.sparse_arch.table_weight(table.name)
    for ours, mlp in (("bot_l", model.dense_arch), ("top_l", model.over_arch)):
        linears = mlp.linears() if isinstance(mlp, MLP) else []
        for index, linear in enumerate(linears):
            name = _linear_name(ours, index, len(linears), layout)
            yield f"{name}.weight", linear.weight
            yield f"{name}.bias", linear.bias


def _linear_name(part: str, index: int, count: int, layout: Layout) -> str:
    if layout == "reference":
        return f"{part}.{2 * index}"  # a ReLU or sigmoid after each
    if part == "bot_l":
        return f"dense_arch.model._mlp.{index}._linear"
    return "over_arch.model.1" if index == count - 1 else f"over_arch.model.0._mlp.{index}._linear"


def _first_over_weight(model: DLRM, layout: Layout) -> str:
    return f"{_linear_name('top_l', 0, len(model.over_arch.linears()), layout)}.weight"


def _columns(model: DLRM) -> Tensor:
    """Return for each input of our over arch the place of the same product in TorchRec's: upper triangle by rows."""
    interaction = model.inter_arch
    if not isinstance(interaction, DotInteraction) or interaction.itself:
        raise RecloomError("TorchRec's DLRM has a DotInteraction without `itself`", "Configure the model like that.")
    count, width = interaction.num_vectors, interaction.embedding_dim
    upper = torch.triu_indices(count, count, 1)  # (0, 1), (0, 2), ..., (1, 2), ...
    place = torch.zeros(count, count, dtype=torch.int64)
    place[upper[0], upper[1]] = torch.arange(upper.shape[1])
    lower = torch.tril_indices(count, count, -1)  # (1, 0), (2, 0), (2, 1), ...
    return torch.cat([torch.arange(width), width + place[lower[1], lower[0]]])


def _table_names(model: DLRM, state: Mapping[str, Tensor], layout: Layout) -> list[str]:
    """Return their name of each of our tables."""
    tables = model.sparse_arch.tables
    if layout == "reference":
        return [f"emb_l.{index}.weight" for index in range(len(tables))]
    for pattern in ("t_{}", "{}"):
        named = [f"{_BAGS}.{pattern.format(table.name)}.weight" for table in tables]
        if all(name in state for name in named):
            return named
    theirs = [name for name in state if name.startswith(_BAGS)]
    if len(theirs) != len(tables):
        raise RecloomError(
            f"the weights hold {len(theirs)} tables, the model {len(tables)}", "Configure the same data."
        )
    return theirs


def _without_prefix(state: Mapping[str, Tensor], anchor: str) -> dict[str, Tensor]:
    anchors = [name for name in state if name.endswith(anchor)]
    if not anchors:
        shown = ", ".join(list(state)[:3])
        raise RecloomError(f"there is no {anchor} among the weights ({shown}, ...)", "Is --from right?")
    prefix = anchors[0].removesuffix(anchor)
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
