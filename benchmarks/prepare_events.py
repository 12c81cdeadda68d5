"""How fast, and in how much memory, `recloom prepare taobao` turns a log of events into samples with histories.

Run: python benchmarks/prepare_events.py [--events 10000000] [--work DIR] [--keep] [-- any options of `recloom prepare`]

Events are generated in Taobao's layout: a user has about 100 of them (log-normal, as in the publisher's figures:
100 million events of a million users), items and categories have power-law popularity, lines are sorted by user or,
with --unsorted, not at all. The command runs in a process of its own, which reports its peak memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

FIRST, LAST = 1511539200, 1512316799  # 25 November to 3 December 2017, Chinese time
CODE = """
import json, sys
from recloom.cli.prepare import main
from recloom.machine import peak_memory
status = main(sys.argv[2:])
open(sys.argv[1], "w").write(json.dumps(peak_memory()))
sys.exit(status)
"""


def generate(path: Path, events: int, unsorted: bool, seed: int = 0, block: int = 500_000) -> None:
    """Write `events` lines to `path`."""
    rng = np.random.default_rng(seed)
    sizes = np.ceil(rng.lognormal(4.2, 0.9, max(events // 60, 1))).astype(np.int64)
    users = np.repeat(np.arange(1, len(sizes) + 1), sizes)[:events]
    assert len(users) == events, "too few users were drawn"
    if unsorted:
        rng.shuffle(users)
    num_items = max(events // 24, 100)  # 4 million of 100 million events
    behaviours = np.array(["pv", "cart", "fav", "buy"])
    with path.open("wb") as sink:
        for start in range(0, events, block):
            count = min(block, events - start)
            items = np.floor(num_items ** rng.random(count)).astype(np.int64)  # log-uniform: popularity ~ 1 / rank
            columns = {
                "user": users[start : start + count],
                "item": items * 7 + 3,
                "category": (items * 2654435761 >> 7) % max(num_items // 400, 10),
                "behaviour": pa.array(behaviours).take(pa.array(rng.choice(4, count, p=(0.9, 0.055, 0.025, 0.02)))),
                "time": rng.integers(FIRST, LAST, count),
            }
            options = csv.WriteOptions(include_header=False, quoting_style="none")
            csv.write_csv(pa.table(columns), sink, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--unsorted", action="store_true", help="events of all users mixed")
    parser.add_argument("--work", type=Path, help="where the raw log and the shards go (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the raw log and the shards there")
    arguments, options = parser.parse_known_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="recloom-prepare-"))
    work.mkdir(parents=True, exist_ok=True)
    raw, output = work / f"events-{arguments.events}{'-unsorted' * arguments.unsorted}.csv", work / "shards"
    if not raw.exists():
        start = time.perf_counter()
        generate(raw, arguments.events, arguments.unsorted)
        print(f"generated {arguments.events:,} lines in {time.perf_counter() - start:.0f} s")
    peak = work / "peak.json"
    command = [sys.executable, "-c", CODE, str(peak), "taobao", "--input", str(raw), "--output", str(output)]
    start = time.perf_counter()
    status = subprocess.run([*command, "--overwrite", *(item for item in options if item != "--")]).returncode
    seconds = time.perf_counter() - start
    if status == 0:
        manifest = json.loads((output / "manifest.json").read_text())
        rows = sum(shard["rows"] for shards in manifest["splits"].values() for shard in shards)
        shards = sum(file.stat().st_size for file in output.rglob("*.parquet"))
        print("| events | raw | samples | seconds | events/s | peak memory | shards |\n|---|---|---|---|---|---|---|")
        print(
            f"| {arguments.events:,} | {raw.stat().st_size / 1e9:.2f} GB | {rows:,} | {seconds:.1f} "
            f"| {arguments.events / seconds:,.0f} | {json.loads(peak.read_text()) / 2**30:.2f} GiB "
            f"| {shards / 1e9:.2f} GB |"
        )
    if not arguments.keep and arguments.work is None:
        shutil.rmtree(work)
    sys.exit(status)


if __name__ == "__main__":
    main()
