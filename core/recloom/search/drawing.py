"""The drawing of an architecture: a box for each part of a program, an arrow wherever one needs another's results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from recloom import plots
from recloom.search.program import Program, Work

_LINE, _GAP, _WIDE = 0.2, 0.5, 2.7  # inches: a line of text, between rows, a box
_MOST_LINES = 9


@dataclass
class Box:
    """A part of an architecture: the works of one group.

    Args:
        name: The group.
        lines: What it does, a line for each product and each gather.
        macs: Its multiply-accumulates.
        inputs: Boxes whose results it needs.
        depth: The longest way from an input.
    """

    name: str
    lines: list[str] = field(default_factory=list)
    macs: int = 0
    inputs: dict[str, None] = field(default_factory=dict)
    depth: int = 0


def boxes(program: Program) -> list[Box]:
    """Return the parts of a program, in the order of their first works; a work without a group is its own."""
    found: dict[str, Box] = {}
    names = [work.group or work.name for work in program.works]
    for work, name in zip(program.works, names, strict=True):
        box = found.setdefault(name, Box(name))
        box.macs += work.macs
        if line := _line(work):
            box.lines.append(line)
        for place in work.inputs:
            if names[place] != name:
                box.inputs[names[place]] = None
                box.depth = max(box.depth, found[names[place]].depth + 1)
    return list(found.values())


def draw_program(program: Program) -> str:
    """Draw a program as SVG: inputs on top, the logit at the bottom; arrows that skip rows run along the sides."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parts = boxes(program)
    rows = [[box for box in parts if box.depth == depth] for depth in sorted({box.depth for box in parts})]
    heights = [max(_height(box) for box in row) for row in rows]
    width = max(max(len(row) for row in rows) * (_WIDE + 0.3) + 2.4, 7.0)
    total = sum(heights) + _GAP * (len(rows) + 1)
    figure = Figure(figsize=(width, total))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, width)
    axes.set_ylim(0, total)
    axes.axis("off")
    spots: dict[str, tuple[float, float, float]] = {}  # middle of the box, top and bottom
    top = total - _GAP
    for row, height in zip(rows, heights, strict=True):
        left = (width - len(row) * (_WIDE + 0.3)) / 2
        for place, box in enumerate(row):
            spots[box.name] = (left + (place + 0.5) * (_WIDE + 0.3), top, top - _height(box))
            _draw_box(axes, box, *spots[box.name])
        top -= height + _GAP
    order = [row[0].depth for row in rows]
    for box in parts:
        for name in box.inputs:
            source = next(other for other in parts if other.name == name)
            _draw_arrow(axes, spots[name], spots[box.name], order.index(box.depth) - order.index(source.depth))
    return plots.svg(figure)


def _line(work: Work) -> str:
    name = work.name.rpartition(".")[2] if work.group else work.name
    times = f" x {work.vectors}" if work.vectors > 1 else ""
    if work.kind == "matmul":
        return f"{name}  {work.rows} → {work.columns}{times}"
    if work.kind == "dynamic":
        return f"{name}  ({work.vectors} x {work.rows}) ({work.rows} x {work.columns})"
    return f"{name}  {work.vectors} rows of {work.columns}" if work.kind == "gather" else ""


def _shown(box: Box) -> list[str]:
    hidden = len(box.lines) - _MOST_LINES
    return box.lines if hidden <= 0 else [*box.lines[:_MOST_LINES], f"and {hidden} more"]


def _height(box: Box) -> float:
    return _LINE * (len(_shown(box)) + 1) + 0.18


def _draw_box(axes: Any, box: Box, middle: float, top: float, bottom: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.08"
    colour = plots.COLOURS[2] if not box.inputs else plots.COLOURS[0]
    corner = (middle - _WIDE / 2, bottom)
    axes.add_patch(FancyBboxPatch(corner, _WIDE, top - bottom, style, fc=colour, ec=colour, alpha=0.16, lw=0, zorder=3))
    axes.add_patch(FancyBboxPatch(corner, _WIDE, top - bottom, style, fc="none", ec=colour, lw=1, zorder=3))
    macs = f"   {_count(box.macs)} MACs" if box.macs else ""
    lines: Sequence[tuple[str, str]] = [(box.name + macs, "bold"), *((line, "normal") for line in _shown(box))]
    for place, (text, weight) in enumerate(lines):
        y = top - 0.17 - place * _LINE
        text = text if len(text) < 42 else text[:39] + "..."
        axes.text(middle, y, text, fontsize=8, weight=weight, color=plots.INK, ha="center", va="center", zorder=4)


def _draw_arrow(axes: Any, source: tuple[float, float, float], target: tuple[float, float, float], rows: int) -> None:
    style: dict[str, Any] = {"arrowstyle": "-|>", "color": plots.COLOURS[-1], "lw": 1.0, "alpha": 0.8}
    if rows == 1:
        start, end = (source[0], source[2]), (target[0], target[1])
    else:  # from side to side, farther out the more rows are skipped
        side = 1 if rows % 2 else -1
        start = (source[0] + side * _WIDE / 2, (source[1] + source[2]) / 2)
        end = (target[0] + side * _WIDE / 2, (target[1] + target[2]) / 2)
        bend = min(0.6, 0.9 / max(1.0, abs(start[1] - end[1])) ** 0.5)
        style["connectionstyle"] = f"arc3,rad={-side * bend:.2f}"
    axes.annotate("", end, start, arrowprops=style, zorder=2)


def _count(value: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)
