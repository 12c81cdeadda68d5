"""Plots as SVG text, by matplotlib without a display. matplotlib is imported when the first plot is drawn."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Lines by name: their x and y values."""

COLOURS = ("#2f81f7", "#e5871a", "#2da44e", "#bf5af2", "#d1495b", "#1aa6a6", "#8c6d46", "#7a7f87")
MOST_POINTS = 800
INK = "#010203"  # stands for the page's text colour


def lines(
    panels: Mapping[str, Series],
    x_label: str,
    *,
    levels: Mapping[str, float] | None = None,
    columns: int = 2,
    log_x: bool = False,
) -> str:
    """Draw one panel of lines for each title in `panels`; longer lines are thinned to 800 points.

    Args:
        panels: Lines by panel title.
        x_label: What is along the x axes.
        levels: Dashed horizontal lines: a level by panel title.
        columns: Panels a row.
        log_x: Logarithmic x axes.
    """
    rows = -(-len(panels) // columns)
    figure, grid = _figure(rows, min(columns, len(panels)))
    for axes, (title, series) in zip(grid, panels.items(), strict=False):
        for index, (name, (x, y)) in enumerate(series.items()):
            step = -(-len(x) // MOST_POINTS) or 1
            marker = "o" if len(x) <= 10 else ""
            axes.plot(
                x[::step], y[::step], label=name, color=COLOURS[index % len(COLOURS)], lw=1.4, marker=marker, ms=4
            )
        if levels and title in levels:
            axes.axhline(levels[title], color=COLOURS[-1], lw=1, ls="--")
        _dress(axes, title, x_label, "", legend=len(series) > 1)
        if log_x:
            axes.set_xscale("log")
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return svg(figure)


def scatter(
    panels: Mapping[str, Series],
    x_labels: Sequence[str],
    y_label: str,
    *,
    columns: int = 2,
    steps: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    log_x: bool = False,
) -> str:
    """Draw one panel of points for each title in `panels`, a colour for each series.

    Args:
        panels: Points by panel title and series.
        x_labels: What is along the x axis of each panel.
        y_label: What is along the y axes.
        columns: Panels a row.
        steps: A staircase by panel title: the corners of a front, by growing x.
        log_x: Logarithmic x axes.
    """
    rows = -(-len(panels) // columns)
    figure, grid = _figure(rows, min(columns, len(panels)))
    for axes, x_label, (title, series) in zip(grid, x_labels, panels.items(), strict=False):
        for index, (name, (x, y)) in enumerate(series.items()):
            axes.scatter(x, y, label=name, color=COLOURS[index % len(COLOURS)], s=14, alpha=0.75, lw=0)
        if steps and title in steps:
            axes.step(*steps[title], where="post", color=COLOURS[-1], lw=1, ls="--")
        if log_x:
            axes.set_xscale("log")
        _dress(axes, title, x_label, y_label, legend=len(series) > 1)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return svg(figure)


def bars(values: Mapping[str, float], y_label: str, *, level: float | None = None) -> str:
    """Draw one bar for each name, from the smallest value's neighbourhood up; `level` is a dashed line."""
    figure, (axes,) = _figure(1, 1)
    axes.bar(list(values), list(values.values()), color=COLOURS[0], width=0.6)
    shown = [*values.values(), *([] if level is None else [level])]
    low, high = min(shown), max(shown)
    if low > 0 and (high - low) < 0.3 * high:  # the differences would not be seen from zero
        axes.set_ylim(low - 0.3 * (high - low or high), high + 0.3 * (high - low or high))
    if level is not None:
        axes.axhline(level, color=COLOURS[-1], lw=1, ls="--")
    _dress(axes, "", "", y_label, legend=False)
    return svg(figure)


def calibration(curve: Any) -> str:
    """Draw a calibration curve: bins x (mean prediction, mean label, rows), and each bin's share of the rows."""
    figure, (axes, counts) = _figure(1, 2)
    predicted, observed, rows = ([float(row[i]) for row in curve] for i in range(3))
    top = max([*predicted, *observed])
    axes.plot([0, top], [0, top], color=COLOURS[-1], lw=1, ls="--")
    total = sum(rows)
    sizes = [8 + 300 * count / total for count in rows]
    axes.scatter(predicted, observed, s=sizes, color=COLOURS[0], alpha=0.7, lw=0)
    _dress(axes, "Calibration", "predicted click probability", "observed click rate", legend=False)
    counts.fill_between(predicted, [count / total for count in rows], step="mid", color=COLOURS[0], alpha=0.5, lw=0)
    _dress(counts, "Predictions", "predicted click probability", "share of rows", legend=False)
    return svg(figure)


def svg(figure: Figure) -> str:
    """Return any matplotlib figure as SVG for inlining: transparent, black drawn in the page's text colour."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "recloom"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)


def standalone(drawing: str) -> str:
    """Return inline SVG as a file of its own, whose text is readable on light and on dark pages."""
    style = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
    return re.sub(r"(<svg[^>]*>)", r"\1" + style, drawing, count=1)


def _figure(rows: int, columns: int) -> tuple[Figure, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * columns, 2.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    return figure, list(grid.flat)


def _dress(axes: Any, title: str, x_label: str, y_label: str, *, legend: bool) -> None:
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xlabel(x_label, fontsize=9, color=INK)
    axes.set_ylabel(y_label, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(alpha=0.25, lw=0.5)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    if legend:
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)
