"""Rows a second that `ParquetClicks` delivers, on shards of the Criteo Kaggle shape that it writes itself.

    python benchmarks/parquet_reader.py
    python benchmarks/parquet_reader.py --rows 4000000 --workers 1 2 --batches 128 2048 16384

`blocks` is the rate of one process that reads and assembles blocks; `loader` is the rate at which batches arrive in
the main process with that many workers; `main` is the main process's own CPU time a batch. The first epoch, in which
workers start, is not counted. Medians over epochs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from recloom.batch import Batch, KeyedJaggedTensor
from recloom.data.parquet import ParquetClicks
from recloom.data.shards import write_shards
from recloom.features import DenseFeature, FeatureSchema, SparseFeature

# Criteo Kaggle's categories, as facebookresearch/dlrm counts them (tools/visualize.py)
KAGGLE = [1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194]
KAGGLE += [27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572]


def clicks(rows: int, seed: int = 0, step: int = 65_536):
    """Yield batches of log-normal counts and log-uniform ids, skewed like real ones, which sets how they compress."""
    random = np.random.default_rng(seed)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        dense = np.log1p(np.floor(random.lognormal(1.0, 2.0, (count, 13)))).astype(np.float32)
        ids = np.stack([np.exp(random.random(count) * np.log(size + 1)).astype(np.int64) - 1 for size in KAGGLE])
        ids = np.minimum(np.maximum(ids, 0), np.array(KAGGLE)[:, None] - 1)
        names = [f"C{index}" for index in range(26)]
        labels = torch.from_numpy((random.random(count) < 0.25).astype(np.float32))
        yield Batch(torch.from_numpy(dense), KeyedJaggedTensor(names, torch.from_numpy(ids)), labels)


def block_rate(path: Path, epochs: int) -> float:
    source = ParquetClicks(path).source("train", shuffle=True)
    rates = []
    for epoch in range(epochs + 1):
        rows = source.block_rows(epoch)
        start = time.perf_counter()
        for index in range(len(rows)):
            source.load(epoch, index)
        rates.append(sum(rows) / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def loader_rate(path: Path, workers: int, batch_size: int, epochs: int) -> tuple[float, float]:
    """Return (rows a second, milliseconds of the main process a batch)."""
    loader = ParquetClicks(path, batch_size=batch_size, num_workers=workers).train_dataloader()
    rates, costs = [], []
    for _ in range(epochs + 1):
        start, cpu = time.perf_counter(), time.process_time()
        count = sum(1 for _ in loader)
        rates.append(count * batch_size / (time.perf_counter() - start))
        costs.append((time.process_time() - cpu) / count * 1e3)
    return statistics.median(rates[1:]), statistics.median(costs[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 2048])
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    schema = FeatureSchema(
        dense=tuple(DenseFeature(f"I{index}", "log") for index in range(13)),
        sparse=tuple(SparseFeature(f"C{index}", size) for index, size in enumerate(KAGGLE)),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shards"
        start = time.perf_counter()
        write_shards({"train": clicks(options.rows)}, schema, path)
        size = sum(file.stat().st_size for file in path.glob("*/*.parquet"))
        print(f"{options.rows:,} rows, 13 dense + 26 one-hot, {size / options.rows:.0f} bytes a row on disk")
        print(f"written in {time.perf_counter() - start:.1f} s, generation included; {os.cpu_count()} cores\n")
        rate = block_rate(path, options.epochs)
        print("| what | batch | workers | rows/s | main process, ms a batch |")
        print("|---|---|---|---|---|")
        print(f"| blocks | - | - | {rate:,.0f} | - |")
        for workers in options.workers:
            for batch_size in options.batches:
                rate, cost = loader_rate(path, workers, batch_size, options.epochs)
                print(f"| loader | {batch_size} | {workers} | {rate:,.0f} | {cost:.3f} |", flush=True)


if __name__ == "__main__":
    main()
