"""Network links of a chosen rate between processes: network namespaces, a bridge, and tbf. Needs root and iproute2."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from types import TracebackType


class Links:
    """Places, each a network namespace with one link to a common switch, shaped in both directions.

    A context manager: what it made is gone afterwards.

    Args:
        mbits: The rate of each place's link in Mbit/s; 0: as fast as the machine.
        burst: Bytes that tbf lets through at once.
    """

    def __init__(self, mbits: list[float], burst: int = 32_768) -> None:
        self.mbits, self.burst = mbits, burst
        self._name = f"rl{secrets.token_hex(2)}"
        self.addresses = [f"10.77.{place // 200}.{place % 200 + 1}" for place in range(len(mbits))]

    def __enter__(self) -> Links:
        name = self._name
        _ip(f"link add {name} type bridge")
        _ip(f"link set {name} up")
        for place, mbit in enumerate(self.mbits):
            space, outer = f"{name}-{place}", f"{name}v{place}"
            _ip(f"netns add {space}")
            _ip(f"link add {outer} type veth peer name eth0 netns {space}")
            _ip(f"link set {outer} master {name} up")
            inside = f"netns exec {space} ip"
            for command in (f"addr add {self.addresses[place]}/16 dev eth0", "link set eth0 up", "link set lo up"):
                _ip(f"{inside} {command}")
            if mbit:
                shape = f"root tbf rate {mbit}mbit burst {self.burst} latency 400ms"
                _run(f"tc qdisc add dev {outer} {shape}")
                _ip(f"netns exec {space} tc qdisc add dev eth0 {shape}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for place in range(len(self.mbits)):
            subprocess.run(["ip", "netns", "del", f"{self._name}-{place}"], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self._name], check=False, capture_output=True)

    def at(self, place: int) -> list[str]:
        """Return what goes before a command for it to run at a place."""
        return ["ip", "netns", "exec", f"{self._name}-{place}"]


def permitted() -> str:
    """Return why links cannot be shaped here, or nothing."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"):
        return "network namespaces need root and iproute2"
    try:
        with Links([100.0]):
            return ""
    except RuntimeError as error:
        return str(error)


def _ip(command: str) -> None:
    _run(f"ip {command}")


def _run(command: str) -> None:
    done = subprocess.run(command.split(), check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip()}")
