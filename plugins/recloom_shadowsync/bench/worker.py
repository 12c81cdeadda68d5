"""One rank of a measurement: `python -m recloom_shadowsync.bench.worker FOLDER`, started by `bench.team`.

FOLDER/segments.json lists fits to do one after the other; this rank writes FOLDER/RANK.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from recloom import quiet
from recloom.strategy import RecloomStrategy
from recloom_shadowsync import named
from recloom_shadowsync.bench import learning
from recloom_shadowsync.bench.toy import StepTimes, ToyModel, batches
from recloom_shadowsync.strategy import ShadowSyncStrategy


def strategy_of(name: str, options: dict[str, Any]) -> RecloomStrategy:
    """Return a strategy by its class's name; "none": replicas that nothing brings together until the end; "ddp"."""
    if name == "ddp":
        return RecloomStrategy()
    if name == "none":
        return named.ShadowMA(min_interval=1e6, **options)
    kind: type[ShadowSyncStrategy] = getattr(named, name)
    return kind(**options)


def run_segment(segment: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    """Do one fit; return its steps' end times and the strategy's figures, and for `learn` the test metrics."""
    strategy = strategy_of(segment["strategy"], segment.get("options", {}))
    times = StepTimes(segment.get("dies", {}).get(str(rank), 0))
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, num_nodes=world, strategy=strategy, max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[times], limit_val_batches=0,
    )  # fmt: skip
    found: dict[str, Any] = {}
    if "learn" in segment:
        found["metrics"] = learning.fit(trainer, segment["learn"])
    else:
        extra = segment.get("straggle", {}).get(str(rank), 0.0)
        model = ToyModel(segment["weights"], segment["seconds"] + extra)
        counts = segment["steps"]
        start = time.process_time()
        trainer.fit(model, batches(counts[rank] if isinstance(counts, list) else counts, rank))
        found["cpu"] = time.process_time() - start
    stats = strategy.stats() if isinstance(strategy, ShadowSyncStrategy) else {}
    return {**found, "times": times.times, "stats": stats}


def main(argv: list[str]) -> int:
    """Do every segment."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    quiet.hush()
    folder = Path(argv[0])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    found = [run_segment(segment, rank, world) for segment in json.loads((folder / "segments.json").read_text())]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
