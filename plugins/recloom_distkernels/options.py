"""What `recloom gram`, `embed` and `detect` have in common: their input, engine and cache, cost and progress."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from recloom.errors import DataError
from recloom_distkernels.cache import DivergenceCache, default_folder
from recloom_distkernels.divergence import Divergence, NeighbourDivergence
from recloom_distkernels.gram import DUPLICATES
from recloom_distkernels.kernels import Kernel
from recloom_distkernels.knn import KnnEngine
from recloom_distkernels.pairwise import estimate_seconds
from recloom_distkernels.psd import PSDRepair
from recloom_distkernels.readers import read_groups
from recloom_distkernels.registry import names, parse
from recloom_distkernels.samplesets import SampleSets

LINE_SECONDS = 30.0  # between lines of progress where there is no terminal
INPUT = """\
INPUT is a Parquet file or a folder of them (a row a point, --group tells the set), an .npz file (an n x d array a set),
or a shard directory that `recloom prepare` wrote of an event log: users are then the sets of their items' vectors."""


def parser(command: str, summary: str, output: str) -> argparse.ArgumentParser:
    """Return the parser with the options that all three commands have."""
    found = argparse.ArgumentParser(
        prog=f"recloom {command}",
        description=f"{summary}\n\n{INPUT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("input", type=Path, metavar="INPUT", help="the sets of points")
    found.add_argument("--output", type=Path, required=True, metavar="FILE", help=output)
    found.add_argument("--group", default="group", metavar="COLUMN", help="column that tells the set (default: group)")
    found.add_argument("--columns", default="", metavar="A,B", help="columns of coordinates; default: all numeric ones")
    found.add_argument("--feature", default="item", metavar="NAME", help="what users are sets of (default: item)")
    found.add_argument(
        "--vectors",
        default="",
        metavar="FILE.npy|RUN",
        help="vectors by id, or a run's folder, whose model's embedding is taken; default: made by an SVD",
    )
    found.add_argument("--dim", type=int, default=10, metavar="D", help="dimension of the SVD (default: 10)")
    found.add_argument("--min-points", type=int, default=1, metavar="N", help="leave out sets with fewer points")
    found.add_argument("--threads", type=int, default=0, metavar="N", help="default: as many as torch takes")
    return found


def add_kernel_options(found: argparse.ArgumentParser, many: bool) -> None:
    """Add the options of exact kernels; `many`: several divergences and neighbours at once."""
    found.add_argument(
        "--div",
        default="renyi:0.8",
        metavar="NAME[,NAME]" if many else "NAME",
        help=f"one of {', '.join(names(Divergence))}, with options: renyi:0.9 (default: renyi:0.8)",
    )
    found.add_argument("--k", default="3", metavar="K[,K]" if many else "K", help="neighbour (default: 3)")
    found.add_argument("--kernel", default="gaussian", help=f"{', '.join(names(Kernel))} (default: gaussian)")
    found.add_argument("--psd", default="clip", help=f"repair: {', '.join(names(PSDRepair))} (default: clip)")
    found.add_argument("--engine", default="auto", help=f"auto, {', '.join(names(KnnEngine))}")
    found.add_argument("--cache", default="", metavar="DIR", help='of divergences; "none": keep none')


def load(arguments: argparse.Namespace) -> SampleSets:
    """Read the input, leave small sets out, and say what there is."""
    import torch

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    columns = [name for name in arguments.columns.split(",") if name]
    table = read_groups(arguments.input, arguments.group, columns, arguments.vectors, arguments.dim, arguments.feature)
    sets = table.sets
    keep = (sets.sizes >= arguments.min_points).numpy()
    if not keep.any():
        raise DataError(
            f"{arguments.input}: no set has {arguments.min_points} points; the largest has {int(sets.sizes.max())}",
            "Take a smaller --min-points.",
        )
    if not keep.all():
        say(f"left out {int((~keep).sum()):,} sets with fewer than {arguments.min_points} points")
        sets = sets.select(keep)
    sizes = np.quantile(sets.sizes.numpy(), (0, 0.5, 1)).astype(int)
    say(
        f"{len(sets):,} sets of {sizes[0]:,} to {sizes[2]:,} points (median {sizes[1]:,}) in {sets.dim} dimensions, "
        f"{sets.points:,} points"
    )
    return sets


def engine_of(arguments: argparse.Namespace) -> KnnEngine | None:
    """Return the engine asked for, None for auto."""
    return None if arguments.engine == "auto" else parse(arguments.engine, KnnEngine)


def numbers(text: str) -> list[int]:
    """Return the neighbours of --k."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise DataError(f"--k {text}: neighbours are numbers from 1 on", "Write --k 3, or --k 3,5.")
    return found


def divergences(
    sets: SampleSets, arguments: argparse.Namespace, wanted: list[str], ks: list[int]
) -> dict[tuple[str, int], Tensor]:
    """Return divergences, from the cache or computed: says first what that costs, then shows progress."""
    parsed = [parse(name, Divergence) for name in wanted]
    if any(isinstance(one, NeighbourDivergence) for one in parsed):
        sets.check_neighbours(max(ks), own=True)
    folder = Path(arguments.cache) if arguments.cache not in ("", "none") else default_folder()
    cache = DivergenceCache(None if arguments.cache == "none" else folder)
    engine = engine_of(arguments)
    todo = cache.missing(sets, wanted, ks)
    if todo:
        seconds = estimate_seconds(sets, None, todo, ks, engine)
        size = len(sets) ** 2 * 8 * len(wanted) * len(ks) / 2**20
        say(
            f"{', '.join(todo)}: {sets.points**2:,} pairs of points, about {duration(seconds)}; "
            f"the matrices take {size:,.0f} MiB"
        )
        if seconds > 60:
            say("(`recloom embed --method fourier` is linear in the number of points)")
    else:
        say("divergences: from the cache")
    with progress_bar("divergences") as progress:
        found, clamped = cache.compute(sets, wanted, ks, engine, progress)
    if clamped > DUPLICATES:
        say(
            f"{clamped:.1%} of the neighbours coincide with their point; k-NN divergences assume densities: take a "
            "larger --k, add noise to rounded coordinates, or use --div mmd"
        )
    return found


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[float], None]]:
    """Give a function that shows the share that is done: a bar on a terminal, elsewhere a line each half minute."""
    if not sys.stderr.isatty():
        yield _Lines(title)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda done: bar.update(task, completed=done)


class _Lines:
    """Says the share that is done, and what is left, every half minute."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.start = self.said = time.monotonic()

    def __call__(self, done: float) -> None:
        now = time.monotonic()
        if done > 0 and now - self.said >= LINE_SECONDS:
            self.said = now
            left = (now - self.start) * (1 - done) / done
            say(f"{self.title}: {done:.0%}, about {duration(left)} left")


def duration(seconds: float) -> str:
    """Return seconds for people."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def say(text: str) -> None:
    """Print a line of what is going on."""
    print(text, file=sys.stderr)
