"""The progress of a search on the terminal: a bar with the best so far, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class SearchProgress:
    """Shows how many trials are finished, and a line about the best; a context manager.

    Args:
        total: Trials in all.
        enabled: Whether to show anything but what is said.
    """

    def __init__(self, total: int, enabled: bool = True) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self._live = enabled and self.console.is_terminal
        self._enabled = enabled
        self._total = total
        self._last = (0.0, -1)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[best]}"),
            console=self.console,
            disable=not self._live,
        )
        self._task = self._bar.add_task("search", total=total, best="")

    def __enter__(self) -> SearchProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, markup=False)

    def show(self, finished: int, best: str) -> None:
        """Show how many trials are finished, and the best of them."""
        self._bar.update(self._task, completed=finished, best=best)
        now, (when, shown) = time.monotonic(), self._last
        due = now - when > _SECONDS_BETWEEN_LINES or finished >= self._total
        if self._enabled and not self._live and finished != shown and due:
            self._last = (now, finished)
            self.say(f"{finished}/{self._total} trials  {best}")
