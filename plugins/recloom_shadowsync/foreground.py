"""Rounds on the main thread, every k steps: fixed rate, local SGD, DiLoCo."""

from __future__ import annotations

import time

from recloom_shadowsync.session import POLL, Session


class Foreground(Session):
    """Rounds on the main thread, every so many optimizer steps.

    Args:
        every: Optimizer steps between rounds.
    """

    every = 1

    def start(self) -> None:
        """Nothing runs by itself."""

    def step(self) -> None:
        """Do a round if it is due."""
        if self.replica.steps % self.every == 0:
            self.round()

    def meet(self) -> bool:
        """Do rounds until all have arrived."""
        self._wanted, self._waiting = (self._wanted[0] + 1, 0), True
        try:
            while True:
                meeting = self._told[0]
                result = self.round()
                if meeting == self._wanted[0] and result.table.complete(meeting):
                    return result.table.together(meeting)
                self._look()
        finally:
            self._waiting = False

    def leave(self) -> None:
        """Nothing is held up."""

    def finish(self) -> None:
        """Do rounds until all have finished."""
        self._wanted = (self._wanted[0], 1)
        while not self.round().table.finished:
            self._look()
        self.transport.farewell()
        self.transport.close()

    def _look(self) -> None:
        self.check_signals()
        if self.replica.algorithm.exchange == "server":
            time.sleep(POLL)
