"""Costs that need no training: from the model's program, or from the time that it takes on this machine."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Mapping

import torch

from recloom.document import write_text
from recloom.errors import RecloomError
from recloom.search.evaluator import CostModel, SearchContext
from recloom.search.program import Program
from recloom.search.space import Genotype


class AnalyticCost(CostModel):
    """What the model's program says.

    Costs: `macs` (multiply-accumulates a sample), `parameters` (those of tables left out), `embedding_bytes`.
    """

    def __call__(self, program: Program, genotype: Genotype, context: SearchContext) -> dict[str, float]:
        """Return the costs."""
        return {
            "macs": float(program.macs),
            "parameters": float(program.parameters),
            "embedding_bytes": float(program.table_bytes),
        }


class LatencyCost(CostModel):
    """The time of a forward pass on this machine, as eager code runs it.

    Cost: `latency_us`, microseconds a sample: the median over `repeats` forward passes of a batch. It holds for this
    machine, this number of threads and this batch size alone. Each model is measured once; the measurements are kept
    in the search's folder.

    Args:
        batch_size: Rows of a forward pass.
        repeats: Forward passes that are timed.
        warmup: Forward passes before them.
        threads: Threads of the operations.
    """

    by_program = False

    def __init__(self, batch_size: int = 256, repeats: int = 20, warmup: int = 3, threads: int = 1) -> None:
        for name, value in (("batch_size", batch_size), ("repeats", repeats), ("threads", threads)):
            if value < 1:
                raise RecloomError(f"LatencyCost: {name} is {value}", "It must be at least 1.")
        self.batch_size = batch_size
        self.repeats = repeats
        self.warmup = warmup
        self.threads = threads

    def __call__(self, program: Program, genotype: Genotype, context: SearchContext) -> Mapping[str, float]:
        """Return the cost, measured now if it was not before."""
        from recloom import machine

        canonical = context.space.canonical(genotype)
        setting = f"{machine.line()}, {self.threads} threads, batch {self.batch_size}"
        key = hashlib.sha256(f"{setting}{canonical}".encode()).hexdigest()[:20]
        path = context.folder / "latency" / f"{key}.json"
        if path.exists():
            return {"latency_us": float(json.loads(path.read_text())["latency_us"])}
        found = self._measure(canonical, context)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"measured_on": setting, "genotype": canonical, "latency_us": found}) + "\n")
        return {"latency_us": found}

    def _measure(self, genotype: Genotype, context: SearchContext) -> float:
        model = context.space.build(genotype, context.schema).eval()
        batch = context.data.source("val").load(0, 0)
        batch = batch.rows(0, min(self.batch_size, len(batch)))
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        seconds = []
        try:
            with torch.inference_mode():
                for _ in range(self.warmup + self.repeats):
                    start = time.perf_counter()
                    model.logits(batch)
                    seconds.append(time.perf_counter() - start)
        finally:
            torch.set_num_threads(threads)
        return 1e6 * statistics.median(seconds[self.warmup :]) / len(batch)
