"""Seconds of KL, Rényi and Hellinger for all pairs of 300 sets of 100 to 500 points, beside scikit-learn's neighbours.

    recloom bench distkernels
    recloom bench distkernels --sets 150 --threads 1 2 --clock wall --targets 0

`recloom` does the whole job: search, three divergences, k = 3. scikit-learn's NearestNeighbors do the search alone,
from all points to some of the sets (they take too long for all), and are scaled up by pairs of points. All take turns,
round by round, with every number of threads. Printed are medians over rounds, in nanoseconds a pair of points, and
medians of the rounds' ratios: to recloom with as many threads; and, as the speed-up, of a contender's time with the
first number of threads to its own. The last column is the ratio to the authors' own skl-groups (Cython and FLANN) at
the same task: published CPU seconds of one thread (AMD EPYC Zen 4), 38.5, 64.1 and 145.6 for 8.67e9 pairs of 2, 10 and
50 dimensions. They were not measured here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recloom.errors import RecloomError
from recloom_distkernels.knn import KnnEngine
from recloom_distkernels.pairwise import pairwise_divergences
from recloom_distkernels.registry import parse
from recloom_distkernels.samplesets import SampleSets

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
DIVERGENCES = ("kl", "renyi:0.8", "hellinger")
SKL_GROUPS = {2: 38.5e9 / 8.67e9, 10: 64.1e9 / 8.67e9, 50: 145.6e9 / 8.67e9}  # ns a pair
K = 3


def make_sets(count: int, dim: int, seed: int = 0) -> SampleSets:
    """Return `count` sets of 100 to 500 normal points of float32."""
    generator = np.random.default_rng([seed, dim])
    sizes = generator.integers(100, 501, count)
    values = generator.standard_normal((int(sizes.sum()), dim), dtype=np.float32)
    return SampleSets(torch.from_numpy(values), torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)])))


def recloom(sets: SampleSets, engine: str) -> Callable[[], float]:
    """Return a function that does the job and returns the pairs of points."""
    made = None if engine == "auto" else parse(engine, KnnEngine)

    def run() -> float:
        pairwise_divergences(sets, None, DIVERGENCES, (K,), made)
        return float(sets.points) ** 2

    return run


def sklearn(sets: SampleSets, algorithm: str, targets: int, threads: int) -> Callable[[], float]:
    """Return a function that searches from all points to some of the sets, and returns the pairs of points."""
    from sklearn.neighbors import NearestNeighbors

    chosen = np.linspace(0, len(sets) - 1, targets).astype(int)
    queries = sets.values.numpy()

    def run() -> float:
        pairs = 0.0
        for index in chosen:
            points = sets[int(index)].numpy()
            NearestNeighbors(n_neighbors=K, algorithm=algorithm, n_jobs=threads).fit(points).kneighbors(queries)
            pairs += float(len(points)) * len(queries)
        return pairs

    return run


def measure(
    dim: int, count: int, targets: int, threads: list[int], rounds: int, clock: Callable[[], float], engines: list[str]
) -> list[dict[str, Any]]:
    """Let the contenders take turns on sets of `dim` dimensions; return a row each."""
    sets = make_sets(count, dim)
    contenders = {(f"recloom {engine}", n): recloom(sets, engine) for engine in engines for n in threads}
    for algorithm in ("brute", "kd_tree") if targets else ():
        contenders |= {(f"scikit-learn {algorithm}", n): sklearn(sets, algorithm, targets, n) for n in threads}
    recloom(make_sets(3, dim), engines[0])()  # compiles
    found: dict[tuple[str, int], list[float]] = {key: [] for key in contenders}
    for _ in range(rounds):
        for key, run in contenders.items():
            torch.set_num_threads(key[1])
            start = clock()
            pairs = run()
            found[key].append((clock() - start) / pairs * 1e9)
    rows = []
    for (name, n), times in found.items():
        middle, ratio = statistics.median(times), _ratio(times, found[f"recloom {engines[0]}", n])
        rows.append(
            {
                "dim": dim,
                "threads": n,
                "contender": name,
                "ns_per_pair": middle,
                "seconds": middle * float(sets.points) ** 2 / 1e9,
                "ratio": ratio,
                "speedup": _ratio(found[name, threads[0]], times),
                "skl_groups": SKL_GROUPS[dim] / middle if dim in SKL_GROUPS and name.startswith("recloom") else None,
            }
        )
    return rows


def _ratio(times: list[float], others: list[float]) -> float:
    """Return the median over rounds of times / others."""
    return statistics.median(one / other for one, other in zip(times, others, strict=True))


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| d | threads | contender | ns a pair | seconds of the job | times recloom's | speed-up | skl-groups / it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        published = f"{r['skl_groups']:.1f}" if r["skl_groups"] else ""
        lines.append(
            f"| {r['dim']} | {r['threads']} | {r['contender']} | {r['ns_per_pair']:.3f} | {r['seconds']:.2f} | "
            f"{r['ratio']:.1f} | {r['speedup']:.2f} | {published} |"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Measure, print the table, and return 0."""
    parser = argparse.ArgumentParser(
        prog="recloom bench distkernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dims", nargs="+", type=int, default=[2, 10, 50])
    parser.add_argument("--sets", type=int, default=300, help="number of sets (default: 300)")
    parser.add_argument("--targets", type=int, default=4, help="sets that scikit-learn searches (default: 4); 0: none")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=["auto"], help="ours; ratios are to the first (default: auto)")
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu", help="cpu adds up threads (default)")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    arguments = parser.parse_args(argv)
    if min(*arguments.dims, *arguments.threads, arguments.rounds, arguments.sets - 1, arguments.targets + 1) < 1:
        raise RecloomError("dims, threads and rounds are positive, and there are at least two sets", "")
    before, rows = torch.get_num_threads(), []
    try:
        for dim in arguments.dims:
            print(f"d = {dim} ...", file=sys.stderr)
            sizes = arguments.sets, arguments.targets, arguments.threads, arguments.rounds
            rows += measure(dim, *sizes, CLOCKS[arguments.clock], arguments.engines)
    finally:
        torch.set_num_threads(before)
    print(table(rows))
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
    return 0
