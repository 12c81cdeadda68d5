"""A replica's connections to sync servers, each of which holds a part of the centre."""

from __future__ import annotations

import contextlib
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from recloom.sync import SyncAlgorithm
from recloom_shadowsync import wire
from recloom_shadowsync.compression import Compression, Feedback, decode, encoded_bytes
from recloom_shadowsync.members import Gone
from recloom_shadowsync.replica import Exchange
from recloom_shadowsync.server import KINDS
from recloom_shadowsync.status import FIELDS, Status, Table
from recloom_shadowsync.transport import Transport
from recloom_shadowsync.wire import Op


class ServerTransport(Transport):
    """Pushes to servers and takes their answers, at this rank's own pace.

    Args:
        servers: HOST:PORT of each.
        run: 16 bytes that name the run.
        rank: This process's rank.
        world_size: Number of ranks.
        weights: What all replicas begin with, P; rank 0 gives it to the servers, and must connect before the others.
        compression: Of the weights.
        carry: Of the error feedback; see `Feedback`.
        timeout: Seconds to wait for an answer.
    """

    def __init__(
        self,
        servers: Sequence[str],
        run: bytes,
        rank: int,
        world_size: int,
        weights: Tensor,
        compression: Compression,
        carry: float,
        timeout: float,
    ) -> None:
        self.rank = rank
        self.compression: Compression = compression
        self._lost = 0
        self._bounds = [len(weights) * i // len(servers) for i in range(len(servers) + 1)]
        self._feedback = [Feedback(compression, carry) for _ in servers]
        self._sockets: list[socket.socket] = []
        for server, part in zip(servers, self._parts(weights), strict=True):
            self._sockets.append(self._open(server, run, world_size, part, timeout))
        self._sending, self._closed = threading.Lock(), threading.Event()
        threading.Thread(target=self._beat, args=(min(1.0, timeout / 4),), daemon=True).start()

    def _beat(self, seconds: float) -> None:
        """Let the first server hear of this process while it validates or waits for data."""
        while not self._closed.wait(seconds):
            try:
                with self._sending:
                    wire.send(self._sockets[0], Op.BEAT, self.rank)
            except OSError:  # the next request of the round says so
                return

    def _open(self, server: str, run: bytes, world_size: int, part: Tensor, timeout: float) -> socket.socket:
        host, _, port = server.rpartition(":")
        try:
            sock = socket.create_connection((host, int(port)), timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            greeting = wire.GREETING.pack(run, len(part), KINDS.index(self.compression), world_size)
            wire.send(sock, Op.HELLO, self.rank, greeting)
            if self.rank == 0:
                wire.send(sock, Op.START, 0, wire.as_bytes(part))
            op, _, _ = wire.receive(sock)
        except (OSError, ValueError) as error:
            raise Gone(
                f"sync server {server}: {error}", "Start it with: recloom sync-server --listen HOST:PORT"
            ) from None
        if op is not Op.OK:
            raise Gone(f"sync server {server} serves another run", "A server serves one run at a time.")
        return sock

    def meet(self, status: Status) -> Table:
        """Tell the first server; it knows what the others said last."""
        numbers = self._ask(0, Op.MEET, wire.as_bytes(status.encode()), torch.int64)
        lost = int(numbers[0])
        if lost > self._lost:
            self._lost = lost
            raise Gone(f"{lost} rank{'s' * (lost > 1)} died, or said nothing for long")
        return Table.decode(numbers[1:].view(-1, FIELDS), self._lost)

    def exchange(self, request: Exchange) -> Tensor:
        """Push to every server, then take every answer."""
        if request.values is None:
            parts = [self._ask(i, Op.PULL, b"", torch.float32) for i in range(len(self._sockets))]
            return torch.cat(parts)
        references = self._parts(request.reference)
        for i, (part, reference) in enumerate(zip(self._parts(request.values), references, strict=True)):
            data = part if self.compression == "none" else self._feedback[i].encode((part - reference)[None])
            self._tell(i, Op.PUSH, wire.as_bytes(data))
            self.sent += encoded_bytes(len(part), self.compression)
        return torch.cat([self._answer(i, reference) for i, reference in enumerate(references)])

    def _answer(self, i: int, reference: Tensor) -> Tensor:
        data = self._hear(i)
        if self.compression == "none":
            return wire.as_tensor(data, torch.float32)
        return decode(wire.as_tensor(data, torch.uint8)[None], self.compression, len(reference))[0].add_(reference)

    def missing(self) -> str:
        """Return how many ranks are gone; replicas with a server need not agree on who."""
        if any(sock.fileno() < 0 for sock in self._sockets):
            raise Gone("the sync server is gone", "Go on from the last checkpoint: --ckpt_path last.")
        return f"{self._lost} rank{'s' * (self._lost > 1)} died, or said nothing for long"

    def close(self) -> None:
        """Close the connections, with a word if that is possible."""
        self._closed.set()
        for sock in self._sockets:
            with contextlib.suppress(OSError):  # it may be closed, or the server gone
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def farewell(self) -> None:
        """Tell the servers that this rank has finished: it does not count as lost."""
        for i in range(len(self._sockets)):
            self._tell(i, Op.BYE, b"")

    def state_dict(self) -> dict[str, Tensor]:
        """Return what compression owes."""
        return {f"{i}.{k}": v for i, f in enumerate(self._feedback) for k, v in f.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what compression owes."""
        for i, feedback in enumerate(self._feedback):
            prefix = f"{i}."
            feedback.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def _parts(self, vector: Tensor) -> list[Tensor]:
        return [vector[a:b] for a, b in zip(self._bounds, self._bounds[1:], strict=False)]

    def _ask(self, i: int, op: Op, data: bytes | memoryview, dtype: torch.dtype) -> Tensor:
        self._tell(i, op, data)
        return wire.as_tensor(self._hear(i), dtype)

    def _tell(self, i: int, op: Op, data: bytes | memoryview) -> None:
        try:
            with self._sending:
                wire.send(self._sockets[i], op, self.rank, data)
        except OSError as error:
            self._broken(i, error)

    def _hear(self, i: int) -> bytearray:
        try:
            return wire.receive(self._sockets[i])[2]
        except OSError as error:
            self._broken(i, error)
            raise AssertionError from error

    def _broken(self, i: int, error: OSError) -> None:
        self._sockets[i].close()
        raise Gone(f"sync server {i} is gone: {error}", "Go on from the last checkpoint: --ckpt_path last.") from error


class ServerProcess:
    """Sync servers in processes of their own on this machine, which end with this one.

    Args:
        algorithm: How the centre moves.
        count: Number of servers.
        host: Address that they listen at.
        patience: Seconds after which a rank that says nothing counts as lost.
    """

    def __init__(self, algorithm: SyncAlgorithm, count: int, host: str, patience: float) -> None:
        command = [sys.executable, "-m", "recloom_shadowsync.server"]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
            for _ in range(count)
        ]
        self.addresses: list[str] = []
        for process in self._processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(pickle.dumps((algorithm, host, patience)))
            process.stdin.flush()
            address = process.stdout.readline().decode().strip()
            if not address:
                self.close()
                raise Gone("a sync server did not start", "Its message is above.")
            self.addresses.append(address)

    def close(self) -> None:
        """Let them end, which they do when no rank is connected to them any more."""
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()
