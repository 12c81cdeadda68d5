"""What `recloom reproduce all` shows while it runs: a table that keeps up, or lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from recloom.reproduction import Job


@contextmanager
def watching() -> Iterator[Callable[[Sequence[Job]], None]]:
    """Yield a function that shows the jobs' states."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if not console.is_terminal:
        yield _Lines()
        return
    with Live(console=console, refresh_per_second=2) as live:
        yield lambda jobs: live.update(_table(jobs))


class _Lines:
    """Prints a line when a job starts, and one when it ends."""

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}

    def __call__(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            told = "started" if job.process is not None else job.state
            if told != "waits" and self._shown.get(job.name) != told:
                self._shown[job.name] = told
                took = f" ({job.seconds / 60:.1f} min)" if job.seconds else ", measured before" if job.before else ""
                print(f"{job.name}: {told}{took}", flush=True)


def _table(jobs: Sequence[Job]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    done = sum(job.process is None and job.state != "waits" for job in jobs)
    table = Table("experiment", "minutes", f"state ({done} of {len(jobs)} done)")
    for job in jobs:
        seconds = time.monotonic() - job.started if job.process is not None else job.seconds
        table.add_row(job.name, f"{seconds / 60:.1f}" if seconds else "", escape(job.state[:100]))
    return table
