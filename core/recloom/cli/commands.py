"""`recloom bench` and `recloom reproduce`: run what plugins registered. Neither imports torch before it must."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recloom.catalog import Registry
from recloom.errors import RecloomError
from recloom.plugins import catalog

if TYPE_CHECKING:
    from recloom.experiment import Budget, Experiment


SMALL_MINUTES = 59.0
"""When `reproduce all --budget small` stops: it is to take less than an hour."""


def bench(argv: list[str]) -> int:
    """Run a registered benchmark with the arguments that follow its name; return its exit code."""
    parser = _parser("bench", "Run a plugin's speed measurement.", catalog().benchmarks)
    parser.add_argument("name", nargs="?", metavar="NAME", help="the benchmark; what follows is its own, --help too")
    head = [argv[0]] if argv else []
    options = parser.parse_args(head)
    if options.list or options.name is None:
        return _list(catalog().benchmarks, parser, asked=options.list)
    run: Callable[[list[str]], int] = catalog().benchmarks.get(options.name).load()
    return run(argv[1:])


def reproduce(argv: list[str]) -> int:
    """Run a registered experiment and print its claims, each with whether it holds.

    Returns 0 when the run was measured to its end, whatever came out; with --strict, 1 when a claim does not hold.
    """
    parser = _parser("reproduce", "Run a paper's experiment and judge its claims.", catalog().experiments)
    parser.add_argument("name", nargs="?", metavar="NAME", help="the experiment, or all")
    parser.add_argument(
        "--budget",
        choices=("small", "medium", "full"),
        help="minutes, up to an hour, or the paper's setting (default: medium; of `all`: small)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where results go (default: runs/reproduce-NAME-BUDGET)"
    )
    parser.add_argument("--seeds", type=str, default="0", metavar="S,S,...", help="seeds to repeat with (default: 0)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="real data, as `recloom prepare` wrote them")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a claim does not hold")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="of `all`: experiments at a time (default: 2)")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="of `all`: when to stop (default: 59 of small, else never)"
    )
    options = parser.parse_args(argv)
    if options.list or options.name is None:
        return _list(catalog().experiments, parser, asked=options.list)
    if options.name == "all":
        return _reproduce_all(options)
    entry = catalog().experiments.get(options.name)
    seeds = _seeds(options.seeds)
    experiment: Experiment = entry.load()()
    budget = experiment.settled(options.budget or "medium")
    out = options.out or Path("runs") / f"reproduce-{options.name}-{budget}"
    if out.exists() and not out.is_dir():
        raise RecloomError(f"{out} is a file", "Give --out a folder.")
    from recloom.experiment import run_experiment

    print(f"{options.name}: {experiment.paper}\n{textwrap.fill(experiment.summary, 100)}")
    print(textwrap.fill(f"budget {budget}: {experiment.scope[budget]}", 100))
    rows = run_experiment(
        options.name, experiment, out, budget, seeds, lambda text: print(text, flush=True), options.data
    )
    _print_claims(rows)
    print(f"report: {out / 'report.html'}\nclaims: {out / 'claims.json'}")
    return int(options.strict and not all(row["holds"] for row in rows))


def _reproduce_all(options: argparse.Namespace) -> int:
    """Run every experiment; return 1 if one failed, or with --strict if a claim does not hold."""
    from recloom.cli.progress import watching
    from recloom.reproduction import reproduce_all

    _seeds(options.seeds)
    if options.data is not None:
        raise RecloomError("reproduce all measures on generated data", "Give --data to one experiment.")
    if options.jobs < 1:
        raise RecloomError(f"--jobs {options.jobs}: at least 1 experiment has to run")
    if options.minutes is not None and options.minutes <= 0:
        raise RecloomError(f"--minutes {options.minutes:g}: there is no time to measure anything")
    budget: Budget = options.budget or "small"
    minutes = SMALL_MINUTES if options.minutes is None and budget == "small" else options.minutes
    out = options.out or Path("runs") / f"reproduce-all-{budget}"
    with watching() as watch:
        found = reproduce_all(out, budget, options.seeds, options.jobs, watch, minutes)
    rows = [row for job in found for row in job.rows]
    print(f"{sum(row['holds'] for row in rows)} of {len(rows)} claims hold, of {len(found)} papers")
    for job in found:
        if job.failure:
            print(f"{job.name} {job.state}" + (f"\n  See {job.log}." if job.log.exists() else ""))
    print(f"report: {out / 'report.html'}\nclaims: {out / 'claims.json'}")
    return int(any(job.failure for job in found) or (options.strict and not all(row["holds"] for row in rows)))


def _print_claims(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from recloom.document import show
    from recloom.experiment import CLAIM_HEADER, claim_table

    table = Table(*CLAIM_HEADER)
    for row in claim_table(rows):
        table.add_row(*map(show, row))
    console = Console()
    console.print(table, markup=False)
    failed = [row["id"] for row in rows if not row["holds"]]
    verdict = f"{len(rows) - len(failed)} of {len(rows)} claims hold"
    console.print(verdict + (f"; these do not: {', '.join(failed)}" if failed else ""), markup=False, highlight=False)


def _seeds(text: str) -> list[int]:
    """Return the seeds in "0,1,2"."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise RecloomError(
            f"--seeds {text!r} is no list of whole numbers", "Write, for example: --seeds 0,1,2"
        ) from None
    if len(set(seeds)) < len(seeds):
        raise RecloomError(f"--seeds {text!r} names a seed twice", "Each seed counts once.")
    return seeds


def _parser(command: str, description: str, registry: Registry[Any]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"recloom {command}",
        usage=f"recloom {command} NAME [options]\n       recloom {command} --list",
        description=description,
        epilog=f"{registry.kind}s:\n{_listing(registry)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--list", action="store_true", help=f"list the {registry.kind}s of all plugins")
    return parser


def _listing(registry: Registry[Any]) -> str:
    width = max((len(entry.name) for entry in registry), default=0)
    return "\n".join(f"  {e.name:<{width}}  {e.summary} (plugin {e.plugin})" for e in registry) or "  none"


def _list(registry: Registry[Any], parser: argparse.ArgumentParser, *, asked: bool) -> int:
    if asked:
        print(_listing(registry))
        return 0
    raise RecloomError(f"which {registry.kind}?", f"{parser.prog} NAME, where NAME is one of:\n{_listing(registry)}")
