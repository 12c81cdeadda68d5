"""One fit's synchronisation: its replica, its transport, its session and its servers, put together on every rank."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from recloom.errors import RecloomError
from recloom.sync import SyncAlgorithm
from recloom_shadowsync.background import Background
from recloom_shadowsync.client import ServerProcess, ServerTransport
from recloom_shadowsync.compression import Compression
from recloom_shadowsync.foreground import Foreground
from recloom_shadowsync.members import Members, local_address, make_store
from recloom_shadowsync.replica import Replica, Rows, Write
from recloom_shadowsync.session import OnPeerLoss, Session
from recloom_shadowsync.stats import SyncStats
from recloom_shadowsync.throttle import Throttle, threads
from recloom_shadowsync.transport import GroupTransport, Transport
from recloom_shadowsync.weights import Weights


@dataclass(frozen=True)
class Setting:
    """How to synchronise; see `ShadowSyncStrategy`, whose options these are."""

    algorithm: SyncAlgorithm
    every: int
    alpha: float
    write: Write
    rows: Rows
    compression: Compression
    hogwild: int
    cpu_budget: float
    min_interval: float
    on_peer_loss: OnPeerLoss
    round_timeout: float
    servers: list[str]
    num_servers: int

    def check(self) -> None:
        """Raise RecloomError about the first value that makes no sense."""
        for name, value, least in (
            ("every", self.every, 0),
            ("hogwild", self.hogwild, 1),
            ("num_servers", self.num_servers, 1),
        ):
            if value < least:
                raise RecloomError(f"strategy: {name} is {value}", f"It is at least {least}.")
        if not 0 < self.alpha <= 1:
            raise RecloomError(f"strategy: alpha is {self.alpha}", "It is above 0 and at most 1.")
        if not 0 < self.cpu_budget <= 1:
            raise RecloomError(f"strategy: cpu_budget is {self.cpu_budget}", "A share of a CPU: above 0 and at most 1.")
        if self.round_timeout <= 0 or self.min_interval < 0:
            raise RecloomError("strategy: round_timeout and min_interval are seconds", "The first is above 0.")
        for server in self.servers:
            if not server.rpartition(":")[2].isdigit() or not server.rpartition(":")[0]:
                raise RecloomError(f"strategy: server {server!r}", "Write HOST:PORT.")
        if self.rows == "sum" and self.algorithm.exchange == "server":
            raise RecloomError(
                f"{type(self.algorithm).__name__} knows no `rows: sum`: its replicas pull at a server's weights",
                "Use shadow_ma or shadow_bmuf, or tables: shared.",
            )
        if self.servers and self.algorithm.exchange != "server":
            raise RecloomError(f"{type(self.algorithm).__name__} needs no servers", "Leave `servers` out.")


class Run:
    """Puts a fit's synchronisation together: all ranks at once, on the main thread, while they are still in step.

    Args:
        setting: How to synchronise.
        weights: What to synchronise.
        restored: What a checkpoint held of this rank, to go on from.
    """

    def __init__(self, setting: Setting, weights: Weights, restored: dict[str, Any] | None = None) -> None:
        self.setting, self.weights = setting, weights
        self.rank, self.world = weights.rank, weights.world
        self.token: str = _from_first(restored["run"] if restored else secrets.token_hex(16))
        self._stats = SyncStats(self.world)
        self._servers: ServerProcess | None = None
        self.replica = Replica(
            weights.view.flat, setting.algorithm, setting.alpha, setting.write, weights.view.segments, setting.rows,
            weights.model, self.rank == weights.group[0],
        )  # fmt: skip
        self._start(restored)
        before = threads()
        self.transport: Transport = self._by_server() if setting.algorithm.exchange == "server" else self._by_group()
        if restored:
            self.transport.load_state_dict(restored["transport"])
        helpers = tuple(sorted(threads() - before))
        self.session = self._session(helpers)

    def _start(self, restored: dict[str, Any] | None) -> None:
        """Begin from the common weights, or from what rank 0 remembers that all had agreed on."""
        self.replica.start()
        if not _from_first(restored is not None):
            return
        reference = restored["reference"].clone() if restored else torch.empty_like(self.replica.reference)
        dist.broadcast(reference, 0)
        self.setting.algorithm.start(reference)
        self.setting.algorithm.load_state_dict(_from_first(restored["algorithm"] if restored else {}))
        self.replica.restore(self.replica.flat, reference)
        if restored:
            self.replica.samples, self.replica.steps = restored["samples"], restored["steps"]
            self._stats.begin(self.replica.steps)

    def _by_group(self) -> Transport:
        setting = self.setting
        timeout = timedelta(seconds=setting.round_timeout)
        members = Members(make_store(self.rank, self.world, timeout), self.rank, self.world)
        size = setting.hogwild

        def leads(rank: int, present: list[int]) -> bool:
            return rank == min(other for other in present if other // size == rank // size)

        return GroupTransport(members, leads, setting.compression, setting.alpha, timeout)

    def _by_server(self) -> Transport:
        setting, addresses = self.setting, self.setting.servers
        if not addresses:
            if self.rank == 0:
                host = local_address()
                self._servers = ServerProcess(setting.algorithm, setting.num_servers, host, setting.round_timeout)
                addresses = self._servers.addresses
            addresses = _from_first(addresses)
        session_id = bytes.fromhex(_from_first(secrets.token_hex(16)))  # not the token: a resumed run begins anew there

        def connect() -> ServerTransport:
            return ServerTransport(
                addresses, session_id, self.rank, self.world, self.replica.reference,
                setting.compression, setting.alpha, setting.round_timeout,
            )  # fmt: skip

        if self.rank == 0:  # it brings the weights
            transport = connect()
            _from_first(True)  # and waits for nobody: whoever goes on from here can be lost
            return transport
        _from_first(None)
        return connect()

    def _session(self, helpers: tuple[int, ...]) -> Session:
        setting = self.setting
        kind = Foreground if setting.every else Background
        session = kind(
            self.rank, self.replica, self.transport, setting.on_peer_loss, self._stats, fence=setting.hogwild > 1
        )
        if isinstance(session, Foreground):
            session.every = setting.every
        elif isinstance(session, Background):
            session.throttle = lambda: Throttle(setting.cpu_budget, setting.min_interval, helpers)
        return session

    @property
    def lost(self) -> int:
        """Number of ranks that are gone."""
        return self._stats.lost

    def count(self, batch: Any) -> None:
        """Count the samples of a batch that is about to be trained on."""
        self._stats.batch = batch_size(batch)
        self.replica.samples += self._stats.batch

    def figures(self) -> dict[str, float]:
        """Return this rank's figures so far, and rates since the last call."""
        return {**self.stats(), **self._stats.window(self.transport.sent)}

    def stats(self) -> dict[str, float]:
        """Return this rank's figures so far."""
        return self._stats.summary(self.transport.sent)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this rank."""
        model, replica = self.replica.copies()
        return {
            "run": self.token,
            "world_size": self.world,
            "replica": replica,
            "reference": model,
            "algorithm": {name: value.clone() for name, value in self.setting.algorithm.state_dict().items()},
            "transport": {name: value.clone() for name, value in self.transport.state_dict().items()},
            "samples": self.replica.samples,
            "steps": self.replica.steps,
        }

    def close(self, why: str | None) -> None:
        """End the session, because of `why` if it has not finished; end the servers."""
        if why is not None:
            self.session.stop(why)
        if self._servers is not None:
            self._servers.close()


def batch_size(batch: Any) -> int:
    """Return the samples in a batch of recloom's, or in whatever nest of tensors it is; 0 if nothing tells."""
    labels = getattr(batch, "labels", batch)
    if isinstance(labels, Tensor):
        return len(labels) if labels.ndim else 1
    parts = list(labels.values()) if isinstance(labels, dict) else labels
    return batch_size(parts[0]) if isinstance(parts, list | tuple) and parts else 0


def _from_first(value: Any) -> Any:
    """Return rank 0's value."""
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]
