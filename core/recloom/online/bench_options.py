"""The options of `recloom bench serve`."""

from __future__ import annotations

import argparse
from pathlib import Path

from recloom.errors import RecloomError


def parse(argv: list[str], description: str) -> argparse.Namespace:
    """Return the options; RecloomError if they do not go together."""
    parser = argparse.ArgumentParser(
        prog="recloom bench serve",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, nargs="+", required=True, metavar="FILE", help="model and data")
    parser.add_argument("--sizes", default="1", help="rows a request: N, normal:MEAN:DEVIATION, lognormal:MEAN:SIGMA")
    parser.add_argument("--target", type=float, default=25.0, metavar="MS", help="of the 99th percentile (default: 25)")
    parser.add_argument(
        "--engines",
        nargs="+",
        default=["eager", "bf16"],
        help="eager, bf16, int8, export, onnx, aot; first: co-located",
    )
    parser.add_argument("--max-batch", type=int, default=256, help="most rows of a batch")
    parser.add_argument("--max-wait", type=float, default=0.0, metavar="MS", help="wait of a batch's first request")
    parser.add_argument("--requests", type=int, default=1000, help="least requests of a run")
    parser.add_argument("--seconds", type=float, default=2.0, help="least length of a run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2048, help="rows that requests are made of")
    parser.add_argument("--fresh", action="store_true", help="ids drawn uniformly instead of the data's")
    parser.add_argument("--threads", type=int, default=1, help="threads of a process")
    parser.add_argument("--workers", type=int, default=1, help="processes on one queue")
    parser.add_argument("--replicas", type=int, default=1, help="services side by side, up to so many")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu, with one thread: on a machine that others use too",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench-serve"), metavar="DIR", help="report and JSON")
    options = parser.parse_args(argv)
    for path in options.config:
        if not path.is_file():
            raise RecloomError(f"{path}: there is no such file", "Give a config as `recloom fit` takes it.")
    if options.clock == "cpu" and options.threads > 1:
        raise RecloomError("--clock cpu adds up the time of all threads", "Use --threads 1, or --clock wall.")
    return options
