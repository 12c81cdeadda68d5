"""The report of a run: report.html and report.md in its folder. `Report` builds any other report too."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from recloom import machine, plots
from recloom.document import Report, show
from recloom.embedding import EmbeddingBagCollection
from recloom.plugins import host
from recloom.rowgrad import is_row_parameter

__all__ = ["Report", "parts", "read_curves", "write_run_report"]

Curve = tuple[list[float], list[float]]

_NAMES = {"ne": "NE", "auc": "AUC", "loss": "log loss", "logloss": "log loss", "gauc": "grouped AUC"}
_TABLES_SHOWN = 20


def write_run_report(run_dir: Path, trainer: Trainer, module: LightningModule) -> Path:
    """Write report.html and report.md into `run_dir` and return the HTML's path.

    What a run does not have is left out: any LightningModule gets its curves, its parts, its config and the machine;
    a RankingModule also NE beside the best possible one and its calibration plot.
    """
    config = run_dir / "config.yaml"
    report = Report(f"{type(module).__name__}: {run_dir.name}", _subtitle(config, trainer))
    _headline(report, trainer)
    curves = read_curves(run_dir / "metrics.csv")
    _learning_curves(report, curves, trainer)
    _calibration(report, module)
    _model(report, module)
    rows = [row for plugin_rows in host().hook.summarize(module=module) for row in plugin_rows]
    if rows:
        report.section("From plugins")
        report.facts(rows)
    report.section("Where and with what")
    seed = os.environ.get("PL_GLOBAL_SEED", "none")
    report.facts({"seed": seed, "ranks": str(trainer.world_size), **machine.facts(), **machine.versions()})
    if config.exists():
        report.code(config.read_text(), "config.yaml", "yaml")
    return report.save(run_dir)


def read_curves(path: Path) -> dict[str, Curve]:
    """Return the metrics in a metrics.csv: steps and values by name; values that are not finite are left out."""
    from recloom.loggers import read_metrics

    curves: dict[str, Curve] = {}
    for row in read_metrics(path):
        step = float(row["step"])
        for name, text in row.items():
            if name in ("step", "epoch") or not text:
                continue
            value = float(text)
            if math.isfinite(value):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    return curves


def parts(module: nn.Module) -> list[tuple[str, str, int, int, int]]:
    """Return (name, class, embedding parameters, dense parameters, bytes) for each direct part of `module`.

    Embedding parameters are rows of tables: those of an EmbeddingBagCollection, of torch's embeddings, or any
    parameter with row gradients. A parameter that several parts share is counted with the first.
    """
    rows = _embedding_parameters(module)
    seen: set[int] = set()
    found = []
    own = [("(own)", module, list(module.parameters(recurse=False)))]
    children = [(name, child, list(child.parameters())) for name, child in module.named_children()]
    for name, child, parameters in [*children, *own]:
        new = [parameter for parameter in parameters if id(parameter) not in seen]
        seen.update(id(parameter) for parameter in new)
        if new:
            embedding = sum(parameter.numel() for parameter in new if id(parameter) in rows)
            dense = sum(parameter.numel() for parameter in new) - embedding
            size = sum(parameter.numel() * parameter.element_size() for parameter in new)
            found.append((name, type(child).__name__, embedding, dense, size))
    return found


def _embedding_parameters(module: nn.Module) -> set[int]:
    holders = (EmbeddingBagCollection, nn.Embedding, nn.EmbeddingBag)
    inside = [p for child in module.modules() if isinstance(child, holders) for p in child.parameters()]
    return {id(p) for p in [*inside, *(p for p in module.parameters() if is_row_parameter(p))]}


def _subtitle(config: Path, trainer: Trainer) -> str:
    now = time.time()
    started = config.stat().st_mtime if config.exists() else now
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(started))
    return f"Started {day}, took {_duration(now - started)}, {trainer.global_step:,} optimizer steps"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _headline(report: Report, trainer: Trainer) -> None:
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if not values:
        return
    report.section("Results")
    for stage, title in (("val", "validation"), ("test", "test")):
        ne, best = values.get(f"{stage}_ne"), values.get(f"{stage}_oracle_ne")
        if ne is not None and best is not None:
            report.text(
                f"{title.capitalize()} NE {ne:.5f}; the best possible NE of the same rows is {best:.5f}: "
                f"{100 * (ne / best - 1):.2f}% above it."
            )
    report.table(("metric", "value"), sorted(values.items()))


def _label(name: str) -> str:
    stage, _, metric = name.partition("_")
    return f"{stage} {_NAMES.get(metric, metric.replace('_', ' '))}" if metric else name


def _learning_curves(report: Report, curves: dict[str, Curve], trainer: Trainer) -> None:
    if not curves:
        return
    known = {
        "NE": ("train_ne", "val_ne"),
        "AUC": ("train_auc", "val_auc"),
        "log loss": ("train_loss", "val_logloss", "val_loss"),
        "samples a second": ("samples_per_second",),
    }
    panels: dict[str, dict[str, Curve]] = {}
    for title, names in known.items():
        series = {_label(name): curves[name] for name in names if name in curves}
        if series:
            panels[title] = series
    if not panels:  # somebody else's module, with names of its own
        panels = {name: {name: curve} for name, curve in sorted(curves.items())[:8]}
    oracle = trainer.callback_metrics.get("val_oracle_ne")
    levels = {"NE": float(oracle)} if oracle is not None else None
    caption = "Metrics by optimizer step." + (" Dashed: the best possible validation NE." if levels else "")
    report.section("Learning curves")
    report.plot("learning-curves", plots.lines(panels, "step", levels=levels), caption)


def _calibration(report: Report, module: LightningModule) -> None:
    reliability = getattr(module, "reliability", None)
    curve: Tensor | None = reliability("val") if callable(reliability) else None
    if curve is None or len(curve) == 0:
        return
    caption = "Validation rows in bins of the predicted logit: on the diagonal, predictions are right on average."
    report.section("Calibration")
    report.plot("calibration", plots.calibration(curve.tolist()), caption)


def _model(report: Report, module: LightningModule) -> None:
    rows = parts(module)
    if not rows:
        return
    report.section("Model")
    total = ("total", "", *(sum(int(row[i]) for row in rows) for i in (2, 3, 4)))
    header = ("part", "class", "embedding parameters", "dense parameters", "bytes")
    report.table(header, [*rows, total])
    tables = [t for child in module.modules() if isinstance(child, EmbeddingBagCollection) for t in child.tables]
    largest = sorted(tables, key=lambda table: -table.num_embeddings)[:_TABLES_SHOWN]
    hidden = f"The largest {len(largest)} of {len(tables)} tables." if len(largest) < len(tables) else ""
    report.table(
        ("table", "rows", "width", "pooling", "features"),
        [
            (t.name, t.num_embeddings, t.embedding_dim, t.pooling, ", ".join(map(show, t.feature_names)))
            for t in largest
        ],
        hidden,
    )
