"""A run's folder: which checkpoint `last` and `best` mean in it."""

from __future__ import annotations

from pathlib import Path

from recloom.errors import RecloomError

NAMES = ("last", "best")


def checkpoint_of(run: Path, ckpt_path: str | None) -> Path:
    """Return a checkpoint of the run in folder `run`: `last`, `best`, a file; None is the best, else the last.

    Raises:
        RecloomError: There is no run, or no such checkpoint.
    """
    if not (run / "config.yaml").exists():
        raise RecloomError(f"{run}: there is no run here: no config.yaml", "Train first: recloom fit ...")
    return existing_file(named(run, ckpt_path))


def named(run: Path, ckpt_path: str | None) -> Path:
    """Return where that checkpoint of a run is, whether it exists or not."""
    folder = run / "checkpoints"
    if ckpt_path is None:
        best = folder / "best.ckpt"
        return best if best.exists() else folder / "last.ckpt"
    return folder / f"{ckpt_path}.ckpt" if ckpt_path in NAMES else Path(ckpt_path)


def existing_file(checkpoint: Path) -> Path:
    """Return a checkpoint; RecloomError if it does not exist."""
    if not checkpoint.exists():
        raise RecloomError(
            f"{checkpoint}: there is no such checkpoint",
            "Name a .ckpt file, `last` or `best`; a run that wrote none starts again without --ckpt_path.",
        )
    return checkpoint
