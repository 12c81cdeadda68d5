"""What watches and refreshes nodes while a model trains."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from recloom.errors import RecloomError
from recloom.retrieval import snapshot
from recloom.retrieval.catalogue import items_of
from recloom.retrieval.module import encode
from recloom_hsnn.model import HSNN
from recloom_hsnn.nodes import usage
from recloom_hsnn.retrieval import HSNNIndex
from recloom_hsnn.tree import kmeans

LOG = logging.getLogger(__name__)


class CollapseMonitor(Callback):
    """Measures how nodes are used by the items of the last batches, and warns or stops the run when they collapse.

    Logged for each level: index_LEVEL_used, _perplexity (shares of the nodes), _largest (times its due), _imbalance,
    _moved (share of those items that were at another node when measured before), _gap (mean distance between the soft
    and the hard node vector) and _error (mean squared distance to the node, over that of k-means on the same items).

    Args:
        every_n_steps: Steps between two measurements.
        used: Least share of nodes in use.
        perplexity: Least perplexity, as a share of the nodes.
        largest: Largest use of a node, times its due.
        imbalance: Largest imbalance factor.
        action: "warn", or "stop" the run.
        patience: Measurements after the nodes have begun that nothing is said of.
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        used: float = 0.95,
        perplexity: float = 0.7,
        largest: float = 10.0,
        imbalance: float = 2.0,
        action: Literal["warn", "stop"] = "warn",
        patience: int = 1,
    ) -> None:
        if every_n_steps < 1 or action not in ("warn", "stop"):
            raise RecloomError("CollapseMonitor: every_n_steps is at least 1, action is warn or stop")
        self.every_n_steps, self.action, self.patience = every_n_steps, action, patience
        self.bounds = {"used": used, "perplexity": perplexity, "largest": largest, "imbalance": imbalance}
        self.alarms: list[str] = []
        self._vectors: torch.Tensor | None = None
        self._nodes: list[torch.Tensor] = []
        self._measured = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, when it is time."""
        model = _hsnn(pl_module, "CollapseMonitor")
        if trainer.global_step % self.every_n_steps or not model.index.ready:
            return
        values = self.measure(model)
        self._measured += 1
        pl_module.log_dict({f"index_{name}": value for name, value in values.items()}, batch_size=1)
        found = self.problems(values)
        if not found or self._measured <= self.patience:
            return
        text = f"step {trainer.global_step}: nodes collapse: {'; '.join(found)}"
        self.alarms.append(text)
        rank_zero_warn(text)
        if self.action == "stop":
            trainer.should_stop = True

    @torch.no_grad()
    def measure(self, model: HSNN) -> dict[str, float]:
        """Return the measurements by level and name."""
        vectors = model.recent.known()[:16_384]
        assigned = model.index.assign(vectors, model.alpha(1.0))
        found: dict[str, float] = {}
        for level, one in enumerate(assigned):
            name, nodes = str(level + 1), model.index.levels[level]
            values = usage(torch.bincount(one.node, minlength=len(nodes)))
            before = self._nodes[level] if len(self._nodes) > level else None
            again = model.index.assign(self._vectors, 1.0)[level].node if self._vectors is not None else None
            if before is not None and again is not None:
                values["moved"] = float((again != before).double().mean())
            values["gap"] = float((one.soft - one.hard).norm(dim=1).mean())
            if model.index.config.layout == "tree":
                centres = torch.from_numpy(kmeans(vectors.cpu().numpy(), len(nodes), iterations=4)).to(vectors.device)
                best = float((torch.cdist(vectors, centres).min(1).values ** 2).mean())
                values["error"] = float(((vectors - one.hard) ** 2).sum(1).mean()) / max(best, 1e-12)
            found |= {f"{name}_{key}": value for key, value in values.items()}
        self._vectors, self._nodes = vectors.clone(), [one.node for one in assigned]
        return found

    def problems(self, values: dict[str, float]) -> list[str]:
        """Return what of the measurements is out of its bounds."""
        found = []
        for name, value in values.items():
            level, _, kind = name.partition("_")
            bound = self.bounds.get(kind)
            if bound is not None and (value < bound if kind in ("used", "perplexity") else value > bound):
                found.append(f"level {level}: {kind} is {value:.3g}, the bound is {bound:g}")
        return found


class IndexRefresh(Callback):
    """Keeps an index of the data's items in step with the model, and writes snapshots of it.

    Every so many steps items are encoded anew, k-means nodes are made anew, and items whose nearest leaf is another one
    move. Logged: index_refresh_moved, the share of items that moved.

    Args:
        every_n_steps: Steps between two refreshes.
        folder: Where snapshots go; unset: none are written. `recloom.retrieval.snapshot.current` finds the newest.
        share: The index's option.
        keep: How nodes by k-means are renewed: False makes them anew, True lets them be.
    """

    def __init__(
        self, every_n_steps: int = 500, folder: str | None = None, share: float = 0.04, keep: bool = False
    ) -> None:
        if every_n_steps < 1:
            raise RecloomError(f"IndexRefresh: every_n_steps is {every_n_steps}", "Give at least 1.")
        self.every_n_steps, self.folder, self.share, self.keep = every_n_steps, folder, share, keep
        self.index: HSNNIndex | None = None
        self.moved: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refresh, when it is time; on rank 0."""
        model = _hsnn(pl_module, "IndexRefresh")
        if trainer.global_step % self.every_n_steps or not model.index.ready:
            return
        if model.index.config.source == "kmeans" and not self.keep:
            model.index.begin(model.recent.known())
        if not trainer.is_global_zero:
            return
        items = items_of(trainer.datamodule, model)  # type: ignore[attr-defined]
        ids, codes, parts = items.ids.numpy(), encode(model.item_encoder, items), model.parts()
        if self.index is None:
            self.index = HSNNIndex(parts, share=self.share)
            self.index.build(ids, codes)
        else:
            self.moved.append(self.index.refresh(parts, ids, codes))
            pl_module.log("index_refresh_moved", self.moved[-1], batch_size=1, rank_zero_only=True)
        if self.folder is not None:
            LOG.info("index: %s", snapshot.write(Path(self.folder), self.index.save))


def _hsnn(module: pl.LightningModule, name: str) -> HSNN:
    if not isinstance(module, HSNN):
        raise RecloomError(f"{name} watches the nodes of an HSNN; the model is {type(module).__name__}")
    return module
