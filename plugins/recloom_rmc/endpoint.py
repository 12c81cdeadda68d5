"""`recloom serve` under more load than it can take: what is answered, what is turned away, and its memory."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from recloom.errors import RecloomError

PROBE = 3.0
"""Seconds of a run that looks whether a rate is sustained."""


def overload(config: Path, seconds: float, out: Path) -> dict[str, float]:
    """Return what came of a server of `config` under twice the rate that it sustains.

    A rate is sustained when for 3 seconds every request is answered with 200 and 99% within a quarter of a second; the
    sender shares the machine with the server.
    """
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [sys.executable, "-m", "recloom.cli.main", "serve", "--config", str(config), "--untrained"]
    command += ["--port", str(port), "--max-queue", "256"]
    with (out / "serve.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        return _measure(f"http://127.0.0.1:{port}", process, seconds)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _measure(url: str, process: subprocess.Popen[Any], seconds: float) -> dict[str, float]:
    from recloom.online.client import load
    from recloom.online.load import Sizes

    one = Sizes.parse("1")
    _wait(url, process)
    rate, sustained = 25.0, 0.0
    while rate < 20_000:
        answers = load(url, rate, PROBE, one)
        if not bool((answers.codes == 200).all()) or float(np.quantile(answers.latencies, 0.99)) > 0.25:
            break
        sustained, rate = rate, 2 * rate
    held: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            held.append(psutil.Process(process.pid).memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    answers = load(url, 2 * rate, seconds, one)  # `rate` was the first that was not sustained
    done.set()
    watcher.join()
    early = held[len(held) // 5] if held else 0
    return {
        "sustained requests/s": sustained,
        "offered requests/s": 2 * rate,
        "seconds": seconds,
        "answered with 200": float((answers.codes == 200).mean()),
        "turned away with 429": float((answers.codes == 429).mean()),
        "without an answer": float((~np.isin(answers.codes, (200, 429))).mean()),
        "p99 of those served, s": float(np.quantile(answers.served, 0.99)) if len(answers.served) else float("nan"),
        "memory at the end over memory after a fifth of the run": held[-1] / early if early else float("nan"),
        "still running": float(process.poll() is None),
    }


def _wait(url: str, process: subprocess.Popen[Any], patience: float = 180.0) -> None:
    from urllib.error import URLError
    from urllib.request import urlopen

    until = time.monotonic() + patience
    while time.monotonic() < until and process.poll() is None:
        try:
            with urlopen(f"{url}/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    raise RecloomError("recloom serve did not start", "Its output is in serve.log of the experiment's folder.")
