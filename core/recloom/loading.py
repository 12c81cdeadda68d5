"""Models outside of a training run: built from a config file, with the weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import ArgumentParser

from recloom import checkpoint, mention, problems, runs
from recloom.errors import DataError, RecloomError
from recloom.features import FeatureSchema


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise a RecloomError about `message`."""
        raise problems.explain(message)


def build_model(config: str | Path, schema: dict[str, Any] | None = None) -> pl.LightningModule:
    """Return the model of a config file, with initial weights.

    Args:
        config: A YAML file as `recloom fit` takes it, or a run's config.yaml.
        schema: The data's schema; by default that of the config's data module.

    Raises:
        RecloomError: The file has no model, or one that cannot be built.
    """
    section = model_section(config)
    if schema is None:
        schema = build_data(config).schema  # type: ignore[attr-defined]
    return instantiate_model(section, schema)


def instantiate_model(section: dict[str, Any], schema: dict[str, Any] | FeatureSchema) -> Any:
    """Return the model of a config's section ({"class_path": ..., "init_args": ...}) for data of `schema`."""
    values = schema.to_dict() if isinstance(schema, FeatureSchema) else schema
    init_args = {**(section.get("init_args") or {}), "schema": values}
    return _instantiate({**section, "init_args": init_args}, pl.LightningModule)


def model_section(config: str | Path) -> dict[str, Any]:
    """Return the `model` of a config file, what it mentions imported; RecloomError when it has none."""
    return _document(config, "model")["model"]


def build_data(config: str | Path) -> pl.LightningDataModule:
    """Return the data module of a config file; RecloomError when it has none."""
    return _instantiate(_document(config, "data")["data"], pl.LightningDataModule)


def load_trained(config: str | Path, ckpt_path: str | Path) -> pl.LightningModule:
    """Return the model of `config` with the weights and the schema of the checkpoint at `ckpt_path`, in eval mode."""
    ckpt_path = runs.existing_file(Path(ckpt_path))
    state = checkpoint.read(ckpt_path)
    schema = state.get("hyper_parameters", {}).get("schema")
    if schema is None:
        raise DataError(f"{ckpt_path}: it holds no feature schema", "Use a checkpoint that `recloom fit` wrote.")
    model = build_model(config, schema)
    model.configure_model()
    checkpoint.load_weights(model, ckpt_path)
    return model.eval()


def load_run(run: str | Path, ckpt_path: str | None = None) -> pl.LightningModule:
    """Return the trained model of a run, in eval mode.

    Args:
        run: The run's folder.
        ckpt_path: "last", "best" or a checkpoint file; None is the best, or the last where there is no best.

    Raises:
        RecloomError: There is no run, or no such checkpoint.
        DataError: The checkpoint is damaged, or not of this model.
    """
    return load_trained(Path(run) / "config.yaml", runs.checkpoint_of(Path(run), ckpt_path))


def _document(config: str | Path, part: str) -> dict[str, Any]:
    config = Path(config)
    document = mention.read_yaml(config)
    section = document.get(part) if isinstance(document, dict) else None
    if isinstance(section, str):
        document[part] = {"class_path": section}
    elif not isinstance(section, dict) or "class_path" not in section:
        raise RecloomError(f"{config}: no {part} is configured", f"It needs `{part}:` with a `class_path`.")
    mention.load_mentioned([str(config)])
    return document


def _instantiate(section: dict[str, Any], base: type) -> Any:
    mention.load_named(set(mention.strings(section)))
    parser = _Parser(exit_on_error=False)
    parser.add_subclass_arguments(base, "it", required=True)
    try:
        return parser.instantiate_classes(parser.parse_object({"it": section})).it
    except RecloomError:
        raise
    except Exception as error:  # jsonargparse raises ArgumentError, TypeError, ValueError, ... by what is wrong
        raise problems.explain(str(error)) from error
