"""Rounds on a thread of their own, while the main thread trains: the shadow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from recloom.errors import RecloomError
from recloom_shadowsync.session import POLL, Session
from recloom_shadowsync.throttle import Throttle


class Background(Session):
    """Rounds on a thread of their own, while the main thread trains without waiting."""

    throttle: Callable[[], Throttle]
    """Makes the throttle, on the thread."""

    def start(self) -> None:
        """Start the thread."""
        self._error: BaseException | None = None
        self._kick, self._met, self._resume = threading.Event(), threading.Event(), threading.Event()
        self._together = False
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="shadow", daemon=True)
        self._thread.start()

    def step(self) -> None:
        """Raise what the thread died of, if it did."""
        if self._error is not None:
            self._raise()

    def meet(self) -> bool:
        """Let the thread find out when all have arrived."""
        self._met.clear()
        self._resume.clear()
        self._waiting = True
        self._wanted = (self._wanted[0] + 1, 0)
        self._kick.set()
        self._await(self._met)
        return self._together

    def leave(self) -> None:
        """Let the thread go on."""
        self._waiting = False
        self._resume.set()

    def finish(self) -> None:
        """Let the thread serve the others until all have finished."""
        self._wanted = (self._wanted[0], 1)
        self._kick.set()
        self._await(self._finished)
        self._thread.join()

    def stop(self, why: str) -> None:
        """Break the thread's connections, and wait for it to end."""
        super().stop(why)
        self._kick.set()
        self._resume.set()
        self._thread.join(5.0)

    def _await(self, event: threading.Event) -> None:
        while not event.wait(POLL):
            self.check_signals()
            if self._error is not None:
                self._raise()

    def _raise(self) -> None:
        assert self._error is not None
        self.check_signals()
        if isinstance(self._error, RecloomError):
            raise type(self._error)(self._error.message, self._error.hint) from self._error
        raise RuntimeError(f"the thread that synchronises failed: {self._error!r}") from self._error

    def _loop(self) -> None:
        try:
            throttle = self.throttle()
            while not self._stopping:
                throttle.begin()
                told = self._told
                table = self.round().table
                self.stats.cpu = throttle.spent()
                if table.finished:
                    self.transport.farewell()
                    self.transport.close()
                    self._finished.set()
                    return
                if self._waiting and told[0] == self._wanted[0] and table.complete(told[0]) and not self._met.is_set():
                    self._arrive(table.together(told[0]))
                self._pause(throttle.pause())
        except BaseException as error:  # whatever it is, the main thread raises it
            if not self._stopping:
                self._error = error
                if not self.broken:
                    self.transport.leave(f"{type(error).__name__}: {error}".split("\n")[0])
                self.transport.close()

    def _arrive(self, together: bool) -> None:
        self._together = together
        self._met.set()
        if together:
            self._resume.wait()

    def _pause(self, seconds: float) -> None:
        """Wait, unless the main thread or another rank's trouble wants a round at once."""
        end = time.monotonic() + seconds
        if self._waiting or self._wanted[1]:
            seconds = min(seconds, POLL)
            end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._stopping:
            if self._kick.wait(min(left, 0.05)):
                self._kick.clear()
                return
            if self.on_peer_loss == "continue" and self.transport.interrupted():
                return
