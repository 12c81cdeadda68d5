"""`recloom prepare FORMAT --input RAW ... --output DIR`: a raw log to Parquet shards."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from recloom.errors import RecloomError
from recloom.plugins import catalog

if TYPE_CHECKING:
    from recloom.data.formats.base import RawFormat
    from recloom.data.prepare_report import PrepareReport

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_STAGES = {"count": "counting", "encode": "encoding", "write": "writing"}


def main(argv: list[str]) -> int:
    """Run the command with the arguments after `recloom prepare`; return the exit code.

    Raises:
        RecloomError: A user's mistake, for the dispatcher to print.
    """
    name = next((argument for argument in argv if not argument.startswith("-")), "") if argv else ""
    known = catalog().formats
    raw: type[RawFormat] | None = known.load(name) if argv and argv[0] == name else None
    parser = _parser(raw, [(entry.name, entry.summary) for entry in known])
    if not argv:
        parser.print_help()
        return 0
    arguments = parser.parse_args(argv)
    if raw is None:
        raise RecloomError(f"the format {arguments.format!r} comes first", "Write: recloom prepare FORMAT --input ...")
    return _prepare(raw, arguments)


def _parser(raw: type[RawFormat] | None, formats: list[tuple[str, str]]) -> argparse.ArgumentParser:
    width = max((len(name) for name, _ in formats), default=0)
    listed = "\n".join(f"  {name:{width}}  {summary}" for name, summary in formats)
    parser = argparse.ArgumentParser(
        prog="recloom prepare",
        usage="recloom prepare FORMAT --input FILE [FILE ...] --output DIR [options]",
        description="Turn a raw log into Parquet shards with a schema, in bounded memory. The formats:\n" + listed,
        epilog="`recloom prepare FORMAT --help` adds the options of the format.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("format", metavar="FORMAT", help="the raw log's format, before all options")
    parser.add_argument("--input", nargs="+", type=Path, required=True, metavar="FILE", help="raw files, oldest first")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory of the shards")
    parser.add_argument(
        "--split",
        default="",
        help="random:0.8,0.1,0.1 | users:0.8,0.1,0.1 (event logs) | time:0.8,0.1,0.1 | days:0-5,6 | reference | none: "
        "shares (or days) of train, val "
        f"and test (default: {raw.default_split if raw else 'depends on the format'})",
    )
    parser.add_argument("--min-count", type=_positive, default=1, metavar="N", help="rarer categories share id 0")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--hash-size", type=_size, metavar="N", help="hash each category into N ids; one pass")
    sizes.add_argument("--max-vocabulary", type=_size, metavar="N", help="keep the N-1 most frequent values")
    parser.add_argument("--dense-transform", choices=("log", "none"), default="", help="of dense values")
    parser.add_argument("--like", type=Path, metavar="DIR", help="take ids and transforms over from this data set")
    parser.add_argument("--max-bad-rows", type=int, default=0, metavar="N", help="leave out up to N bad rows")
    parser.add_argument("--memory", type=_bytes, default="1GiB", metavar="SIZE", help="for counting (default: 1GiB)")
    parser.add_argument("--threads", type=_positive, default=0, metavar="N", help="default: one a CPU")
    parser.add_argument("--limit", type=_positive, metavar="N", help="read only the first N lines")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the random split")
    parser.add_argument("--overwrite", action="store_true", help="replace the data set in DIR")
    if raw is not None:
        raw.add_arguments(parser.add_argument_group(f"options of {raw.name}"))
    return parser


def _prepare(raw: type[RawFormat], arguments: argparse.Namespace) -> int:
    from recloom.data.prepare import PrepareOptions, prepare

    options = PrepareOptions(
        split=arguments.split,
        min_count=arguments.min_count,
        hash_size=arguments.hash_size,
        max_vocabulary=arguments.max_vocabulary,
        dense_transform=arguments.dense_transform,
        max_bad_rows=arguments.max_bad_rows,
        memory=arguments.memory,
        limit=arguments.limit,
        seed=arguments.seed,
        threads=arguments.threads,
        overwrite=arguments.overwrite,
        like=arguments.like,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(_STAGES[stage], total=total)
            bar.update(tasks[stage], completed=done)

        report = prepare(raw.from_arguments(arguments), arguments.input, arguments.output, options, progress)
    _print(report, arguments.output)
    return 0


def _print(report: PrepareReport, output: Path) -> None:
    table = Table("split", "rows", "mean label")
    for column in table.columns[1:]:
        column.justify = "right"
    for split, rows in report.rows.items():
        mean = report.label_mean(split)
        table.add_row(split, f"{rows:,}", "none" if mean is None else f"{mean:.4f}")
    console = Console()
    console.print(f"{output}, split {report.split}:", highlight=False, markup=False)
    console.print(table)
    sizes = sorted(report.cardinalities.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {size:,}" for name, size in sizes[:6]) + (", ..." if len(sizes) > 6 else "")
    total = sum(report.cardinalities.values())
    console.print(f"ids: {total:,} in {len(sizes)} features: {shown}", highlight=False)
    if report.left_out:
        console.print(f"rows of days that the split does not name, left out: {report.left_out:,}", highlight=False)
    for name, number in report.counts.items():
        console.print(f"{name}: {number:,}", highlight=False, markup=False)
    for row in report.bad:
        console.print(f"bad row: {row}", highlight=False, markup=False)
    rows = sum(report.rows.values())
    console.print(
        f"bad rows: {report.bad_rows:,}; {report.seconds:.1f} s, {rows / report.seconds:,.0f} rows/s, "
        f"peak memory {report.peak_memory / 2**20:,.0f} MiB",
        highlight=False,
    )


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _size(text: str) -> int:
    if not 2 <= (number := int(text)) < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text} is not in 2 .. 2^31 - 1")
    return number


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 512MiB or 2GiB")
    return int(float(match[1]) * _UNITS[match[2]])
