"""From blocks of rows to batches: worker processes load whole blocks, the main process slices batches from them.

The sequence of batches is a function of the source, the batch size, the rank and the epoch alone: the number of
workers doesn't change it, and a position in it is two numbers, so a run resumes in mid-epoch exactly.
"""

from __future__ import annotations

import logging
import weakref
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import DataLoader

from recloom.batch import Batch
from recloom.data.plan import EpochPlan, RankSplit
from recloom.data.workers import Blocks, Order, as_is, end_with_parent, load, start_server
from recloom.errors import DataError, RecloomError

_LOG = logging.getLogger(__name__)


class BlockSource(ABC):
    """A data set as blocks of rows, in an order of its own in each epoch. Workers get it pickled."""

    @abstractmethod
    def block_rows(self, epoch: int) -> Sequence[int]:
        """Return the rows of each block, in the order of `epoch`; their sum is the same in every epoch."""

    @abstractmethod
    def load(self, epoch: int, index: int) -> Batch:
        """Return block number `index` of that order; the same rows whenever and wherever it is called.

        Its ids may be int32, which halves what workers send; batches have int64.
        """


class BatchLoader:
    """The batches of one split on one rank; each new iteration is the next epoch.

    Args:
        source: Where blocks come from.
        batch_size: Rows of a batch, per rank.
        drop_last: See `EpochPlan`.
        num_workers: Processes that load blocks; 0 loads them in this process.
        rank: This process's rank.
        world_size: Number of ranks.
        rank_split: See `EpochPlan`.
        prefetch: Blocks that each worker loads ahead.
        epoch: The epoch of the first iteration.
    """

    def __init__(
        self,
        source: BlockSource,
        batch_size: int,
        *,
        drop_last: bool,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        rank_split: RankSplit = "blocks",
        prefetch: int = 2,
        epoch: int = 0,
    ) -> None:
        self.source = source
        self.batch_size = batch_size
        self._plan_options = (batch_size, rank, world_size, rank_split, drop_last)
        self._epoch, self._batch = epoch - 1, 0
        self._resumed: tuple[int, int] | None = None
        self._set_epoch: int | None = None
        plan = self._plan(max(epoch, 0))
        self._length, self._any_plan = len(plan), plan
        if plan.used < plan.total and rank == 0:
            _LOG.info("%s of %s rows of an epoch do not fill a batch", f"{plan.total - plan.used:,}", f"{plan.total:,}")
        self._order = Order()
        self._num_workers, self._prefetch = num_workers, prefetch
        self._workers: DataLoader | None = None
        self._running: weakref.ref[Generator[Any]] | None = None
        self._start_method = start_server() if num_workers else ""

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        # The epoch is taken at the first batch, not here: Lightning makes iterators before it sets the epoch.
        self._epoch, first = self._start()
        plan = self._plan(self._epoch)
        blocks, begin, end, block = self._blocks(plan, first), 0, 0, None
        self._running = weakref.ref(blocks)
        for index in range(first, len(plan)):
            parts = []
            start, stop = plan.span(index)
            while start < stop:
                while end <= start:
                    begin, end, block = next(blocks)
                assert block is not None
                parts.append(block.rows(start - begin, min(stop, end) - begin))
                start = min(stop, end)
            self._batch = index + 1
            yield parts[0] if len(parts) == 1 else Batch.concat(parts)

    def span(self, index: int) -> tuple[int, int]:
        """Return which rows of an epoch batch number `index` has: the first one, and the one after its last.

        Where nothing is shuffled, as in validation, test and prediction, this is the order of the data set.
        """
        return self._any_plan.span(index)

    def close(self) -> None:
        """Stop the workers; the next iteration starts new ones."""
        running = self._running() if self._running is not None else None
        if running is not None:
            running.close()
        self._workers = None

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of `epoch`."""
        self._set_epoch = epoch

    @property
    def batch_sampler(self) -> Any:
        """Where Lightning looks for `set_epoch`: in `loader.batch_sampler.sampler`."""
        return SimpleNamespace(sampler=self)

    def state_dict(self) -> dict[str, int]:
        """Return the position: the epoch, how many batches of it were handed out, and how many it has."""
        return {"epoch": max(self._epoch, 0), "batch": self._batch, "batches": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next iteration go on where `state` was taken."""
        batch = state["batch"]
        if state["batches"] != len(self):
            batch = batch * len(self) // state["batches"]
            _LOG.warning(
                "an epoch has %d batches now and had %d in the checkpoint: another batch size, number of ranks or data;"
                " going on at the same fraction of the epoch, where some rows may be seen twice or left out",
                len(self),
                state["batches"],
            )
        self._resumed = (state["epoch"], batch)

    def _start(self) -> tuple[int, int]:
        """Return the epoch and the batch to begin with."""
        wanted, resumed = self._set_epoch, self._resumed
        self._set_epoch = self._resumed = None
        if resumed is None:
            return (self._epoch + 1 if wanted is None else wanted), 0
        if wanted not in (None, resumed[0]):  # Lightning has gone on to another epoch
            return wanted, 0
        return resumed if resumed[1] < len(self) else (resumed[0] + 1, 0)

    def _plan(self, epoch: int) -> EpochPlan:
        return EpochPlan(self.source.block_rows(epoch), *self._plan_options)

    def _blocks(self, plan: EpochPlan, first: int) -> Generator[tuple[int, int, Batch]]:
        """Yield (first row, row after the last, block) from the block of batch `first` to that of the last batch."""
        low, high = plan.span(first)[0], plan.span(len(plan) - 1)[1]
        begins = [0, *plan.ends[:-1]]
        needed = [i for i, (begin, end) in enumerate(zip(begins, plan.ends, strict=True)) if begin < high and end > low]
        self._order.items = [(self._epoch, index) for index in needed]
        loaded: Iterator[Any] | None = None
        for index in needed:
            try:
                loaded = loaded or self._loaded()
                block = next(loaded)
            except (RuntimeError, EOFError, ConnectionError) as error:
                if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                    raise
                raise DataError(
                    f"a process that loads data died: {error}",
                    "Memory or /dev/shm may be full (docker: --shm-size). A script of your own needs its code under"
                    " `if __name__ == '__main__':`. num_workers=0 loads in the main process.",
                ) from error
            if isinstance(block, RecloomError):
                try:
                    raise block
                finally:
                    del block  # or the error and this frame keep each other, and the workers, alive
            yield begins[index], plan.ends[index], block

    def _loaded(self) -> Iterator[Any]:
        """Return the blocks of `self._order`, each a Batch or an error."""
        if not self._num_workers:
            return (load(self.source, item) for item in self._order)
        if self._workers is None:
            self._workers = DataLoader(
                Blocks(self.source),
                batch_size=None,
                sampler=self._order,
                num_workers=self._num_workers,
                collate_fn=as_is,
                multiprocessing_context=self._start_method,
                generator=torch.Generator(),  # or each iteration would draw from the global one
                persistent_workers=True,
                prefetch_factor=self._prefetch,
                worker_init_fn=end_with_parent,
            )
        return iter(self._workers)
