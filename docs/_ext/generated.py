"""Replaces `<!-- generated: WHAT -->` in a page by Markdown made from what is installed, each time the docs are built.

`components`: every registered component by kind, with its options. `commands`: the help of every command.
`api MODULE NAME ...`: classes and functions of a module. What they say is the docstrings' text.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import os
import re
from collections.abc import Iterator
from typing import Any

import docstring_parser

from recloom.catalog import KINDS, Entry
from recloom.errors import ComponentImportError
from recloom.plugins import catalog

MARK = re.compile(r"<!-- generated: ([^>]+?) -->")
LIGHTNING = ("fit", "validate", "test", "predict")


def setup(app: Any) -> dict[str, bool]:
    app.connect("source-read", lambda app, page, source: source.__setitem__(0, fill(source[0])))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def fill(text: str) -> str:
    return MARK.sub(lambda match: generate(*match[1].split()), text)


def generate(what: str, *arguments: str) -> str:
    parts = {"components": components, "commands": commands, "api": api}[what](*arguments)
    return "\n\n".join(parts)


def components() -> Iterator[str]:
    for kind in KINDS:
        entries = [] if kind in ("commands", "benchmarks") else list(getattr(catalog(), kind))
        if entries:
            yield f"## {kind.replace('_', ' ').capitalize()}"
        for entry in entries:
            yield f"### {escape(entry.name)}"
            yield f"`{entry.path}`, plugin `{entry.plugin}`" + (f", extra `{entry.extra}`" if entry.extra else "")
            yield from component(entry)


def component(entry: Entry) -> Iterator[str]:
    try:
        found = entry.load()
    except ComponentImportError:
        yield escape(f"{entry.summary}. (Not installed where this page was made.)")
        return
    if entry.kind == "experiment":
        yield escape(f"{found.paper}. {found.summary}")
        return
    yield from described(found)


def described(found: Any, skip: tuple[str, ...] = ("schema", "tables", "num_vectors")) -> Iterator[str]:
    """A docstring's text, and a table of the parameters it documents with their types and defaults."""
    document = docstring_parser.parse(inspect.getdoc(found) or "")
    if document.description:
        yield prose(document.description)
    try:
        signature = inspect.signature(found).parameters
    except (TypeError, ValueError):
        signature = {}
    rows = []
    for param in document.params:
        if param.arg_name not in skip:
            given = signature.get(param.arg_name)
            cells = [f"`{param.arg_name}`", code(annotation(given)), code(default(given)), line(param.description)]
            rows.append(f"| {' | '.join(cells)} |")
    if rows:
        yield "\n".join(["| option | type | default | what it is |", "|---|---|---|---|", *rows])
    if document.returns and document.returns.description:
        yield f"Returns: {prose(document.returns.description)}"
    for raised in document.raises:
        yield f"Raises `{raised.type_name}`: {line(raised.description)}"


def commands() -> Iterator[str]:
    for entry in catalog().commands:
        yield f"## {entry.name}"
        yield f"{escape(entry.summary[0].upper() + entry.summary[1:])}. (Plugin `{entry.plugin}`.)"
        if entry.name not in LIGHTNING:
            yield block(help_text(entry, ["--help"]))
    for entry in catalog().formats:
        yield f"## prepare {entry.name}"
        text = help_text(catalog().commands.get("prepare"), [entry.name, "--help"])
        start = text.find(f"options of {entry.name}")
        yield f"{escape(entry.summary)}." + ("" if start < 0 else " Its own options:")
        if start >= 0:
            yield block(text[start:])


def help_text(entry: Entry, argv: list[str]) -> str:
    out = io.StringIO()
    os.environ["COLUMNS"] = "100"
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        entry.load()(argv)
    return out.getvalue().strip()


def api(module: str, *names: str) -> Iterator[str]:
    found = importlib.import_module(module)
    yield f"## {module}"
    yield prose(inspect.getdoc(found) or "")
    for name in names:
        item = getattr(found, name)
        yield f"### {escape(name)}"
        if callable(item):
            kind = "class" if isinstance(item, type) else "def"
            yield block(f"{kind} {name}{signature_text(item)}", "python")
        yield from described(item, skip=())
        if isinstance(item, type):
            yield from methods(item)


def methods(cls: type) -> Iterator[str]:
    rows = []
    for name, value in vars(cls).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if name.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        names = [parameter for parameter in inspect.signature(function).parameters if parameter not in ("self", "cls")]
        arguments = "" if isinstance(value, property) else f"({', '.join(names)})"
        rows.append(f"| `{name}{arguments}` | {line(docstring_parser.parse(function.__doc__).short_description)} |")
    if rows:
        yield "\n".join(["| member | what it is |", "|---|---|", *rows])


def signature_text(item: Any) -> str:
    try:
        signature = inspect.signature(item)
    except (TypeError, ValueError):
        return ""
    parts = []
    for parameter in signature.parameters.values():
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        kind, value = annotation(parameter), default(parameter)
        parts.append(f"{star}{parameter.name}" + (f": {kind}" if kind else "") + (f" = {value}" if value else ""))
    joined = f"({', '.join(parts)})"
    return joined if len(joined) < 90 else "(\n    " + ",\n    ".join(parts) + ",\n)"


def annotation(parameter: inspect.Parameter | None) -> str:
    if parameter is None or parameter.annotation is parameter.empty:
        return ""
    found = parameter.annotation
    text = found if isinstance(found, str) else getattr(found, "__name__", str(found))
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", text)


def default(parameter: inspect.Parameter | None) -> str:
    if parameter is None or parameter.default is parameter.empty:
        return ""
    value = parameter.default
    return value.__name__ if callable(value) and hasattr(value, "__name__") else re.sub(r" at 0x\w+", "", repr(value))


def code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def block(text: str, language: str = "text") -> str:
    return f"```{language}\n{text}\n```"


def line(text: str | None) -> str:
    return escape(" ".join((text or "").split()))


def prose(text: str) -> str:
    """Paragraphs of a docstring; indented ones stay as they are."""
    parts = []
    for part in re.split(r"\n\s*\n", text):
        indented = all(line.startswith("    ") for line in part.splitlines())
        parts.append(block(inspect.cleandoc(part)) if indented else escape(" ".join(part.split())))
    return "\n\n".join(parts)


def escape(text: str) -> str:
    """Text whose only markup is `code`."""
    pieces = re.split(r"(`[^`]+`)", text)
    return "".join(
        piece.replace("|", "\\|") if piece.startswith("`") else re.sub(r"([\\*_<>\[\]|$#~^{}])", r"\\\1", piece)
        for piece in pieces
    )
