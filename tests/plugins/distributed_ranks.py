"""Runs a function on several ranks, each a process with a gloo group, as torchrun would start them."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PRELOAD = ["torch", "lightning.pytorch", "recloom_dlrm.strategy", "recloom_dlrm.model", "recloom.data.synthetic"]


def run_ranks(function: Callable[..., None], world_size: int, *arguments: Any, group: bool = True) -> None:
    """Call function(rank, *arguments) in `world_size` processes; raise what the first that failed raised.

    Args:
        function: A function of a test module.
        world_size: Number of processes.
        arguments: Passed on.
        group: Make the process group; False leaves that to a Trainer.
    """
    multiprocessing.set_forkserver_preload(PRELOAD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_rank, (function, world_size, port, group, arguments), world_size, start_method="forkserver")


def _rank(rank: int, function: Callable[..., None], world_size: int, port: int, group: bool, arguments: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        TORCHELASTIC_RUN_ID="test",
    )
    if group:
        dist.init_process_group("gloo")
    function(rank, *arguments)
    if dist.is_initialized():
        dist.destroy_process_group()
