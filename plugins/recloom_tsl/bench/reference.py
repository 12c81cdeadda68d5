"""The reference implementation, facebookresearch/tbsm on facebookresearch/dlrm, built from checkouts of both."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import nn

from recloom.errors import RecloomError


def checkouts(tbsm: str | None = None, dlrm: str | None = None) -> tuple[Path, Path] | None:
    """Return the checkouts of tbsm and dlrm, given or named by RECLOOM_TBSM and RECLOOM_DLRM; None if unnamed.

    Raises:
        RecloomError: A folder is named that does not hold its program.
    """
    names = (tbsm or os.environ.get("RECLOOM_TBSM"), dlrm or os.environ.get("RECLOOM_DLRM"))
    if not all(names):
        return None
    found = (Path(str(names[0])), Path(str(names[1])))
    for folder, file in zip(found, ("tbsm_pytorch.py", "dlrm_s_pytorch.py"), strict=True):
        if not (folder / file).is_file():
            raise RecloomError(f"{folder}: there is no {file} here", "Name checkouts of tbsm and dlrm.")
    return found


def load(paths: tuple[Path, Path]) -> ModuleType:
    """Import the reference from the checkouts of tbsm and dlrm, and give it what its command line would."""
    for path in paths:
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        import dlrm_s_pytorch
        import tbsm_pytorch
    tbsm_pytorch.dlrm = dlrm_s_pytorch
    tbsm_pytorch.args = argparse.Namespace(run_fast=False)
    return tbsm_pytorch


def build(paths: tuple[Path, Path], rows: tuple[int, ...], length: int, seed: int = 0, **options: Any) -> nn.Module:
    """Return a TBSM_Net in the widths of the reference's bench/tbsm_bench.sh.

    Args:
        paths: Checkouts of tbsm and dlrm.
        rows: Rows of the tables.
        length: Steps of a history, T.
        seed: Seed of the initial weights.
        options: tsl_inner, tsl_mechanism, tsl_num_heads, tsl_seq.
    """
    module = load(paths)
    np.random.seed(seed)  # the reference draws its weights from NumPy's global generator
    vectors = len(rows) + 1
    top = np.array([16 + vectors * (vectors - 1) // 2, 15, 15])
    settings = {"model_type": "tsl", "tsl_inner": "def", "tsl_mechanism": "mlp", **options}
    return module.TBSM_Net(
        16,
        np.array(rows),
        np.array([1, 16]),
        top,
        arch_interaction_op="dot",
        arch_interaction_itself=False,
        ln_mlp=np.array([30, 60, 1]),
        ln_tsl=np.array([15, 15]),
        tsl_interaction_op="dot",
        ts_length=length,
        **settings,
    )
