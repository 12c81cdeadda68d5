"""What carries a round's exchanges: the base, and the process group of a run's own for means of all replicas."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from recloom_shadowsync.compression import BLOCK, Compression, Feedback, decode, encode, encoded_bytes
from recloom_shadowsync.members import Gone, Members
from recloom_shadowsync.replica import Exchange
from recloom_shadowsync.status import FIELDS, Status, Table


class Transport(ABC):
    """Carries the requests of one rank's rounds. Called from one thread."""

    sent: int = 0
    """Bytes of weights that this rank has sent."""

    leads: bool = True
    """Whether this rank exchanges the weights of the replica that it trains; another one does if it is shared."""

    @abstractmethod
    def meet(self, status: Status) -> Table:
        """Tell `status`; return all ranks' states. Raises Gone if a rank is not there any more."""

    @abstractmethod
    def exchange(self, request: Exchange) -> Tensor:
        """Exchange weights; see `Exchange`. Raises Gone as `meet` does."""

    @abstractmethod
    def missing(self) -> str:
        """Find out, after Gone, who is not there any more; return a clause about it. Raises Gone if it cannot."""

    def heal(self) -> None:  # noqa: B027 (some have nothing to do)
        """Go on with those who are left, after `missing`. Raises Gone if that fails too."""

    def interrupted(self) -> bool:
        """Whether something has happened for which a pause between rounds must end."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Drop all connections; a call that another thread is in fails then."""

    def farewell(self) -> None:  # noqa: B027
        """Say that this rank has finished."""

    def leave(self, why: str) -> None:  # noqa: B027
        """Say that this rank stops before the end, and why. Called from any thread."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps: what compression owes."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Take back what `state_dict` returned."""


class GroupTransport(Transport):
    """Means over replicas by collectives of a gloo group that nothing else uses, on the CPU.

    Args:
        members: Who takes part.
        leads: For a rank, whether it exchanges weights, given all ranks that are there.
        compression: Of the weights.
        carry: Of the error feedback; see `Feedback`.
        timeout: How long a round waits for the other ranks.
    """

    def __init__(
        self,
        members: Members,
        leads: Callable[[int, list[int]], bool],
        compression: Compression,
        carry: float,
        timeout: timedelta,
    ) -> None:
        self.members = members
        self.timeout = timeout
        self.compression: Compression = compression
        self._leads = leads
        self._carry = carry
        self._connect()

    def _connect(self) -> None:
        # what was owed was owed by parts of the vector that a smaller group cuts elsewhere
        self._give, self._reduce = Feedback(self.compression, self._carry), Feedback(self.compression)
        ranks, rank = self.members.ranks, self.members.rank
        self._control = self._group("control", ranks)
        leaders = [other for other in ranks if self._leads(other, ranks)]
        self.leads = rank in leaders
        if leaders == ranks:
            self._payload = self._control
        else:
            self._payload = self._group("payload", leaders) if self.leads else None

    def _group(self, name: str, ranks: list[int]) -> Any:
        if len(ranks) == 1:
            return None
        store = dist.PrefixStore(  # type: ignore[attr-defined]
            f"generation/{self.members.generation}/{name}", self.members.store
        )
        return dist.ProcessGroupGloo(store, ranks.index(self.members.rank), len(ranks), timeout=self.timeout)

    def meet(self, status: Status) -> Table:
        """Gather all ranks' states."""
        mine = status.encode()
        if self._control is None:
            return Table((status,), self.members.lost)
        rows = torch.empty(self._control.size(), FIELDS, dtype=torch.int64)
        self._wait(lambda group: group.allgather([list(rows.unbind(0))], [mine]), self._control)
        return Table.decode(rows, self.members.lost)

    def exchange(self, request: Exchange) -> Tensor:
        """Return the mean of what the replicas that give gave."""
        if self._payload is None:
            assert request.values is not None
            return request.values.clone()
        if self.compression != "none":
            return self._compressed(request, self._payload)
        total = torch.zeros(request.length) if request.values is None else request.values.clone()
        self._wait(lambda group: group.allreduce([total]), self._payload)
        ranks = self._payload.size()
        self.sent += 2 * (ranks - 1) * request.length * 4 // ranks
        return total.div_(request.givers)

    def _compressed(self, request: Exchange, group: Any) -> Tensor:
        """Add up what was given, part by part: all send part r to rank r, and it sends the mean of its part to all.

        What travels are differences from what all agreed on last, which are small.
        """
        ranks = group.size()
        part = -(-request.length // (ranks * BLOCK)) * BLOCK
        base = F.pad(request.reference, (0, part * ranks - len(request.reference)))
        given = torch.zeros(part * ranks)
        if request.values is not None:
            given[: request.length] = request.values
            given -= base
        size = encoded_bytes(part, self.compression)
        data = self._give.encode(given.view(ranks, part)) if request.values is not None else self._nothing(ranks, part)
        received = torch.empty(ranks, size, dtype=torch.uint8)
        self._wait(lambda g: g.alltoall_base(received, data.contiguous(), [], []), group)
        mean = decode(received, self.compression, part).sum(0, keepdim=True).div_(request.givers)
        mine = self._reduce.encode(mean)
        gathered = torch.empty(ranks, size, dtype=torch.uint8)
        self._wait(lambda g: g.allgather([list(gathered.unbind(0))], [mine.view(-1)]), group)
        self.sent += 2 * (ranks - 1) * size
        return decode(gathered, self.compression, part).flatten().add_(base)[: request.length]

    def _nothing(self, ranks: int, part: int) -> Tensor:
        return encode(torch.zeros(ranks, part), self.compression)

    def missing(self) -> str:
        """Agree with the others on who is left."""
        self.close()
        gone = self.members.agree()
        return self.members.reasons(gone) if gone else "a connection broke"

    def heal(self) -> None:
        """Make a new group of those who are left."""
        self._connect()

    def leave(self, why: str) -> None:
        """Say why this rank stops."""
        self.members.leave(why)

    def interrupted(self) -> bool:
        """Whether another rank has noticed that somebody is gone."""
        try:
            return self.members.changed()
        except Gone:  # the round that follows finds out
            return True

    def close(self) -> None:
        """Abort the groups."""
        for group in {self._control, self._payload} - {None}:
            group.abort()

    def state_dict(self) -> dict[str, Tensor]:
        """Return what compression owes."""
        owed = {"give": self._give.state_dict(), "reduce": self._reduce.state_dict()}
        return {f"{name}.{key}": value for name, state in owed.items() for key, value in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what compression owes."""
        for name, feedback in (("give", self._give), ("reduce", self._reduce)):
            prefix = f"{name}."
            feedback.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def _wait(self, start: Callable[[Any], dist.Work], group: Any) -> None:
        try:
            start(group).wait()
        except RuntimeError as error:
            raise Gone(f"a round of synchronisation broke off: {str(error).splitlines()[0]}") from error
