"""Exported programs, as `torch.export` saves them: written, and looked through before torch reads them.

`torch.export.load` unpickles what an archive holds, evaluates the text of its sizes and guards, and calls what its
nodes name. Here a program may hold tensors, arithmetic and registered operators, and nothing else. That is a filter and
no proof: torch's own advice, to load nothing from strangers, stands.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram

from recloom import archives, intact
from recloom.errors import DataError

_HINT = "Export the model again: recloom export."
_FOLDERS = ("models/", "data/weights/", "data/constants/", "data/sample_inputs/", "extra/", ".data/")
_FILES = ("archive_format", "archive_version", "byteorder", "version")
_OBJECTS = ("custom_obj", "opaque_obj")
_OPERATORS = {
    *(f"_operator.{name}" for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "getitem")),
    *(f"_operator.{name}" for name in ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_")),
    *(f"torch.sym_{name}" for name in ("int", "float", "max", "min", "not", "ite", "sum")),
    *(f"math.{name}" for name in ("ceil", "floor", "trunc", "sqrt")),
}
_NODES: tuple[type[ast.AST], ...] = (
    *(ast.Expression, ast.BoolOp, ast.boolop, ast.BinOp, ast.operator, ast.UnaryOp, ast.unaryop, ast.Compare),
    *(ast.cmpop, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.Subscript, ast.Attribute, ast.Tuple),
)
_ATTRIBUTES = {"size", "stride", "storage_offset", "numel", "dtype", "shape", "isnan", "inf"}


class _Patient(io.FileIO):
    """A file that keeps the first error of writing: torch's writer, when it meets one, ends the process."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write all of `data`, unless writing failed already."""
        view = memoryview(data).cast("B")
        done = 0
        while self.error is None and done < len(view):
            try:
                done += super().write(view[done:])
            except OSError as error:
                self.error = error
        return len(view)


def save(program: ExportedProgram, path: Path) -> None:
    """Write a program.

    Raises:
        DataError: The disk is full.
        OSError: It cannot be written for another reason.
    """
    with intact.room(path.parent), _Patient(path, "wb") as file:
        torch.export.save(program, file)
        if file.error is not None:
            raise file.error


def load(path: Path) -> Callable[..., Tensor]:
    """Return the program at `path` as a function.

    Raises:
        DataError: It cannot be read, is damaged, or holds more than a program needs.
    """
    try:
        archives.check(path, _HINT)
        _check(path)
        return torch.export.load(path).module()
    except DataError:
        raise
    except Exception as error:  # torch raises what zipfile, json and its own reader raise
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: not an exported program: {cause}", _HINT) from error


def _check(path: Path) -> None:
    """Raise DataError if the program would have code run while it is read."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        root = names[0].partition("/")[0] + "/"
        for name in names:
            inner = name.removeprefix(root)
            if not name.startswith(root) or not (inner in _FILES or inner.startswith(_FOLDERS)):
                raise _refused(path, f"its entry {name!r} is of no exported program")
            if inner.startswith("models/"):
                _check_graph(path, json.loads(archive.read(name)))
            elif inner.endswith("_config.json"):
                _check_payloads(path, archive, name.rpartition("/")[0], json.loads(archive.read(name)))
            elif inner.startswith("data/") and inner.endswith(".pt"):
                _check_pickle(path, name, archive.read(name))


def _check_payloads(path: Path, archive: zipfile.ZipFile, folder: str, config: dict[str, Any]) -> None:
    """Refuse weights and constants that are more than tensors."""
    for payload in config["config"].values():
        name = payload["path_name"]
        if name.startswith(_OBJECTS):
            raise _refused(path, f"its constant {name!r} is an object")
        if payload["use_pickle"]:
            _check_pickle(path, name, archive.read(f"{folder}/{name}"))


def _check_pickle(path: Path, name: str, content: bytes) -> None:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # by how it is broken, or by what it names
        raise _refused(path, f"its entry {name!r} holds more than tensors") from error


def _check_graph(path: Path, model: dict[str, Any]) -> None:
    """Refuse calls of what is no registered operator, and texts that are more than arithmetic."""
    for found in _dicts(model):
        for operator in (found.get("target") if "inputs" in found else None, found.get("as_operator")):
            if operator is not None and not _registered(str(operator)):
                raise _refused(path, f"it calls {operator!r}, which is no registered operator")
        if "expr_str" in found and not _arithmetic(str(found["expr_str"]), _symbolic):
            raise _refused(path, f"its size {str(found['expr_str'])[:80]!r} is no arithmetic")
    for guard in model.get("guards_code") or []:
        if not _arithmetic(str(guard), _guard):
            raise _refused(path, f"its guard {str(guard)[:80]!r} is no comparison")
    for name in model.get("range_constraints") or {}:
        if not _arithmetic(str(name), _symbolic):
            raise _refused(path, f"its size {name[:80]!r} is no arithmetic")


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping in a JSON value."""
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield value
            stack += value.values()
        elif isinstance(value, list):
            stack += value


def _registered(name: str) -> bool:
    """Return whether a node may call it."""
    if name in _OPERATORS:
        return True
    match = re.fullmatch(r"torch\.ops\.([a-zA-Z]\w*)\.(\w+)(?:\.(\w+))?", name)
    if match is None:
        return False
    try:
        found = getattr(getattr(torch.ops, match[1]), match[2])
        return isinstance(getattr(found, match[3]) if match[3] else found, OpOverload | HigherOrderOperator)
    except AttributeError:
        return False


def _arithmetic(text: str, allowed: Callable[[ast.AST], bool]) -> bool:
    """Return whether a text is one expression of operators, numbers and calls that are `allowed`."""
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(node, _NODES) and allowed(node) for node in nodes)


def _symbolic(node: ast.AST) -> bool:
    """Return whether a part may be in the text of a size: names of sympy's classes, numbers, `Symbol('s0', ...)`."""
    if isinstance(node, ast.Attribute | ast.Subscript):
        return False
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and bool(re.fullmatch(r"[A-Z]\w*", node.func.id))
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return bool(re.fullmatch(r"\w+", node.value)) and "__" not in node.value
    return not isinstance(node, ast.Name) or "__" not in node.id


def _guard(node: ast.AST) -> bool:
    """Return whether a part may be in a guard: comparisons of sizes of the inputs, `L['x'].size()[0] <= 64`."""
    if isinstance(node, ast.Attribute):
        return node.attr in _ATTRIBUTES
    if isinstance(node, ast.Call):
        function = node.func
        return isinstance(function, ast.Attribute) or (isinstance(function, ast.Name) and function.id[:1].isupper())
    return not isinstance(node, ast.Name) or "__" not in node.id


def _refused(path: Path, why: str) -> DataError:
    return DataError(f"{path}: not an exported program that is safe to read: {why}", _HINT)
