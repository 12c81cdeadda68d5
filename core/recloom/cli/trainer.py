"""`recloom fit|validate|test|predict`: LightningCLI with short names, sizes linked from data to model, run folders."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from recloom import checkpoint, mention, problems, quiet
from recloom.cli import rundir
from recloom.cli.callbacks import CheckpointConfig, PredictionWriter, ProgressBar, RunReport, checkpoint_callbacks
from recloom.errors import RecloomError
from recloom.loggers import run_loggers
from recloom.plugins import catalog

RUN = " --run DIR stands for --config DIR/config.yaml --run_dir DIR"
DESCRIPTION = {
    "fit": "Train a model. The run's folder gets its config, checkpoints, metrics and report. It takes one pass over"
    " the data, unless --trainer.max_epochs, max_steps or max_time says otherwise." + RUN + " --ckpt_path last.",
    "validate": "Evaluate a checkpoint on the validation rows." + RUN + ".",
    "test": "Evaluate a checkpoint on the test rows." + RUN + ".",
    "predict": "Write a checkpoint's predictions to predictions.parquet in the run's folder." + RUN + ".",
}


class RecloomParser(LightningArgumentParser):
    """Tells one cause, one hint and the nearest names instead of all that was tried."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise a RecloomError about `message`; a nested parser's message reaches the outermost one."""
        if not self.exit_on_error:
            return super().error(message, ex)
        raise problems.explain(message)


class RecloomCLI(LightningCLI):
    """One subcommand of LightningCLI, with recloom's run folder.

    Args:
        command: fit, validate, test or predict.
        argv: Its arguments, without `--ckpt_path`.
        ckpt_path: A checkpoint file, "last", "best", or None.
    """

    def __init__(self, command: str, argv: list[str], ckpt_path: str | None) -> None:
        self.command = command
        self.argv = argv
        self.ckpt_path = ckpt_path
        self.run_dir = Path()
        try:
            self._start()
        except (RuntimeError, ValueError) as error:
            cause = None if self.ckpt_path is None else checkpoint.explain_restoring(error, self.ckpt_path)
            if cause is None:
                raise
            raise cause from error

    def _start(self) -> None:
        command = self.command
        super().__init__(
            pl.LightningModule,
            pl.LightningDataModule,
            save_config_callback=RunConfig,
            trainer_defaults={"enable_model_summary": False},
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            parser_class=RecloomParser,
            parser_kwargs={"allow_abbrev": False, command: {"description": DESCRIPTION[command]}},
            args=[command, *self.argv],
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the one subcommand asked for: parsers of the others would only cost time."""
        return {self.command: LightningCLI.subcommands()[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder, the checkpoint settings, and the link from the data's schema to the model."""
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder of the run. Default: runs/NAME of the config file, numbered if it is taken.",
        )
        parser.add_argument("--checkpoint", type=CheckpointConfig, default=CheckpointConfig())
        parser.link_arguments("data.schema", "model.init_args.schema", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Choose the run's folder, and the checkpoint that `last` and `best` stand for."""
        config = self.config[self.command]
        for part in ("model", "data"):
            if config.get(part) is None:
                raise RecloomError(f"no {part} is configured", f"Give --config FILE, or --{part} NAME.")
        name = str(config["model"]["class_path"]).rpartition(".")[2]
        choice = rundir.choose(self.command, config.get("run_dir"), self.ckpt_path, self.argv, name)
        self.run_dir = choice.path
        config["run_dir"] = str(choice.path)
        config["weights_only"] = True
        if choice.checkpoint is not None and os.environ.get("LOCAL_RANK", "0") == "0":
            checkpoint.read(choice.checkpoint, whole=False)  # Lightning reads it too, and compares no checksum
        config["ckpt_path"] = self.ckpt_path = None if choice.checkpoint is None else str(choice.checkpoint)
        trainer = config["trainer"]
        unlimited = trainer.get("max_epochs") is None and trainer.get("max_time") is None
        if self.command == "fit" and unlimited and trainer.get("max_steps") in (None, -1):
            trainer["max_epochs"] = 1  # Lightning's own default is 1000

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Add recloom's loggers and callbacks to what the config asks for."""
        config = self.config_init[self.command]
        trainer = config["trainer"]
        kwargs["default_root_dir"] = trainer.get("default_root_dir") or str(self.run_dir)
        if trainer.get("logger") in (None, True):
            wanted = self.command == "fit" and not trainer.get("fast_dev_run")
            kwargs["logger"] = run_loggers(self.run_dir) if wanted else False
        given = trainer.get("callbacks") or []
        kwargs["callbacks"] = [*(given if isinstance(given, list) else [given]), *self._callbacks(config, trainer)]
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException) as error:
            strategies = [entry.name for entry in catalog().strategies]
            raise RecloomError(f"trainer: {error}", f"recloom's own strategies: {', '.join(strategies)}.") from error

    def _callbacks(self, config: Any, trainer: Any) -> list[pl.Callback]:
        found: list[pl.Callback] = []
        if trainer.get("enable_progress_bar") is not False and not trainer.get("barebones"):
            found.append(ProgressBar())
        if self.command == "fit" and not trainer.get("fast_dev_run"):
            found.append(RunReport(self.run_dir))
            if trainer.get("enable_checkpointing") is not False:
                found += checkpoint_callbacks(config["checkpoint"], self.run_dir)
        if self.command == "predict":
            found.append(PredictionWriter(self.run_dir))
        return found


class RunConfig(SaveConfigCallback):
    """Writes the run's config.yaml, aside first; a resumed run keeps the earlier one beside it.

    It does so once the checkpoint is restored: a model that does not fit it leaves the run as it was.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write nothing yet."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the config when training starts, on rank 0."""
        if trainer.is_global_zero:
            rundir.save_config(Path(self.config.run_dir), self.parser.dump(self.config, skip_none=False))


def run(command: str, argv: list[str]) -> int:
    """Run one of Lightning's subcommands; what was mentioned is imported first, so that short names resolve."""
    argv, ckpt_path = rundir.with_run(command, *rundir.take_option(argv, "--ckpt_path"))
    mention.load_mentioned(argv)
    # Trainer.fit's children of a multi-process launch parse sys.argv again: it holds the same arguments
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    quiet.hush()
    try:
        with problems.located(argv):
            RecloomCLI(command, argv, ckpt_path)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # the Trainer turns Ctrl-C into exit(1)
            raise KeyboardInterrupt from None
        raise
    except MisconfigurationException as error:
        raise RecloomError(str(error).strip().split("\n")[0], "RECLOOM_TRACEBACK=1 shows where.") from error
    except ValueError as error:
        if (cause := problems.user_error(error)) is not None:
            raise cause from error
        raise
    return 0


def _command(name: str) -> Callable[[list[str]], int]:
    def command(argv: list[str]) -> int:
        return run(name, argv)

    command.__doc__ = DESCRIPTION[name]
    return command


fit = _command("fit")
validate = _command("validate")
test = _command("test")
predict = _command("predict")
