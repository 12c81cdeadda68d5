"""Divergence matrices on disk, by a hash of the points and of what was computed of them."""

from __future__ import annotations

import hashlib
import inspect
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recloom_distkernels.divergence import Divergence, Progress
from recloom_distkernels.knn import KnnEngine
from recloom_distkernels.pairwise import pairwise_divergences
from recloom_distkernels.registry import parse
from recloom_distkernels.samplesets import SampleSets

FORMAT = 1  # raised when a change of engines or of the streaming run changes values


class DivergenceCache:
    """A folder of S x S matrices, each under the hash of the sets, the divergence, its code and k.

    Args:
        folder: The folder; None: nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def missing(self, sets: SampleSets, divergences: Sequence[str], ks: Sequence[int]) -> list[str]:
        """Return the divergences that are not there for every k."""
        return [name for name in divergences if any(self._read(sets, name, k) is None for k in ks)]

    def compute(
        self,
        sets: SampleSets,
        divergences: Sequence[str],
        ks: Sequence[int],
        engine: KnnEngine | None = None,
        progress: Progress | None = None,
    ) -> tuple[dict[tuple[str, int], Tensor], float]:
        """Return the S x S divergences by name and k, and the share of clamped distances of what was computed now."""
        todo = self.missing(sets, divergences, ks)
        clamped = 0.0
        found: dict[tuple[str, int], Tensor] = {}
        if todo:
            run = pairwise_divergences(sets, None, todo, ks, engine, progress=progress)
            clamped = run.clamped
            for (name, k), values in run.there.items():
                found[name, k] = values
                self._write(sets, name, k, values)
        for name in divergences:
            for k in ks:
                if (name, k) not in found:
                    stored = self._read(sets, name, k)
                    assert stored is not None, f"{self._path(sets, name, k)} has just gone"
                    found[name, k] = stored
        return found, clamped

    def _path(self, sets: SampleSets, name: str, k: int) -> Path:
        assert self.folder is not None
        text = f"{FORMAT} {sets.fingerprint()} {name.lower()} {_code(name)} {k}"
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npy"

    def _read(self, sets: SampleSets, name: str, k: int) -> Tensor | None:
        if self.folder is None:
            return None
        try:
            values = np.load(self._path(sets, name, k), allow_pickle=False)
        except (OSError, ValueError, EOFError):  # not there, or not whole
            return None
        return torch.from_numpy(values) if values.shape == (len(sets), len(sets)) else None

    def _write(self, sets: SampleSets, name: str, k: int, values: Tensor) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(suffix=".part", dir=self.folder)
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, values.numpy())
            os.replace(aside, self._path(sets, name, k))
        finally:
            Path(aside).unlink(missing_ok=True)


def _code(name: str) -> str:
    """Return a hash of the files that a divergence is written in, its own and those of its bases."""
    kinds = [kind for kind in type(parse(name, Divergence)).__mro__ if kind.__module__ not in ("abc", "builtins")]
    files = sorted({inspect.getfile(kind) for kind in kinds})
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


def default_folder() -> Path:
    """Return the user's cache folder of divergences."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "recloom" / "divergences"
