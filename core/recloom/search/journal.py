"""What a search keeps in its folder besides the study: measurements that are never repeated, and where time went."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recloom.checkpoint import to_primitives
from recloom.document import write_text

Facts = dict[str, Any]
PHASES = ("setup", "search", "correlation", "retraining", "baselines", "test")


def fingerprint(part: Any) -> str:
    """Return a short text that differs when the options that `part` was made with do."""
    names = inspect.signature(type(part)).parameters
    options = {name: to_primitives(getattr(part, name, None)) for name in names}
    text = json.dumps([type(part).__qualname__, options], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class Journal:
    """Measurements by key, and the time and training samples of each phase.

    Args:
        folder: The search's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._times: dict[str, dict[str, float]] = {}
        self._file = folder / "times" / f"{os.getpid()}-{time.time_ns()}.json"

    def once(
        self, key: str, measure: Callable[[], tuple[Facts, NDArray[np.float32]]]
    ) -> tuple[Facts, NDArray[np.float32]]:
        """Return what `measure` gives (facts as JSON values, and an array), or gave in an earlier run of the search."""
        facts, array = (self.folder / "measured" / f"{key}.{suffix}" for suffix in ("json", "npy"))
        if not facts.exists():
            found, values = measure()
            facts.parent.mkdir(parents=True, exist_ok=True)
            aside = array.with_suffix(".npy.part")
            with aside.open("wb") as file:
                np.save(file, values)
            aside.replace(array)
            write_text(facts, json.dumps(found))  # last: a measurement without it does not count
        return json.loads(facts.read_text()), np.load(array)

    @contextmanager
    def phase(self, name: str, samples: Callable[[], int] = lambda: 0) -> Iterator[None]:
        """Count the time spent inside, and by how much `samples()` grows, towards a phase."""
        start, before = time.perf_counter(), samples()
        try:
            yield
        finally:
            entry = self._times.setdefault(name, {"seconds": 0.0, "samples": 0})
            entry["seconds"] += time.perf_counter() - start
            entry["samples"] += samples() - before
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._file, json.dumps(self._times))

    def times(self) -> dict[str, dict[str, float]]:
        """Return seconds and training samples by phase, over all workers and runs of this search."""
        total: dict[str, dict[str, float]] = {}
        for path in sorted((self.folder / "times").glob("*.json")):
            for name, entry in json.loads(path.read_text()).items():
                found = total.setdefault(name, {"seconds": 0.0, "samples": 0})
                for key, value in entry.items():
                    found[key] += value
        return {name: total[name] for name in PHASES if name in total}
