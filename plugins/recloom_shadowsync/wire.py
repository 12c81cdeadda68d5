"""The protocol between replicas and sync servers: a fixed header, then bytes. Nothing on the wire is ever unpickled."""

from __future__ import annotations

import socket
import struct
from enum import IntEnum

import torch
from torch import Tensor

HEADER = struct.Struct("<BIQ")
GREETING = struct.Struct("<16sQBI")
"""The run, the length of the server's part, the compression's number, the number of ranks."""


class Op(IntEnum):
    """What a message is."""

    HELLO = 1
    START = 2
    MEET = 3
    PUSH = 4
    PULL = 5
    BYE = 6
    OK = 7
    NO = 8
    BEAT = 9


def send(sock: socket.socket, op: Op, rank: int, data: bytes | memoryview = b"") -> None:
    """Send one message."""
    sock.sendall(HEADER.pack(op, rank, len(data)))
    if len(data):
        sock.sendall(data)


def receive(sock: socket.socket, limit: int = 1 << 34) -> tuple[Op, int, bytearray]:
    """Return (what it is, the sender's rank, its bytes) of the next message.

    Raises:
        ConnectionError: The other side is gone, or what it says is no message.
    """
    op, rank, length = HEADER.unpack(_exactly(sock, HEADER.size))
    if length > limit:
        raise ConnectionError(f"a message of {length:,} bytes, and at most {limit:,} are expected")
    try:
        return Op(op), rank, _exactly(sock, length)
    except ValueError:
        raise ConnectionError(f"{op} is no kind of message") from None


def _exactly(sock: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    view, place = memoryview(data), 0
    while place < length:
        count = sock.recv_into(view[place:])
        if not count:
            raise ConnectionError("the connection was closed")
        place += count
    return data


def as_bytes(tensor: Tensor) -> memoryview:
    """Return a contiguous CPU tensor's bytes, without a copy."""
    return memoryview(tensor.contiguous().view(torch.uint8).view(-1).numpy())  # type: ignore[arg-type]


def as_tensor(data: bytearray, dtype: torch.dtype) -> Tensor:
    """Return the values in `data`, without a copy."""
    return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
