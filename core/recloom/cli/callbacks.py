"""What the command line adds to a Trainer: progress, checkpoints, the report, predictions."""

from __future__ import annotations

import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar

from recloom.batch import Batch
from recloom.data.loader import BatchLoader
from recloom.errors import RecloomError, suggest


@dataclass
class CheckpointConfig:
    """When a fit writes checkpoints, into the run's `checkpoints` folder.

    Args:
        every_n_steps: Write last.ckpt every so many optimizer steps; it is what `--ckpt_path last` goes on from.
        monitor: Metric that decides which checkpoint is best.ckpt; written after each validation.
        mode: Whether the metric is best at its "min" or "max".
    """

    every_n_steps: int = 1000
    monitor: str = "val_ne"
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        """Refuse what no fit can follow."""
        if self.every_n_steps < 1:
            raise RecloomError(f"checkpoint.every_n_steps is {self.every_n_steps}", "Give 1 or more.")


class LastCheckpoint(ModelCheckpoint):
    """Writes last.ckpt: every so many steps, when the fit ends, and when Ctrl-C interrupts it.

    The first Ctrl-C lets the step in progress finish, writes last.ckpt and then interrupts; during validation, and at
    the second Ctrl-C, it interrupts at once.
    """

    def __init__(self, directory: Path, every_n_steps: int) -> None:
        super().__init__(
            dirpath=directory,
            filename="last",
            save_top_k=1,
            every_n_train_steps=every_n_steps,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._path = directory / "last.ckpt"
        self._stop = False
        self._previous: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over Ctrl-C."""
        super().on_train_start(trainer, pl_module)
        if threading.current_thread() is not threading.main_thread():
            return

        def interrupt(number: int, frame: Any) -> None:
            if self._stop or not trainer.training:
                raise KeyboardInterrupt
            self._stop = True

        self._previous = signal.signal(signal.SIGINT, interrupt)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write what is due; after a Ctrl-C, write and interrupt."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._stop:
            trainer.save_checkpoint(self._path)
            if trainer.is_global_zero:
                print(f"\nwrote {self._path}: go on from it with --ckpt_path last", file=sys.stderr)
            raise KeyboardInterrupt

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the final state, unless the fit was interrupted: then the last full step's file stays."""
        super().on_train_end(trainer, pl_module)
        if not trainer.interrupted:
            trainer.save_checkpoint(self._path)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give Ctrl-C back."""
        super().teardown(trainer, pl_module, stage)
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None


class BestCheckpoint(ModelCheckpoint):
    """Writes best.ckpt after each validation that improved the monitored metric."""

    def __init__(self, directory: Path, monitor: str, mode: str) -> None:
        super().__init__(
            dirpath=directory,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            every_n_epochs=1,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what is due; refuse a metric that is not there, before training if `num_sanity_val_steps` is not 0."""
        metrics, wanted = trainer.callback_metrics, str(self.monitor)
        known = [name for name in metrics if name.startswith("val_")]
        early = trainer.sanity_checking and not wanted.startswith("val_")  # what training logs comes later
        if wanted not in metrics and known and not early:
            raise RecloomError(f"checkpoint.monitor: no metric {wanted!r} is logged", suggest(wanted, known))
        super().on_validation_end(trainer, pl_module)


def checkpoint_callbacks(config: CheckpointConfig, run_dir: Path) -> list[Callback]:
    """Return the callbacks that write last.ckpt and best.ckpt."""
    directory = run_dir / "checkpoints"
    return [LastCheckpoint(directory, config.every_n_steps), BestCheckpoint(directory, config.monitor, config.mode)]


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, refreshed every 20 batches: drawing it costs as much as a small batch."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=20)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return the metrics without the version number."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        rate = metrics.pop("samples_per_second", None)
        if rate is not None:
            metrics["samples/s"] = f"{float(str(rate)):,.0f}"
        return metrics


class RunReport(Callback):
    """Prints the last validation's NE beside the best possible, and writes report.html and report.md.

    Args:
        run_dir: The run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print and write, on rank 0."""
        from recloom.report import write_run_report  # plots are for the end of a run: matplotlib is slow to import

        if not trainer.is_global_zero:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if "val_ne" in values:
            line = f"validation NE {values['val_ne']:.5f}  AUC {values.get('val_auc', float('nan')):.5f}"
            if "val_oracle_ne" in values:
                best = values["val_oracle_ne"]
                line += f"  | best possible NE {best:.5f}: {100 * (values['val_ne'] / best - 1):.2f}% above it"
            print(line)
        print(f"report: {write_run_report(self.run_dir, trainer, pl_module)}")


class PredictionWriter(Callback):
    """Writes predictions.parquet, batch by batch, aside first and then renamed; a file a rank when there are several.

    Args:
        run_dir: The run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._writer: pq.ParquetWriter | None = None
        self._target = Path()
        self._rows = 0

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Name this rank's file; predictions are streamed, not gathered in memory."""
        suffix = "" if trainer.world_size == 1 else f"-{trainer.global_rank:05d}"
        self._target = self.run_dir / f"predictions{suffix}.parquet"
        trainer.predict_loop.return_predictions = False
        self._rows = 0

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append one batch: each output tensor is a column (B x T: T columns), and what tells the rows apart.

        That is `row`, the number in the split, counted from 0, of a BatchLoader's rows and of any loader's on one rank;
        and `group` and `timestamp`, where the batch has them.
        """
        rows = len(next(iter(outputs.values())))
        loader = trainer.predict_dataloaders
        first = loader.span(batch_idx)[0] if isinstance(loader, BatchLoader) else self._rows
        self._rows += rows
        known = isinstance(loader, BatchLoader) or trainer.world_size == 1
        columns: dict[str, Any] = {"row": range(first, first + rows)} if known else {}
        if isinstance(batch, Batch):
            ids = {"group": batch.extras.get("group"), "timestamp": batch.timestamps}
            columns |= {name: tensor.cpu().numpy() for name, tensor in ids.items() if tensor is not None}
        for name, tensor in outputs.items():
            values: torch.Tensor = tensor.detach().cpu()
            if values.ndim == 1:
                columns[name] = values.numpy()
            else:
                columns.update({f"{name}_{i}": values[:, i].numpy() for i in range(values.shape[1])})
        table = pa.table(columns)
        if self._writer is None:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._part, table.schema)
        self._writer.write_table(table)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._part.replace(self._target)
            print(f"predictions: {self._target}")

    @property
    def _part(self) -> Path:
        return self._target.with_name(self._target.name + ".part")
