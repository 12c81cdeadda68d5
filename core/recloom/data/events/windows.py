"""From a part's events to candidates and their histories: sorted and cut with array operations only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recloom.data.events.options import EventOptions
from recloom.data.hashing import mix64, uniform

_TIES, _CHOICE = 1, 2


def stream(seed: int, number: int) -> int:
    """Return the seed of one of the 8 things that a seed decides."""
    return 8 * seed + number


def in_order(events: NDArray[np.void], seed: int) -> NDArray[np.void]:
    """Return n events by user and time. Equal times come in an order that only the seed and chance decide.

    Ids, or the order of lines, would tell which of two simultaneous events is the later: some logs have both sorted.
    """
    keys = {"group": events["group"].copy(), "time": events["time"].copy()}
    keys["tie"] = uniform(events["position"].copy(), stream(seed, _TIES))
    order = pl.DataFrame(keys).select(pl.arg_sort_by(*keys)).to_series().to_numpy()
    return events[order]


@dataclass
class Windows:
    """The candidates of a part.

    Args:
        candidates: W places of the candidates among the events in order.
        ranks: W counts of the events of the user before each.
    """

    candidates: NDArray[np.int64]
    ranks: NDArray[np.int64]


def windows(events: NDArray[np.void], item: str, options: EventOptions, seed: int, counts: Counter[str]) -> Windows:
    """Return the candidates among n events in order, and add what was found to `counts`.

    Args:
        events: The events, see `in_order`.
        item: The item's column: events of the items that share id 0 are no candidates, for negatives never are either.
        options: What a candidate is.
        seed: Of the choice of a user's candidates.
        counts: Counts of what was found, by name.
    """
    place = np.arange(len(events))
    opens = np.ones(len(events), bool)
    opens[1:] = events["group"][1:] != events["group"][:-1]
    first = np.maximum.accumulate(np.where(opens, place, 0))
    ranks = place - first
    _count(events, opens, counts)
    late = ranks >= options.min_history
    known = events[f"id:{item}"] > 0
    chosen = np.flatnonzero(late & known)
    counts["events with too little history"] += len(events) - int(late.sum())
    counts["events of rare items, no candidates"] += int((late & ~known).sum())
    if options.windows_per_user:
        kept = _per_user(first[chosen], events["position"][chosen], options.windows_per_user, seed)
        counts["candidates beyond --windows-per-user"] += len(chosen) - len(kept)
        chosen = chosen[kept]
    found = ranks[chosen]
    counts["positives"] += len(chosen)
    counts["empty histories"] += int((found == 0).sum())
    counts["truncated histories"] += int((found > options.history).sum())
    return Windows(chosen, found)


def _per_user(users: NDArray[np.int64], positions: NDArray[np.int64], number: int, seed: int) -> NDArray[np.int64]:
    """Return the places of `number` of each user's candidates, drawn at random; of the last one if it is -1."""
    if number == -1:
        last = np.ones(len(users), bool)
        last[:-1] = users[1:] != users[:-1]
        return np.flatnonzero(last)
    order = np.lexsort((uniform(positions.copy(), stream(seed, _CHOICE)), users))
    place = np.arange(len(users))
    opens = np.ones(len(users), bool)
    opens[1:] = users[1:] != users[:-1]  # the users themselves are in order already
    drawn = place - np.maximum.accumulate(np.where(opens, place, 0)) < number
    return np.sort(order[drawn])


def _count(events: NDArray[np.void], opens: NDArray[np.bool_], counts: Counter[str]) -> None:
    """Count the events and users of a part, and what is remarkable about them."""
    sizes = np.diff(np.append(np.flatnonzero(opens), len(events)))
    same = ~opens[1:] & (events["time"][1:] == events["time"][:-1])
    tied = np.append(same, False) | np.append(False, same) if len(events) else same
    names = [name for name in events.dtype.names or () if name != "position"]
    hashes = np.zeros(len(events), np.uint64)
    for name in names:  # equal events have equal hashes, others almost surely not
        hashes = mix64(hashes + events[name].astype(np.int64).view(np.uint64))
    counts["events"] += len(events)
    counts["users"] += len(sizes)
    counts["users with one event"] += int((sizes == 1).sum())
    counts["events at the same time as another of the user"] += int(tied.sum())
    counts["duplicate events, kept"] += len(events) - pl.Series(hashes).n_unique()
