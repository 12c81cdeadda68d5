"""A report under construction: sections, tables and plots, written as one HTML file and as Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recloom import plots

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --page: #fff; --box: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --page: #0d1117; --box: #151b23; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.2rem; margin-top: 2rem }
p.soft, figcaption, caption { color: var(--soft); font-size: .9rem; text-align: left }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; display: block;
  overflow-x: auto }
td, th { border-bottom: 1px solid var(--line); padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top }
td.number, th.number { text-align: right }
pre { background: var(--box); padding: .8rem; overflow-x: auto; font-size: .85rem }
figure { margin: 1rem 0 } figure svg { max-width: 100%; height: auto } summary { cursor: pointer }
"""


class Report:
    """Sections, tables and plots in the order in which they are added; `save` writes report.html and report.md.

    The HTML needs no other file. Plots are SVG that follows the page's light or dark colours; the Markdown links to
    copies of them in `figures`.

    Args:
        title: The heading.
        subtitle: A line below it.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self._html = [f"<h1>{html.escape(title)}</h1>"]
        self._markdown = [f"# {title}"]
        self._figures: dict[str, str] = {}
        if subtitle:
            self._html.append(f'<p class="soft">{_inline(subtitle)}</p>')
            self._markdown.append(subtitle)

    def section(self, title: str) -> None:
        """Start a section."""
        self._html.append(f"<h2>{html.escape(title)}</h2>")
        self._markdown.append(f"## {title}")

    def text(self, text: str) -> None:
        """Add a paragraph; `code` in backticks."""
        self._html.append(f"<p>{_inline(text)}</p>")
        self._markdown.append(text)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> None:
        """Add a table. Floats are shown with 6 significant digits, integers with thousands separated."""
        if not rows:
            return
        cells = [[show(cell) for cell in row] for row in rows]
        numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
        kinds = [' class="number"' if number else "" for number in numeric]
        top = "".join(f"<th{kind}>{html.escape(name)}</th>" for name, kind in zip(header, kinds, strict=True))
        body = "".join(
            "<tr>" + "".join(f"<td{k}>{_inline(cell)}</td>" for cell, k in zip(row, kinds, strict=True)) + "</tr>\n"
            for row in cells
        )
        below = f"<caption>{_inline(caption)}</caption>" if caption else ""
        self._html.append(f"<table>{below}<thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table>")
        rule = ["---:" if number else "---" for number in numeric]
        lines = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in [list(header), rule, *cells]]
        self._markdown.append("\n".join(([f"{caption}\n"] if caption else []) + lines))

    def facts(self, rows: Mapping[str, Any] | Sequence[tuple[str, Any]], header: tuple[str, str] = ("", "")) -> None:
        """Add a table of names and values."""
        pairs = list(rows.items()) if isinstance(rows, Mapping) else list(rows)
        self.table(header, [(name, show(value)) for name, value in pairs])

    def plot(self, name: str, svg: str, caption: str = "") -> None:
        """Add a plot: the SVG that a function of `recloom.plots` made.

        Args:
            name: Its file name in `figures`, without suffix.
            svg: The drawing.
            caption: What it shows; also its alternative text.
        """
        self._figures[name] = svg
        note = f"<figcaption>{_inline(caption)}</figcaption>" if caption else ""
        self._html.append(f'<figure role="img" aria-label="{html.escape(caption or name)}">{svg}{note}</figure>')
        self._markdown.append(f"![{caption or name}](figures/{name}.svg)" + (f"\n\n{caption}" if caption else ""))

    def code(self, text: str, title: str, language: str = "") -> None:
        """Add text as it is, folded under `title`."""
        self._html.append(f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(text)}</pre></details>")
        self._markdown.append(f"{title}:\n\n```{language}\n{text.rstrip()}\n```")

    def append(self, other: Report) -> None:
        """Add what `other` holds, without its title."""
        self._html += other._html[1:]
        self._markdown += other._markdown[1:]
        self._figures.update(other._figures)

    def html(self) -> str:
        """Return the page."""
        head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        body = "\n".join(self._html)
        return (
            f'<!doctype html>\n<html lang="en"><head>{head}<title>{html.escape(self.title)}</title>'
            f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
        )

    def markdown(self) -> str:
        """Return the report as Markdown."""
        return "\n\n".join(self._markdown) + "\n"

    def save(self, directory: Path, stem: str = "report") -> Path:
        """Write STEM.html, STEM.md and the plots' files, each aside first and then renamed; return the HTML's path."""
        directory.mkdir(parents=True, exist_ok=True)
        if self._figures:
            (directory / "figures").mkdir(exist_ok=True)
        for name, svg in self._figures.items():
            write_text(directory / "figures" / f"{name}.svg", plots.standalone(svg))
        write_text(directory / f"{stem}.md", self.markdown())
        write_text(directory / f"{stem}.html", self.html())
        return directory / f"{stem}.html"


def show(value: Any) -> str:
    """Return a cell's text: 6 significant digits for floats, separated thousands for integers, yes and no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.6g}"
    return "" if value is None else str(value)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`: aside first, then renamed."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def _inline(text: str) -> str:
    """Return `text` escaped, `code` in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
