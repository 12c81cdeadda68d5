"""Servers in processes of their own: several workers on one queue, and several services side by side on a machine."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from recloom.errors import RecloomError
from recloom.online.lab import Policy, Queue, Served, WallClock, serve
from recloom.online.load import Schedule


@dataclass(frozen=True)
class Service:
    """A model that answers requests.

    Args:
        config: A config file with `model` and `data`.
        engine: Name of the engine.
        policy: Dynamic batching.
        workers: Processes that take from its queue, each with tables of its own.
        threads: Threads of a worker.
        rows: Rows that requests are made of.
        fresh: Whether ids are drawn anew, uniformly, instead of taken from the data.
    """

    config: Path
    engine: str = "eager"
    policy: Policy = field(default_factory=Policy)
    workers: int = 1
    threads: int = 1
    rows: int = 2048
    fresh: bool = False


def load(service: Service, seed: int = 0) -> tuple[Any, Any]:
    """Return the service's model with random weights, and the pool of its requests' rows."""
    import torch

    from recloom.data.module import BlockDataModule
    from recloom.loading import build_data, instantiate_model, model_section
    from recloom.model import RankingModule
    from recloom.online.inputs import Pool, fresh_ids, pool_of

    data = build_data(service.config)
    if not isinstance(data, BlockDataModule):
        raise RecloomError(f"{service.config}: {type(data).__name__} has no blocks of rows", "Use SyntheticClicks, ...")
    torch.manual_seed(seed)
    module = instantiate_model(model_section(service.config), data.schema)
    if not isinstance(module, RankingModule):
        raise RecloomError(f"{service.config}: {type(module).__name__} is no RankingModule", "Only those can serve.")
    rows = pool_of(data, service.rows)
    return module.eval(), Pool(fresh_ids(rows, module.schema, seed) if service.fresh else rows)


class Fleet:
    """The processes of several services, warm and waiting; `run` lets them serve schedules at the same time.

    Args:
        services: The services.
    """

    def __init__(self, services: Sequence[Service]) -> None:
        context = multiprocessing.get_context("spawn")
        self.services = list(services)
        self._heads = [context.Value("q", 0) for _ in services]
        self._connections: list[list[Connection]] = []
        self._processes = []
        for number, service in enumerate(services):
            self._connections.append([])
            for worker in range(service.workers):
                ours, theirs = context.Pipe()
                arguments = (theirs, service, self._heads[number], 100 * number + worker)
                process = context.Process(target=_work, args=arguments, daemon=True)
                process.start()
                theirs.close()
                self._connections[-1].append(ours)
                self._processes.append(process)
        for connection in self._all():
            _receive(connection)

    def run(self, schedules: Sequence[Schedule], target: float = np.inf) -> list[Served]:
        """Serve a schedule for each service, all starting now; a worker stops when 1% of all requests are late."""
        for head in self._heads:
            head.value = 0
        start = time.monotonic() + 0.1
        for connections, schedule in zip(self._connections, schedules, strict=True):
            for connection in connections:
                connection.send((schedule, start, target))
        return [_merge([_receive(connection) for connection in connections]) for connections in self._connections]

    def close(self) -> None:
        """End the processes."""
        for connection in self._all():
            connection.send(None)
        for process in self._processes:
            process.join(10)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _all(self) -> list[Connection]:
        return [connection for connections in self._connections for connection in connections]


def _work(connection: Connection, service: Service, head: Any, seed: int) -> None:
    import torch

    from recloom.online import engines

    torch.set_num_threads(service.threads)
    try:
        module, pool = load(service, seed)
        engine = engines.build(module, service.engine)
        for size in (1, max(1, service.policy.max_batch)):
            engine(pool.take(size))
    except RecloomError as error:
        connection.send(error)
        return
    connection.send("ready")
    while (job := connection.recv()) is not None:
        schedule, start, target = job
        queue = Queue(schedule, service.policy, head, head.get_lock())
        connection.send(serve(engine, pool, queue, WallClock(start), target))


def _receive(connection: Connection) -> Any:
    try:
        found = connection.recv()
    except EOFError:
        raise RecloomError("a serving process ended", "Its error is printed above.") from None
    if isinstance(found, Exception):
        raise found
    return found


def _merge(parts: Sequence[Served]) -> Served:
    """Return what the workers of one service did together."""
    latencies = np.full(len(parts[0].latencies), np.nan)
    for part in parts:
        mine = ~np.isnan(part.latencies)
        latencies[mine] = part.latencies[mine]
    return Served(
        latencies,
        sum(part.rows for part in parts),
        sum(part.batches for part in parts),
        max(part.seconds for part in parts),
        all(part.finished for part in parts),
    )
