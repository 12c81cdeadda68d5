"""How fast, and in how much memory, `recloom prepare criteo` turns a raw log into shards.

Run: python benchmarks/prepare_criteo.py [--rows 5000000] [--work DIR] [--keep] [-- any options of `recloom prepare`]

Lines are generated with the shape of the Kaggle log (13 counts with its shares of missing values, 26 categories with
its numbers of values, power-law popularity). The command runs in a subprocess of its own; its peak resident memory is
read from the operating system after it ended.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

# Values per category in the Kaggle log, as facebookresearch/dlrm counts them (tools/visualize.py).
CARDINALITIES = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
    27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
MISSING_DENSE = {1: 0.45, 6: 0.25, 10: 0.45, 12: 0.78}
MISSING_SPARSE = {6: 0.13, 19: 0.45, 20: 0.45, 22: 0.82, 25: 0.45, 26: 0.45}
HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


def hex_strings(values: np.ndarray, missing: np.ndarray) -> pa.Array:
    """Return n 32-bit values as 8-digit hexadecimal strings, empty where `missing`."""
    shifts = np.arange(28, -1, -4, dtype=np.uint32)
    digits = HEX[(values[:, None] >> shifts) & 0xF][~missing]
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum(np.where(missing, 0, 8), out=offsets[1:])
    return pa.Array.from_buffers(pa.string(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(digits)])


def generate_block(rng: np.random.Generator, rows: int) -> pa.Table:
    """Return `rows` lines as a table of 40 columns."""
    columns: dict[str, pa.Array] = {"label": pa.array((rng.random(rows) < 0.256).astype(np.int8))}
    for index in range(1, 14):
        counts = np.floor(rng.lognormal(1.5, 1.5, rows)).astype(np.int64) - (index == 2)
        columns[f"I{index}"] = pa.array(counts, mask=rng.random(rows) < MISSING_DENSE.get(index, 0.0))
    for index, cardinality in enumerate(CARDINALITIES, start=1):
        ranks = np.floor(cardinality ** rng.random(rows)).astype(np.uint64)  # log-uniform: popularity ~ 1 / rank
        values = ((ranks + np.uint64(index << 32)) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)).astype(np.uint32)
        columns[f"C{index}"] = hex_strings(values, rng.random(rows) < MISSING_SPARSE.get(index, 0.0))
    return pa.table(columns)


def generate(path: Path, rows: int, seed: int = 0, block: int = 100_000) -> None:
    """Write `rows` raw lines to `path`."""
    rng = np.random.default_rng(seed)
    options = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    with path.open("wb") as sink:
        for start in range(0, rows, block):
            csv.write_csv(generate_block(rng, min(block, rows - start)), sink, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--work", type=Path, help="where the raw log and the shards go (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the raw log and the shards there")
    arguments, options = parser.parse_known_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="recloom-prepare-"))
    work.mkdir(parents=True, exist_ok=True)
    raw, output = work / f"criteo-{arguments.rows}.txt", work / "shards"
    if not raw.exists():
        start = time.perf_counter()
        generate(raw, arguments.rows)
        print(f"generated {arguments.rows:,} lines in {time.perf_counter() - start:.0f} s")
    code = "import sys; from recloom.cli.prepare import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "criteo", "--input", str(raw), "--output", str(output), "--overwrite"]
    start = time.perf_counter()
    status = subprocess.run(command + [option for option in options if option != "--"]).returncode
    seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = usage.ru_utime + usage.ru_stime  # what the wall time would be on an idle core
    print("| lines | raw | seconds | lines/s | CPU seconds | peak memory | shards |\n|---|---|---|---|---|---|---|")
    peak = usage.ru_maxrss / 2**20
    shards = sum(file.stat().st_size for file in output.rglob("*.parquet")) if output.exists() else 0
    print(
        f"| {arguments.rows:,} | {raw.stat().st_size / 1e9:.2f} GB | {seconds:.1f} | {arguments.rows / seconds:,.0f} "
        f"| {cpu:.1f} ({usage.ru_stime:.1f} in the kernel) | {peak:.2f} GiB | {shards / 1e9:.2f} GB |"
    )
    if not arguments.keep and arguments.work is None:
        shutil.rmtree(work)
    sys.exit(status)


if __name__ == "__main__":
    main()
