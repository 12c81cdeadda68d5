"""Starts ranks on this machine as Lightning does, but a rank that dies in training does not take the others along."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_info  # type: ignore[attr-defined]

_LOG = logging.getLogger(__name__)


class ShadowLauncher(_SubprocessScriptLauncher):
    """Lightning's launcher without its observer, which kills all ranks some seconds after one has died.

    In training, the strategy notices by itself and does what it is configured to. Before and after, when a rank may
    wait in a collective for one that is not coming, all end as under Lightning.

    Args:
        environment: The cluster environment.
        num_processes: Ranks on this machine.
        num_nodes: Machines.
        training: Whether the strategy looks after the ranks now.
    """

    def __init__(self, environment: Any, num_processes: int, num_nodes: int, training: Callable[[], bool]) -> None:
        super().__init__(environment, num_processes, num_nodes)
        self._training = training

    def launch(self, function: Callable[..., Any], *args: Any, trainer: pl.Trainer | None = None, **kwargs: Any) -> Any:
        """Start the other ranks, then call `function`."""
        if self.cluster_environment.creates_processes_externally:
            return super().launch(function, *args, trainer=trainer, **kwargs)
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.procs:
            self._call_children_scripts()
            threading.Thread(target=_watch, args=(self.procs, self._training), daemon=True).start()
        _one_thread_a_core(self.num_processes)
        return function(*args, **kwargs)

    def reap(self, seconds: float = 2.0) -> None:
        """Wait for the ranks that this process started, and kill those that do not end: one may hang."""
        end = time.monotonic() + seconds
        for process in self.procs:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def _watch(processes: list[subprocess.Popen[bytes]], training: Callable[[], bool]) -> None:
    since = 0.0
    while any(process.poll() is None for process in processes) or since:
        time.sleep(0.5)
        failed = [process for process in processes if process.poll()]
        if not failed or training():
            since = 0.0
            continue
        since = since or time.monotonic()
        if time.monotonic() - since > 5.0:  # this rank's own error, which says more, comes first
            _LOG.error("process %d ended with code %d: all others end too", failed[0].pid, failed[0].returncode)
            for process in processes:
                process.kill()
            os.kill(os.getpid(), signal.SIGKILL)


def _one_thread_a_core(processes: int) -> None:
    """Share the cores out, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ and processes > 1:
        threads = max(1, (os.cpu_count() or 1) // processes)
        rank_zero_info(f"{threads} thread(s) for each of {processes} processes")
        torch.set_num_threads(threads)
