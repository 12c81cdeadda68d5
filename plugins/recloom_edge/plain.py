"""What events.c does, as loops in Python: for machines without a C compiler, some thirty times slower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def levels(
    source: Tensor, destination: Tensor, offset: int, nodes: Tensor, window: int, state: Tensor, out: Tensor | None
) -> None:
    """See kernels.levels."""
    level, keep = nodes[:, 0].tolist(), nodes[:, 1].tolist()
    done, floor, top = state.tolist()
    found = []
    for u, v in zip(source.tolist(), destination.tolist(), strict=True):
        v += offset
        if window and done % window == 0:
            floor = top
        here = max(level[u], level[v], floor) + 1
        level[u], level[v] = here & keep[u], here & keep[v]
        top, done = max(top, here), done + 1
        found.append(here)
    nodes[:, 0] = torch.tensor(level, dtype=torch.int32)
    state.copy_(torch.tensor([done, floor, top]))
    if out is not None:
        out.copy_(torch.tensor(found, dtype=torch.int32))


def critical_path(
    source: Tensor, destination: Tensor, offset: int, keep: Tensor, segments: int, carried: Tensor
) -> int:
    """See kernels.critical_path; adds to `carried`."""
    read: dict[int, tuple[int, int]] = {}  # by node: level and event, as others read them
    newest: dict[int, tuple[int, int]] = {}  # of decoupled nodes, as they are
    before: list[tuple[int, int]] = []
    kept, longest, last = keep.tolist(), 0, -1
    starts = {len(source) * segment // segments for segment in range(1, segments)}
    for event, (u, v) in enumerate(zip(source.tolist(), (destination + offset).tolist(), strict=True)):
        if event in starts:
            read.update(newest)
        a, b = read.get(u, (0, -1)), read.get(v, (0, -1))
        level = max(a[0], b[0]) + 1
        before.append((a[1], u) if a[0] >= b[0] else (b[1], v))
        for node in (u, v):
            (read if kept[node] else newest)[node] = (level, event)
        if level > longest:
            longest, last = level, event
    while last >= 0 and before[last][0] >= 0:
        carried[before[last][1]] += kept[before[last][1]]
        last = before[last][0]
    return longest


def plan(source: Tensor, destination: Tensor, offset: int, cut: Tensor | None, given: Tensor | None) -> Any:
    """See kernels.plan; returns the plan's tensors."""
    n = len(source)
    places: dict[int, int] = {}
    for node in [] if given is None else given.tolist():
        places.setdefault(node, len(places))
    newest = {node: 2 * n + place for node, place in places.items()}
    placed: list[list[int]] = []
    read: list[list[int]] = []
    seen: list[list[int]] = []
    level: list[int] = []
    for event, ends in enumerate(zip(source.tolist(), (destination + offset).tolist(), strict=True)):
        for node in ends:
            newest.setdefault(node, 2 * n + places.setdefault(node, len(places)))
        placed.append([places[node] for node in ends])
        seen.append([newest[node] for node in ends])
        read.append([2 * n + places[node] if cut is not None and cut[node] else newest[node] for node in ends])
        level.append(1 + max((level[row >> 1] for row in read[-1] if row < 2 * n), default=0))
        newest.update({node: 2 * event + side for side, node in enumerate(ends)})
    by_level = torch.tensor(level, dtype=torch.int64)
    counts = torch.bincount(by_level)[1:] if n else torch.zeros(0, dtype=torch.int64)
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    tables = ([*places], placed, read, seen, [newest[node] for node in places], by_level.argsort(stable=True), bounds)
    nodes, *pairs, last, order, bounds = (torch.as_tensor(table, dtype=torch.int32) for table in tables)
    return nodes, *(pair.view(n, 2) for pair in pairs), last, order, bounds


def history(
    source: Tensor,
    destination: Tensor,
    now: Tensor,
    offset: int,
    time: Tensor,
    recent: Tensor,
    when: Tensor,
    gaps: Tensor,
    found: Tensor,
    ages: Tensor,
) -> None:
    """See kernels.history; fills gaps, found and ages."""
    for event, (u, v, moment) in enumerate(zip(source.tolist(), destination.tolist(), now.tolist(), strict=True)):
        for side, node in enumerate((u, v + offset)):
            last = int(time[node])
            gaps[event, side] = moment - last if last >= 0 else -1
        time[u] = time[v + offset] = moment
        found[event] = recent[u]
        ages[event] = torch.where(recent[u] >= 0, moment - when[u], -1)
        if width := recent.shape[1]:
            line = recent[u].tolist()
            kept = [place for place in range(width) if place != (line.index(v) if v in line else width - 1)]
            recent[u] = torch.cat([recent.new_tensor([v]), recent[u, kept]])
            when[u] = torch.cat([when.new_tensor([moment]), when[u, kept]])


def recent_places(
    source: Tensor,
    destination: Tensor,
    asked: Tensor,
    head: Tensor,
    follow: Tensor,
    item: Tensor,
    used: Tensor,
    places: Tensor,
    length: Tensor,
) -> None:
    """See kernels.recent_places; fills places and length."""
    for event, (u, v) in enumerate(zip(source.tolist(), destination.tolist(), strict=True)):
        cells, cell = [], int(head[u])
        while cell >= 0:
            cells.append(cell)
            cell = int(follow[cell])
        line = item[cells].tolist()
        places[event] = torch.tensor([line.index(x) if x in line else -1 for x in asked[event].tolist()])
        length[event] = len(line)
        if v in line:
            cells.insert(0, cells.pop(line.index(v)))
        else:
            cells.insert(0, int(used[0]))
            item[cells[0]] = v
            used += 1
        head[u] = cells[0]
        follow[cells] = torch.tensor([*cells[1:], -1], dtype=torch.int32)


def candidates(destination: Tensor, size: int, group: int, most: int, random: Tensor) -> tuple[Tensor, ...]:
    """See candidates._candidates."""
    places: dict[int, int] = {}
    chosen, starts, wanted = [], [0], []
    for drawn, events in zip(random.tolist(), destination.split(group), strict=True):
        own = dict.fromkeys(events.tolist())
        wanted.append(max(most - len(own), 1))
        own |= dict.fromkeys(drawn[: wanted[-1]])
        chosen += [places.setdefault(each, len(places)) for each in own]
        starts.append(len(chosen))
    ids = torch.tensor([*places], dtype=torch.int64)
    place = torch.full((size,), -1, dtype=torch.int32)
    place[ids] = torch.arange(len(ids), dtype=torch.int32)
    return place, ids, *(torch.tensor(table, dtype=torch.int32) for table in (chosen, starts, wanted))
