"""Node embeddings of a trained model as files, for other models: see `recloom.nodes`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from recloom.data.streams.module import StreamDataModule
from recloom.errors import RecloomError
from recloom.nodes import NodeVectors
from recloom_edge.model import EDGE


class ExportNodes(Callback):
    """Writes EDGE's node embeddings after `recloom fit` and `recloom test`, as they are when some events have happened.

    The events are replayed exactly with the weights of now. A node's vector is its state, and a destination's also has
    its static embedding; a node without an event has zeros in the place of its state. They know of no later event; the
    weights were learned from the training events.

    Args:
        output: Folder that they are written to.
        until: Which events are replayed: those of "train", also those of "val", or "all".
    """

    def __init__(self, output: str = "build/nodes", until: Literal["train", "val", "all"] = "train") -> None:
        if until not in ("train", "val", "all"):
            raise RecloomError(f"until is {until!r}", "It must be 'train', 'val' or 'all'.")
        self.output, self.until = output, until

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write them with the weights of the last step."""
        self._write(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write them with the weights that were tested."""
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, model: LightningModule) -> None:
        data = getattr(trainer, "datamodule", None)
        if not isinstance(model, EDGE) or not isinstance(data, StreamDataModule):
            raise RecloomError(
                "ExportNodes writes the nodes of EDGE on event streams", "Leave it out for other models."
            )
        if trainer.is_global_zero:
            export_nodes(model, data, self.until).save(Path(self.output))


@torch.no_grad()
def export_nodes(model: EDGE, data: StreamDataModule, until: Literal["train", "val", "all"] = "train") -> NodeVectors:
    """Return the vectors of all nodes after the events of a stream up to a cut; the model's memory stays as it is."""
    stream = data.stream
    stop = len(stream) if until == "all" else stream.span(until)[1]
    if not stop:
        raise RecloomError(f"the stream has no event up to the end of {until!r}")
    between = stream.slice(stream.span("train")[1], stop)
    kept = model.snapshot()
    model.replay([data.training_stream, *([between] if len(between) else [])])
    states = model.memory.states.clone()
    model.restore(kept)
    static = model.head.static.table_weight("destination").detach()
    there = torch.cat([states[model.offset :], static], dim=1)
    tables = {"source": states[: model.num_sources], "destination": there} if model.offset else {"node": there}
    info = {"model": "EDGE", "events": stop, "until": until}
    return NodeVectors(tables, int(stream.time[stop - 1]) // stream.ticks, info)
