"""Trained models as files that serve without recloom: torch.export and ONNX, checked against the eager model."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from recloom import intact, programs
from recloom.errors import RecloomError
from recloom.model import RankingModule
from recloom.serving import ServingModel, batch_of, random_inputs

Format = Literal["torch", "onnx"]
SUFFIX = {"torch": ".pt2", "onnx": ".onnx"}
CHECKED_BATCHES = (1, 2, 7, 64, 257)
EXTERNAL_DATA_BYTES = 1 << 30
CONSTANT = "In what is exported, write x.shape[0], not len(x). --batch-size N exports it for one size."


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        path: The model's file; `path`.json beside it says how to feed it.
        max_abs_diff: Largest difference to the eager model over the checked batches.
        batches: The batch sizes that were checked.
    """

    path: Path
    max_abs_diff: float
    batches: tuple[int, ...]


def export_model(
    module: RankingModule,
    path: Path,
    format: Format = "torch",
    batch_size: int | None = None,
    logits: bool = False,
    source: dict[str, str] | None = None,
    tolerance: float | None = None,
) -> Exported:
    """Write `module` to `path` and a description of its inputs to `path`.json, aside first and then renamed.

    The file as written is read back and run on random batches; it is kept only if it agrees with the eager model.

    Args:
        module: A model whose `forward` is all it needs: dense values, categorical ids, histories.
        path: The file to write.
        format: "torch": a torch.export program (.pt2); "onnx": an ONNX graph.
        batch_size: The only batch size that it will take; None: any.
        logits: Whether it returns logits instead of probabilities.
        source: Where the model is from, for the description.
        tolerance: Largest difference allowed; None: the model's `export_tolerance`.

    Raises:
        RecloomError: The model cannot be exported, or the file disagrees with it.
    """
    if type(module).logits is not RankingModule.logits:
        raise RecloomError(
            f"{type(module).__name__} needs more of a batch than dense values, categorical ids and histories",
            "Only models whose `forward` takes those can be exported.",
        )
    module.on_export()
    serving = ServingModel(module.eval().cpu(), logits)
    aside = path.with_name(f".{path.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        with torch.no_grad(), _quiet():
            _write(serving, aside / path.name, format, batch_size)
            sizes = CHECKED_BATCHES if batch_size is None else (batch_size,) * 3
            largest = _compare(serving, aside / path.name, format, sizes)
        allowed = module.export_tolerance if tolerance is None else tolerance
        if not largest <= allowed:
            raise RecloomError(
                f"{path}: the exported model differs from the eager one by {largest:.3g}, more than {allowed:g}",
                "Nothing was written. Should the model's outputs be that inexact, allow more with --tolerance.",
            )
        done = Exported(path, largest, sizes)
        description = {
            "format": format,
            "model": f"{type(module).__module__}.{type(module).__qualname__}",
            "source": source or {},
            **serving.describe(batch_size),
            "checked": {"batch_sizes": list(sizes), "max_abs_diff": largest},
            "torch": torch.__version__,
            "schema": module.schema.to_dict(),
        }
        text = json.dumps(description, indent=1)
        (aside / f"{path.name}.json").write_text(text + "\n")
        for file in sorted(aside.iterdir(), key=lambda file: file.name == path.name):  # the model itself last
            os.replace(file, path.with_name(file.name))
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return done


class _Named(nn.Module):
    """A serving model whose `forward` has the inputs `names` and no others, by keyword.

    The exporters name inputs by `forward`'s signature, and the histories of a schema are known at run time only.
    """

    def __init__(self, serving: ServingModel, names: Iterable[str]) -> None:
        super().__init__()
        self.serving = serving

        def forward(**inputs: Tensor) -> Tensor:
            return cast(Tensor, serving(**inputs))

        parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        self.forward = forward


def _write(serving: ServingModel, path: Path, format: Format, batch_size: int | None) -> None:
    """Export with example inputs of 5 samples (not 0 or 1, which tracing would take for constants)."""
    example = random_inputs(serving.module, batch_size or 5, seed=0)
    batch, values = torch.export.Dim("batch"), torch.export.Dim("values")
    shapes: dict[str, Any] = {name: None if batch_size else {0: batch} for name in example}
    if "lengths" in example:
        shapes |= {name: {0: values} for name in ("values", "weights") if name in example}
        shapes["lengths"] = None if batch_size else {1: batch}
    named = _Named(serving, example)
    if format == "onnx":
        _need_onnx()
    try:
        exported = torch.export.export(named, (), example, dynamic_shapes=shapes)
        if format == "torch":
            programs.save(exported, path)
            return
        program = torch.onnx.export(
            exported,
            (),
            kwargs=example,
            input_names=list(example),
            output_names=[serving.output_name],
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        size = sum(tensor.nbytes for tensor in serving.state_dict().values())
        with intact.room(path.parent):
            program.save(str(path), external_data=size > EXTERNAL_DATA_BYTES)
    except RecloomError:
        raise
    except Exception as error:  # torch raises many kinds, for whatever in a model's forward cannot be traced
        if isinstance(error.__cause__, RecloomError):  # the ONNX exporter wraps what a model raises
            raise error.__cause__ from None
        cause = str(error.__cause__ or error).strip().split("\n")[0]
        raise RecloomError(
            f"{type(serving.module).__name__} cannot be exported as {format}: {cause}",
            CONSTANT if "Constraints violated" in cause else "RECLOOM_TRACEBACK=1 shows where.",
        ) from error


def _compare(serving: ServingModel, path: Path, format: Format, sizes: tuple[int, ...]) -> float:
    """Return the largest difference between the file's output and the eager model's own on a batch of training data."""
    run = _runner(path, format)
    largest = 0.0
    for seed, batch in enumerate(sizes, start=1):
        inputs = random_inputs(serving.module, batch, seed)
        eager = serving.module.logits(batch_of(serving.module, inputs))
        expected = eager if serving.logits else torch.sigmoid(eager)
        try:
            found = run(inputs)
        except Exception as error:  # a size was taken for a constant after all
            cause = str(error).strip().split("\n")[0]
            raise RecloomError(
                f"{type(serving.module).__name__} as {format} does not run on {batch} samples: {cause}",
                CONSTANT,
            ) from error
        if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
            return float("inf")
        largest = max(largest, float((found - expected).abs().max()))
    return largest


def _runner(path: Path, format: Format) -> Callable[[dict[str, Tensor]], Tensor]:
    if format == "torch":
        program = torch.export.load(path).module()
        return lambda inputs: program(**inputs)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {name: t.numpy() for name, t in inputs.items()})[0])


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RecloomError(f"ONNX export needs {error.name}", "Try: pip install 'recloom[onnx]'") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' progress and internal warnings from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
