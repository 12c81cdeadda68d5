"""Several replicas in one process, in lock step: asynchronous rounds, in an order that the caller chooses."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from recloom_shadowsync.replica import Exchange, Meet, Replica, Round
from recloom_shadowsync.status import Status, Table


class LockStep:
    """Drives the rounds of several replicas in one process, deterministically.

    `begin` takes the replicas up to where their weights are copied and on their way; whatever the caller does to the
    weights then is what training does meanwhile; `end` delivers. With a server, replicas are served in order.

    Args:
        replicas: The replicas, `start` not called yet.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = replicas
        self.center = replicas[0].flat.clone()
        self._rounds: list[tuple[Generator[Meet | Exchange, Any, Round], Exchange]] = []
        for replica in replicas:
            replica.start()

    def begin(self, statuses: Sequence[Status] | None = None) -> None:
        """Start a round on every replica: states told, weights copied."""
        statuses = statuses or [Status(rank, steps=r.steps) for rank, r in enumerate(self.replicas)]
        rounds = [replica.round(status) for replica, status in zip(self.replicas, statuses, strict=True)]
        for running in rounds:
            next(running)
        self._rounds = []
        for running in rounds:
            request = running.send(Table(tuple(statuses)))
            assert isinstance(request, Exchange)
            self._rounds.append((running, request))

    def end(self) -> list[Round]:
        """Deliver what was exchanged, and let every replica write."""
        requests = [request for _, request in self._rounds]
        if self.replicas[0].algorithm.exchange == "mean":
            answers = [self._mean(requests)] * len(requests)
        else:
            answers = [self._serve(r, request) for r, request in zip(self.replicas, requests, strict=True)]
        return [_finish(running, answer.clone()) for (running, _), answer in zip(self._rounds, answers, strict=True)]

    def round(self, statuses: Sequence[Status] | None = None) -> list[Round]:
        """Do a whole round with nothing in between: what a foreground strategy does."""
        self.begin(statuses)
        return self.end()

    def _mean(self, requests: Sequence[Exchange]) -> Tensor:
        given = [request.values for request in requests if request.values is not None]
        return torch.stack(given).sum(0).div_(requests[0].givers)

    def _serve(self, replica: Replica, request: Exchange) -> Tensor:
        answer = self.center if request.values is None else replica.algorithm.merge(self.center, request.values)
        return answer.clone()


def _finish(running: Generator[Meet | Exchange, Any, Round], answer: Tensor) -> Round:
    try:
        running.send(answer)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("a round asks for one exchange")
