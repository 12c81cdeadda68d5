"""A run's loggers: metrics.csv that survives a resume, and TensorBoard events."""

from __future__ import annotations

import csv
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only


class MetricsFile(Logger):
    """Writes metrics.csv: one row a step, one column a metric, empty where a step has no value.

    It appends. A resumed run first drops the rows from its first step on: they are written again. Each row is in the
    file once it is logged, so that a killed run loses none.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns: list[str] = []
        self._started = False

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """No versions: the folder is the run's."""
        return ""

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the run's config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write one row."""
        row = {"step": step if step is not None else 0, **metrics}
        if not self._started:
            self._start(row["step"])
        new = [name for name in row if name not in self._columns]
        if new:
            self._rewrite([*self._columns, *new], read_metrics(self.path))
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)

    def _start(self, step: float) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        earlier = [row for row in read_metrics(self.path) if float(row["step"]) < step]
        columns = list(dict.fromkeys(name for row in earlier for name in row)) or ["step"]
        self._rewrite(columns, earlier)
        self._started = True

    def _rewrite(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        self._columns = columns
        aside = self.path.with_name(self.path.name + ".part")
        with aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        aside.replace(self.path)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv, values as text; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k is not None} for row in rows if None not in row.values()]


def run_loggers(run_dir: Path) -> list[Logger]:
    """Return the loggers of a run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        events = TensorBoardLogger(save_dir=str(run_dir), name="", version="tensorboard", default_hp_metric=False)
    return [MetricsFile(run_dir / "metrics.csv"), events]
