"""Starts the ranks of a measurement, on shaped links or all on this machine, and reads what they found."""

from __future__ import annotations

import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from recloom_shadowsync.bench.links import Links

Segment = dict[str, Any]


def run_team(
    segments: list[Segment],
    ranks: int,
    links: Links | None = None,
    server_place: int | None = None,
    limit: float = 400.0,
) -> list[list[dict[str, Any]]]:
    """Run `segments` on `ranks` processes; return, for each segment, what each rank found.

    Args:
        segments: Fits to do one after the other, in the same processes.
        ranks: Number of processes.
        links: Where they are; rank r at place r.
        server_place: Where a sync server runs, for the segments with EASGD; by default beside rank 0.
        limit: Seconds for all.

    Returns:
        Of ranks that a segment makes die there is nothing.

    Raises:
        RuntimeError: A process failed; its last words are in the message.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = None
        try:
            if server_place is not None:
                assert links is not None
                address = f"{links.addresses[server_place]}:7700"
                server = _server(links, server_place, address)
                segments = [_with_server(segment, address) for segment in segments]
            (folder / "segments.json").write_text(json.dumps(segments))
            processes = [_rank(rank, ranks, folder, links) for rank in range(ranks)]
            dead = {int(rank) for segment in segments for rank in segment.get("dies", {})}
            _join(processes, folder, limit, dead)
            paths = [folder / f"{rank}.json" for rank in range(ranks) if rank not in dead]
            found = [json.loads(path.read_text()) for path in paths]
        finally:
            if server is not None:
                server.kill()
                server.communicate()
        return [[rank[index] for rank in found] for index in range(len(segments))]


def _with_server(segment: Segment, address: str) -> Segment:
    if "EASGD" not in segment["strategy"]:
        return segment
    return {**segment, "options": {**segment.get("options", {}), "servers": [address]}}


def _server(links: Links, place: int, address: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "recloom.cli.main", "sync-server", "--listen", address]
    server = subprocess.Popen([*links.at(place), *command], stdout=subprocess.PIPE, text=True, env=_environment())
    assert server.stdout is not None
    server.stdout.readline()
    return server


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _rank(rank: int, ranks: int, folder: Path, links: Links | None) -> subprocess.Popen[bytes]:
    environment = {
        **_environment(), "RANK": str(rank), "LOCAL_RANK": "0", "GROUP_RANK": str(rank), "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "team",
        "MASTER_ADDR": "127.0.0.1" if links is None else links.addresses[0],
        "MASTER_PORT": str(_free_port(folder)) if links is None else "7600",
    }  # fmt: skip
    if links is not None:
        environment["GLOO_SOCKET_IFNAME"] = "eth0"
    command = [sys.executable, "-m", "recloom_shadowsync.bench.worker", str(folder)]
    with (folder / f"{rank}.log").open("wb") as log:
        prefix = [] if links is None else links.at(rank)
        return subprocess.Popen([*prefix, *command], env=environment, stdout=log, stderr=subprocess.STDOUT)


def _free_port(folder: Path) -> int:
    """Return the team's port: a free one, the same for all its ranks."""
    note = folder / "port"
    if not note.exists():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            note.write_text(str(free.getsockname()[1]))
    return int(note.read_text())


def _join(processes: list[subprocess.Popen[bytes]], folder: Path, limit: float, dead: set[int]) -> None:
    try:
        for rank, process in enumerate(processes):
            if process.wait(limit) and rank not in dead:
                raise RuntimeError(
                    f"rank {rank} of a measurement failed: {(folder / f'{rank}.log').read_text()[-1500:]}"
                )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"a measurement was not done after {limit:.0f} s") from None
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def step_seconds(found: dict[str, Any], skip: int = 5) -> float:
    """Return the mean seconds of a step on one rank, the first ones left out."""
    times = found["times"][skip:]
    return (times[-1] - times[0]) / (len(times) - 1)


def median_step(found: dict[str, Any], skip: int = 5) -> float:
    """Return the median seconds of a step on one rank, the first ones left out."""
    times = found["times"][skip:]
    return statistics.median(b - a for a, b in itertools.pairwise(times))
