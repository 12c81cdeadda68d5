"""One torch thread a test process (two run side by side), and the samples of real data where they are."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def samples(root: Path) -> Path:
    """The folder with samples of real data; tests that use it are skipped where it is absent."""
    path = root.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no samples of real data here")
    return path
