"""Signs of life: a counter in each running trial, which its worker raises and others watch."""

from __future__ import annotations

import threading
import time

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage

from recloom.search.storage import alive
from recloom.search.trials import BEAT, Record


class Heartbeat:
    """Raises the counters of the trials that this worker holds, and tells whose worker is dead.

    A worker of this machine is dead when its process is gone. One of another machine is when its counter has stood
    still for `grace` seconds of our own clock, so that the machines' clocks need not agree.

    Args:
        storage: The storage.
        grace: Seconds; counters are raised four times in that time.
    """

    def __init__(self, storage: BaseStorage, grace: float) -> None:
        self.storage, self.grace = storage, grace
        self._held: set[int] = set()
        self._seen: dict[int, tuple[int, float]] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def hold(self, trial_id: int) -> None:
        """Raise the counter of a trial from now on."""
        self._held.add(trial_id)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="search-heartbeat", daemon=True)
            self._thread.start()

    def release(self, trial_id: int) -> None:
        """Leave a trial alone."""
        self._held.discard(trial_id)

    def dead(self, record: Record) -> bool:
        """Return whether the worker of a running trial is dead."""
        known = alive(record.worker)
        if known is not None:
            return not known
        now = time.monotonic()
        beat, since = self._seen.get(record.trial, (-1, now))
        if beat != record.beat:
            since = now
        self._seen[record.trial] = (record.beat, since)
        return now - since > self.grace

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        beat = 0
        while not self._stop.wait(self.grace / 4):
            beat += 1
            for trial_id in list(self._held):
                try:
                    self.storage.set_trial_system_attr(trial_id, BEAT, beat)
                except UpdateFinishedTrialError:
                    self._held.discard(trial_id)
                except StorageInternalError:
                    continue  # a busy or unreachable database: the next beat may get through
