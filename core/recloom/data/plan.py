"""Which rows of an epoch make up each batch of each rank."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

from recloom.errors import DataError

RankSplit = Literal["blocks", "rows"]


class EpochPlan:
    """Which rows of an epoch's blocks, laid end to end, make up each batch of one rank.

    Args:
        rows: Rows of each block.
        batch_size: Rows of a batch on each of the `world_size` ranks.
        rank: The rank that is planned for.
        world_size: Number of ranks.
        rank_split: "blocks": rank r takes the r-th of equal spans of the epoch, and reads only the blocks under it.
            "rows": rank r takes the r-th part of every global batch, so that R ranks with batch size B see what one
            rank with R*B sees.
        drop_last: Only full batches, for training. Otherwise no row is left out, and the ranks still have equally
            many batches: a rank that is short of rows splits its last batch in two.

    Raises:
        DataError: There are too few rows.
    """

    def __init__(
        self, rows: Sequence[int], batch_size: int, rank: int, world_size: int, rank_split: RankSplit, drop_last: bool
    ) -> None:
        self.ends = list(accumulate(rows))
        self.total = self.ends[-1] if self.ends else 0
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._by_rows = rank_split == "rows"
        self._drop_last = drop_last
        if self.total < (batch_size * world_size if drop_last else world_size):
            least = f"a batch of {batch_size:,}" if drop_last else "a row"
            raise DataError(
                f"{self.total:,} rows are too few for {least} on each of {world_size} rank{'s' * (world_size > 1)}",
                "Use a smaller batch size, fewer ranks or more data.",
            )
        # per rank, the longest share; drop_last gives all ranks the shortest
        share = self.total // world_size if drop_last else -(-self.total // world_size)
        self._length = share // batch_size if drop_last else -(-share // batch_size)
        if not drop_last and batch_size == 1 and self.total % world_size:
            raise DataError("one row a batch cannot be spread evenly over the ranks", "Use a batch size of 2 or more.")

    @property
    def used(self) -> int:
        """Rows that all ranks together use."""
        return self._length * self._batch_size * self._world_size if self._drop_last else self.total

    def __len__(self) -> int:
        return self._length

    def span(self, index: int) -> tuple[int, int]:
        """Return the first row and the row after the last of batch number `index`."""
        size, rank, ranks = self._batch_size, self._rank, self._world_size
        if self._drop_last:
            start = (index * ranks + rank) * size if self._by_rows else rank * (self.total // ranks) + index * size
            return start, start + size
        if self._by_rows:
            # every rank needs a row of the last global batch: the one before it gives some up if it must
            cuts = [min(i * size * ranks, self.total - (i < self._length) * ranks) for i in (index, index + 1)]
            first, count = cuts[0], cuts[1] - cuts[0]
            return first + count * rank // ranks, first + count * (rank + 1) // ranks
        first, end = self.total * rank // ranks, self.total * (rank + 1) // ranks
        # a rank with one row less than others may have a batch less: cut a row off its last full batch for another
        cuts = [min(first + i * size, end - (i < self._length)) for i in (index, index + 1)]
        return cuts[0], cuts[1]
