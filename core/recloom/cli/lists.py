"""`recloom plugins` and `recloom components`: what is there. No torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from recloom.catalog import KINDS, Entry
from recloom.errors import unknown
from recloom.plugins import host


def plugins(argv: list[str]) -> int:
    """List the plugins that discovery found, with why a broken one is not in use."""
    parser = argparse.ArgumentParser(prog="recloom plugins", description="List installed plugins.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--verbose", action="store_true", help="show the traceback of a broken plugin")
    options = parser.parse_args(argv)
    counts: dict[str, int] = {}
    for entry in host().catalog.entries():
        counts[entry.plugin] = counts.get(entry.plugin, 0) + 1
    if options.json:
        print(json.dumps([{**vars(info), "components": counts.get(info.name, 0)} for info in host().plugins], indent=1))
        return 0
    rows = [("plugin", "from", "components", "what it is")]
    for info in host().plugins:
        rows.append((info.name, info.origin, str(counts.get(info.name, 0)), info.error or info.summary))
    _print_table(rows)
    if options.verbose:
        print("".join(f"\n{info.name}:\n{info.details}" for info in host().plugins if info.details))
    return 0


def components(argv: list[str]) -> int:
    """List registered components, of one kind or of all."""
    parser = argparse.ArgumentParser(prog="recloom components", description="List registered components.")
    parser.add_argument("kind", nargs="?", help=f"one of: {', '.join(KINDS)}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    registries = host().catalog.registries()
    if options.kind is not None:
        if options.kind not in registries:
            raise unknown("kind of component", options.kind, registries)
        registries = {options.kind: registries[options.kind]}
    if options.json:
        found: list[dict[str, Any]] = [vars(entry) for registry in registries.values() for entry in registry]
        print(json.dumps(found, indent=1))
        return 0
    rows = [("kind", "name", "plugin", "summary")]
    rows += [(entry.kind, entry.name, entry.plugin, _summary(entry)) for r in registries.values() for entry in r]
    _print_table(rows)
    return 0


def _summary(entry: Entry) -> str:
    return f"{entry.summary} [needs recloom[{entry.extra}]]" if entry.extra else entry.summary


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip())
