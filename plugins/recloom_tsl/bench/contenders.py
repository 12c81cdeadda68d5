"""What `recloom bench tsl` compares, each a training step on a batch, and the processes that they run in."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from recloom.batch import Batch, KeyedJaggedTensor, Sequences
from recloom.features import FeatureSchema, SequenceFeature, SparseFeature
from recloom.machine import peak_memory
from recloom.optim import OptimizerConfig, build_optimizer
from recloom_tsl.bench import reference
from recloom_tsl.tbsm import TBSM

LR = 0.05
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PEERS = ("tbsm", "tbsm run-fast")
OURS = ("recloom", "recloom adagrad")


@dataclass(frozen=True)
class Task:
    """The shape of a measurement: rows of the tables user, item and category, steps of a history, batch, heads."""

    rows: tuple[int, int, int] = (987_994, 4_162_024, 9_439)
    length: int = 20
    batch: int = 256
    heads: int = 1
    threads: int = 1
    clock: str = "wall"

    def ids(self, seed: int) -> Tensor:
        """Return 3 x B x (T+1) uniform ids of users, items and categories; a sample has one user."""
        generator = torch.Generator().manual_seed(seed)
        shape = (self.batch, self.length + 1)
        user = torch.randint(0, self.rows[0], (self.batch, 1), generator=generator).expand(shape)
        return torch.stack([user, *(torch.randint(0, n, shape, generator=generator) for n in self.rows[1:])])

    def labels(self, seed: int) -> Tensor:
        """Return B labels."""
        return torch.randint(0, 2, (self.batch,), generator=torch.Generator().manual_seed(seed)).float()


def schema(task: Task) -> FeatureSchema:
    """Return the schema of the reference's Taobao data."""
    names = ("user", "item", "category")
    features = tuple(SparseFeature(name, rows) for name, rows in zip(names, task.rows, strict=True))
    keys = tuple(SparseFeature(f.name, f.num_embeddings, table=f.name) for f in features[1:])
    return FeatureSchema(sparse=features, sequences=(SequenceFeature("history", keys, task.length),))


def batch(task: Task, seed: int) -> Batch:
    """Return a batch of full histories."""
    ids = task.ids(seed)
    steps = ids[1:, :, :-1].reshape(2, -1).t().contiguous()
    history = Sequences(["item", "category"], steps, torch.arange(task.batch + 1) * task.length)
    sparse = KeyedJaggedTensor(["user", "item", "category"], ids[:, :, -1].contiguous())
    return Batch(torch.zeros(task.batch, 0), sparse, task.labels(seed), {"history": history})


def recloom(task: Task, rule: Literal["adagrad", "rowwise_adagrad"]) -> Callable[[int], None]:
    """Our TBSM; Adagrad's state is kept by row, or by element as in the reference."""
    model = TBSM(schema(task).to_dict(), heads=task.heads)
    config = OptimizerConfig(dense="Adagrad", dense_lr=LR, sparse=rule, sparse_lr=LR, sparse_eps=1e-10)
    optimizer, _ = build_optimizer(model, config)
    batches = [batch(task, seed) for seed in range(40)]

    def step(index: int) -> None:
        inputs = batches[index % len(batches)]
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model.logits(inputs), inputs.labels).backward()
        optimizer.step()

    return step


def tbsm(task: Task, paths: tuple[Path, Path], fast: bool) -> Callable[[int], None]:
    """The reference's TBSM_Net, BCELoss and Adagrad, as its `iterate_train_data` puts them together."""
    model = reference.build(paths, task.rows, task.length, tsl_num_heads=task.heads)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=LR)
    positions = task.length + 1
    if fast:  # --run-fast, without its table of 10 million offsets, which takes a quarter of a minute
        reference.load(paths).args.run_fast = True
        model.offsets, model.max_offset, model.offsets_moved = torch.arange(positions * task.batch), 1 << 40, True  # type: ignore[assignment]
    x = [torch.full((task.batch, 1), place / positions) for place in range(positions)]
    offsets = [[torch.arange(task.batch)] * 3] * positions
    batches = []
    for seed in range(40):
        ids = task.ids(seed)
        steps = [[feature[:, place].contiguous() for feature in ids] for place in range(positions)]
        batches.append((steps, task.labels(seed).view(-1, 1)))

    def step(index: int) -> None:
        ids, labels = batches[index % len(batches)]
        loss = F.binary_cross_entropy(model(x, offsets, ids), labels)
        optimizer.zero_grad()
        loss.backward(retain_graph=True)
        optimizer.step()

    return step


def serve(connection: Connection, name: str, task: Task, paths: tuple[Path, Path] | None) -> None:
    """Build contender `name`, then answer each number of seconds received with what was measured over so long.

    The main function of a contender's own process, whose peak of memory is then the contender's. None ends it.
    """
    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    if name in OURS:
        step = recloom(task, "adagrad" if name == "recloom adagrad" else "rowwise_adagrad")
    else:
        assert paths is not None
        step = tbsm(task, paths, fast=name == "tbsm run-fast")
    count = itertools.count()
    connection.send({"built": peak_memory()})
    while (seconds := connection.recv()) is not None:
        connection.send(_measure(lambda: step(next(count)), seconds, CLOCKS[task.clock]))


def _measure(step: Callable[[], None], seconds: float, clock: Callable[[], float]) -> dict[str, Any]:
    """Return the median seconds of a step, over `seconds` and at least 5 steps, and the memory until now and now."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = clock()
        step()
        times.append(clock() - start)
    return {"step": statistics.median(times), "peak": peak_memory(), "held": psutil.Process().memory_info().rss}
