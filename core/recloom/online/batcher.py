"""Dynamic batching behind an endpoint: requests that wait are served together, and no more may wait than a limit."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from recloom.batch import Batch
from recloom.online.engines import Engine


class Full(Exception):
    """The queue is full: the request is turned away."""


class Closing(Exception):
    """The server is shutting down: no new requests."""


class Batcher:
    """Serves requests in batches, one batch at a time, in a thread beside the event loop.

    Args:
        engine: The model.
        max_batch: Most rows of a batch; a larger request makes a batch of its own.
        max_wait: Seconds that a batch waits for more rows while the engine is idle.
        max_queue: Most rows that may wait; with a request beyond that, `submit` raises Full.
        observe: Called with (rows, seconds) of each batch.
    """

    def __init__(
        self,
        engine: Engine,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        observe: Callable[[int, float], None] = lambda rows, seconds: None,
    ) -> None:
        self.engine, self.max_batch, self.max_wait, self.max_queue = engine, max_batch, max_wait, max_queue
        self.waiting = 0
        self.closing = False
        self._observe = observe
        self._queue: deque[tuple[Batch, asyncio.Future[Tensor]]] = deque()
        self._thread = ThreadPoolExecutor(1, "recloom-engine")
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to serve; call it in the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def full(self) -> bool:
        """Whether not even one more row may wait."""
        return self.waiting >= self.max_queue

    async def submit(self, batch: Batch) -> Tensor:
        """Return the answer to a request, when it is there; raise Full or Closing at once."""
        if self.closing:
            raise Closing
        if self.waiting + len(batch) > self.max_queue:
            raise Full
        future: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
        self._queue.append((batch, future))
        self.waiting += len(batch)
        self._more.set()
        return await future

    async def close(self) -> None:
        """Take no more requests, answer those that wait, and end."""
        self.closing = True
        self._more.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue or not self.closing:
            if not self._queue:
                self._more.clear()
                await self._more.wait()
                continue
            if self.max_wait and self.waiting < self.max_batch and not self.closing:
                await asyncio.sleep(self.max_wait)
            taken = self._take()
            if not taken:
                continue
            start = loop.time()
            try:
                whole = Batch.concat([batch for batch, _ in taken]) if len(taken) > 1 else taken[0][0]
                out = await loop.run_in_executor(self._thread, self.engine, whole)
            except Exception as error:  # whatever a model raises: the requests fail, the server goes on
                for _, future in taken:
                    if not future.done():
                        future.set_exception(error)
                continue
            self._observe(len(whole), loop.time() - start)
            for part, (_, future) in zip(out.split([len(batch) for batch, _ in taken]), taken, strict=True):
                if not future.done():
                    future.set_result(part)

    def _take(self) -> list[tuple[Batch, asyncio.Future[Tensor]]]:
        """Return the requests of the next batch; those whose client has gone are dropped."""
        taken: list[tuple[Batch, asyncio.Future[Tensor]]] = []
        rows = 0
        while self._queue and (not taken or rows + len(self._queue[0][0]) <= self.max_batch):
            batch, future = self._queue.popleft()
            self.waiting -= len(batch)
            if not future.done():
                taken.append((batch, future))
                rows += len(batch)
        return taken
