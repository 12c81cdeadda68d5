"""A sync server: holds one part of the centre, and moves it for replicas as they come. `recloom sync-server`."""

from __future__ import annotations

import argparse
import json
import pickle
import socket
import sys
import threading
import time
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor

from recloom.errors import RecloomError
from recloom.plugins import catalog
from recloom.sync import SyncAlgorithm
from recloom_shadowsync import wire
from recloom_shadowsync.compression import Compression, decode, encode
from recloom_shadowsync.status import FIELDS, Status
from recloom_shadowsync.wire import Op

KINDS: tuple[Compression, ...] = ("none", "bf16", "int8")
COMING = 5  # times `patience` that the others may take to connect, once rank 0 has


class SyncServer:
    """Serves one run after another: the ranks of a new run give it the weights they begin with.

    Args:
        algorithm: How the centre moves.
        host: Address to listen at.
        port: Port; 0 takes a free one.
        patience: Seconds after which a rank that says nothing counts as lost.
    """

    def __init__(
        self, algorithm: SyncAlgorithm, host: str = "127.0.0.1", port: int = 0, patience: float = 60.0
    ) -> None:
        self.algorithm = algorithm
        self.patience = patience
        self.center = torch.empty(0)
        self.merges = 0
        self.clients = 0
        self._run = b""
        self._ranks = 0
        self._states: dict[int, tuple[float, list[int]]] = {}
        self._lock = threading.Lock()
        try:
            self._socket = socket.create_server((host, port), backlog=512)
        except OSError as error:
            raise RecloomError(
                f"cannot listen at {host}:{port}: {error.strerror}", "Choose another --listen."
            ) from None
        self.address = f"{host}:{self._socket.getsockname()[1]}"

    def serve(self) -> None:
        """Take connections until the socket is closed, a thread each."""
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                if self._socket.fileno() == -1:  # closed
                    return
                raise
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._attend, args=(connection,), daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._socket.close()

    def _attend(self, connection: socket.socket) -> None:
        rank, run, left = -1, b"", False
        with self._lock:
            self.clients += 1
        try:
            op, rank, data = wire.receive(connection, wire.GREETING.size)
            if op is not Op.HELLO or len(data) != wire.GREETING.size:
                return
            run, length, kind, ranks = wire.GREETING.unpack(data)
            client = _Client(self, run, rank, length, KINDS[kind])
            self._greet(connection, client, ranks)
            while not left:
                left = client.answer(connection, *wire.receive(connection, 8 * length + 4096))
        except (ConnectionError, OSError, IndexError):
            return  # the others learn of it: this rank's state is dropped below
        finally:
            connection.close()
            with self._lock:
                self.clients -= 1
                if not left and run == self._run:
                    self._states.pop(rank, None)

    def _greet(self, connection: socket.socket, client: _Client, ranks: int) -> None:
        if client.run != self._run:  # a new run: its rank 0 brings the weights, before others come
            op, _, data = wire.receive(connection, 4 * client.length)
            if op is not Op.START:
                wire.send(connection, Op.NO, 0)
                raise ConnectionError("not a rank of the run in progress")
            with self._lock:
                self.center = wire.as_tensor(data, torch.float32).clone()
                self._run, self._ranks = client.run, ranks
                latest = time.monotonic() + (COMING - 1) * self.patience  # for those that have not come yet
                self._states = {other: (latest, _silent(other)) for other in range(ranks)}
            self.algorithm.start(self.center)
        with self._lock:
            self._states[client.rank] = (time.monotonic(), _silent(client.rank))
        client.reference = self.center.clone() if client.kind != "none" else self.center
        wire.send(connection, Op.OK, 0)

    def table(self, rank: int, state: list[int]) -> Tensor:
        """Note a rank's state; return [ranks lost, and the states of all others, one after the other].

        A rank that has said nothing yet counts as at its beginning; it is lost when its connection ends or it is
        silent for `patience`, or if it has not come for COMING times as long.
        """
        now = time.monotonic()
        with self._lock:
            self._states[rank] = (now, state)
            alive = [state for seen, state in self._states.values() if now - seen < self.patience]
        return torch.tensor([self._ranks - len(alive), *[number for row in alive for number in row]])

    def hear(self, rank: int) -> None:
        """Note that a rank is there, whatever its main thread is busy with."""
        with self._lock:
            if rank in self._states:
                self._states[rank] = (time.monotonic(), self._states[rank][1])

    def merge(self, pushed: Tensor) -> Tensor:
        """Move the centre; return a copy of what to answer."""
        with self._lock:
            self.merges += 1
            return self.algorithm.merge(self.center, pushed).clone()

    def copy(self) -> Tensor:
        """Return a copy of the centre."""
        with self._lock:
            return self.center.clone()


def _silent(rank: int) -> list[int]:
    """Return the state of a rank that has told none yet."""
    return list(astuple(Status(rank, gives=0)))


class _Client:
    """What the server knows of one connection."""

    def __init__(self, server: SyncServer, run: bytes, rank: int, length: int, kind: Compression) -> None:
        self.server, self.run, self.rank, self.length, self.kind = server, run, rank, length, kind
        self.reference = torch.empty(0)

    def answer(self, connection: socket.socket, op: Op, rank: int, data: bytearray) -> bool:
        """Answer one message; return whether it was the last."""
        if self.run != self.server._run:
            raise ConnectionError("another run has begun")
        if op is Op.MEET:
            state = wire.as_tensor(data, torch.int64).tolist()
            if len(state) != FIELDS:
                raise ConnectionError("no state")
            wire.send(connection, Op.OK, 0, wire.as_bytes(self.server.table(self.rank, state)))
        elif op is Op.PUSH:
            wire.send(connection, Op.OK, 0, wire.as_bytes(self._push(data)))
        elif op is Op.PULL:
            wire.send(connection, Op.OK, 0, wire.as_bytes(self.server.copy()))
        elif op is Op.BEAT:
            self.server.hear(self.rank)
        return op is Op.BYE

    def _push(self, data: bytearray) -> Tensor:
        if self.kind == "none":
            return self.server.merge(wire.as_tensor(data, torch.float32))
        given = decode(wire.as_tensor(data, torch.uint8)[None], self.kind, self.length)[0]
        answer = self.server.merge(given.add_(self.reference))
        sent = encode((answer - self.reference)[None], self.kind)
        self.reference = self.reference + decode(sent, self.kind, self.length)[0]
        return sent


def main(argv: list[str]) -> int:
    """Run a sync server until it is interrupted; strategies reach it with `servers: [HOST:PORT]`."""
    parser = argparse.ArgumentParser(prog="recloom sync-server", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("--listen", default="127.0.0.1:7700", metavar="HOST:PORT", help="where (default: %(default)s)")
    parser.add_argument("--algorithm", default="EASGD", help="a sync algorithm with a rule for servers")
    parser.add_argument("--options", default="{}", metavar="JSON", help="its arguments, for example '{\"alpha\": 0.3}'")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds until a silent rank counts as lost")
    options = parser.parse_args(argv)
    host, _, port = options.listen.rpartition(":")
    if not port.isdigit():
        raise RecloomError(f"--listen {options.listen}: no HOST:PORT", "Write, for example: --listen 0.0.0.0:7700")
    kind: Any = catalog().sync_algorithms.load(options.algorithm)
    if kind.exchange != "server":
        raise RecloomError(f"{options.algorithm} needs no server", "Its replicas exchange means among themselves.")
    try:
        algorithm = kind(**json.loads(options.options))
    except (TypeError, ValueError) as error:
        raise RecloomError(f"--options: {error}", "Write a JSON object of the algorithm's arguments.") from None
    server = SyncServer(algorithm, host or "0.0.0.0", int(port), options.patience)
    print(f"sync server at {server.address}", flush=True)
    server.serve()
    return 0


def _child() -> None:
    """Serve for the process that started this one, which has sent (algorithm, host, patience), until it is gone."""
    algorithm, host, patience = pickle.load(sys.stdin.buffer)  # from the parent, over its own pipe
    torch.set_num_threads(1)
    server = SyncServer(algorithm, host, 0, patience)
    threading.Thread(target=server.serve, daemon=True).start()
    print(server.address, flush=True)
    sys.stdin.buffer.read()  # returns when the parent closes the pipe, however it ends
    end = time.monotonic() + min(patience, 60.0)
    while server.clients and time.monotonic() < end:  # other ranks may still be reading what all agreed on
        time.sleep(0.02)


if __name__ == "__main__":
    _child()
