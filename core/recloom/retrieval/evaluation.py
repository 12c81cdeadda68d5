"""How much of the exhaustive scorer's best items an index finds, and at what cost: in all, and by segments of items."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from recloom.errors import RecloomError
from recloom.plugins import catalog
from recloom.retrieval.catalogue import items_of, shown, users_of
from recloom.retrieval.exhaustive import Exhaustive
from recloom.retrieval.index import Floats, Ids, RetrievalIndex
from recloom.retrieval.module import RetrievalModule, encode


@dataclass(frozen=True)
class Recall:
    """What an index found of the best items.

    Args:
        recall: Share of the reference's items that were found, the mean over users.
        scored: Evaluations of a user, nodes included, as a share of the number of items.
        milliseconds: CPU time of a query, one query at a time.
        segments: Recall of the reference's items that lie in each segment; NaN where none does.
    """

    recall: float
    scored: float
    milliseconds: float
    segments: dict[str, float]


def hits(wanted: Ids, found: Ids) -> np.ndarray:
    """Return which of U x k `wanted` ids are among the same user's U x m `found` ones; -1 never is."""
    users = np.arange(len(wanted))[:, None]
    span = max(int(wanted.max(initial=0)), int(found.max(initial=0))) + 2
    return np.isin(wanted + span * users, (found + span * users)[found >= 0]) & (wanted >= 0)


def measure(
    index: RetrievalIndex,
    users: Floats,
    reference: Ids,
    segments: Mapping[str, Ids] | None = None,
    timed: int = 50,
) -> Recall:
    """Search for `users` and compare with what an exact search found.

    Args:
        index: The index.
        users: U x du codes.
        reference: U x k ids that an exact search found.
        segments: Items by name (cold, tail, ...), whose recall is told apart.
        timed: Queries that are timed, each alone; 0: none.
    """
    found = index.search(users, reference.shape[1])
    hit, there = hits(reference, found.ids), reference >= 0
    parts = {}
    for name, ids in (segments or {}).items():
        inside = np.isin(reference, ids) & there
        parts[name] = float(hit[inside].mean()) if inside.any() else float("nan")
    start = time.process_time()
    for user in range(min(timed, len(users))):
        index.search(users[user : user + 1], reference.shape[1])
    spent = 1000 * (time.process_time() - start) / max(min(timed, len(users)), 1)
    return Recall(
        float((hit.sum(1) / np.maximum(there.sum(1), 1)).mean()),
        float(found.scored.mean() / max(len(index), 1)),
        spent,
        parts,
    )


def segments(ids: Ids, shown: Ids, tail: float) -> dict[str, Ids]:
    """Return the items that training rows never show (cold) and the least shown others (tail).

    Args:
        ids: N ids.
        shown: How many training rows are of each.
        tail: Share of the shown items that are the tail.
    """
    known = shown > 0
    rare = ids[known][np.argsort(shown[known], kind="stable")]
    return {"cold": ids[~known], "tail": rare[: int(tail * len(rare))]}


class RetrievalEval(Callback):
    """Logs val_recall_SHARE after each validation: of the exhaustive scorer's best items, at fixed shares scored.

    Beside it val_recall_SHARE_cold, of those of these best items that no training row shows, and val_recall_SHARE_tail,
    of those that are shown least, where the data tell and there are any. The items are those of the data; an index is
    built for each evaluation. Runs on rank 0. Before the model has nodes nothing is logged.

    Args:
        shares: Evaluations of a user, nodes included, as shares of the number of items.
        k: Items that count for a user.
        users: Number of users.
        index: Name of an index that has the option `share`.
        tail: Share of the items that training shows, the least shown ones, that are the tail.
    """

    def __init__(
        self,
        shares: Sequence[float] = (0.035, 0.06),
        k: int = 100,
        users: int = 100,
        index: str = "HSNN",
        tail: float = 0.5,
    ) -> None:
        if not 0 <= tail <= 1:
            raise RecloomError(f"RetrievalEval: tail is {tail}", "It is a share, 0 to 1.")
        self.shares, self.k, self.users, self.index, self.tail = list(shares), k, users, index, tail
        self._shown: Ids | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget what other data have shown."""
        self._shown = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Build, search, log."""
        if not isinstance(pl_module, RetrievalModule):
            raise RecloomError(f"RetrievalEval: {type(pl_module).__name__} is no retrieval model")
        parts = pl_module.parts()
        if trainer.sanity_checking or not trainer.is_global_zero or not parts.facts.get("begun", True):
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        items, users = items_of(data, pl_module), users_of(data, pl_module, self.users)
        ids, codes = items.ids.numpy(), encode(pl_module.item_encoder, items)
        asked = encode(pl_module.user_encoder, users)
        if self._shown is None:
            self._shown = shown(data, pl_module, ids)
        apart = {} if self._shown is None else segments(ids, self._shown, self.tail)
        exact = Exhaustive(parts)
        exact.build(ids, codes)
        reference = exact.search(asked, min(self.k, len(ids))).ids
        for share in self.shares:
            index = catalog().indexes.load(self.index)(parts, share=share)  # type: ignore[call-arg]
            index.build(ids, codes)
            found = measure(index, asked, reference, apart, timed=0)
            values = {f"val_recall_{share:g}": found.recall}
            values |= {f"val_recall_{share:g}_{name}": value for name, value in found.segments.items()}
            values = {name: value for name, value in values.items() if not np.isnan(value)}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)
            trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
