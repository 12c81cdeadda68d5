"""jsonargparse's messages, told as one cause and one hint with the nearest names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import yaml

from recloom.catalog import KINDS
from recloom.errors import OptionError, RecloomError, UnknownNameError, suggest
from recloom.mention import config_files
from recloom.plugins import catalog

_UNKNOWN = re.compile(
    r"(?:unrecognized arguments?|Unrecognized arguments?): *(?P<argument>\S+)"
    r"|(?:Option|Key|Nested key|Group) '(?P<option>[^']+)' (?:is not accepted|is not expected|does not accept)"
    r"|Subcommand '\w+' does not accept option '(?P<strange>[^']+)'"
    r"|Unexpected (?:key|argument)[^']*'(?P<key>[^']+)'"
)
_CLASS = re.compile(r"Problem with given class_path '(?P<path>[^']+)'")
_GIVEN = re.compile(r"\. Got value: Namespace\(class_path='(?P<path>[^']+)'")
_OWNER = re.compile(r"Given value: Namespace\(class_path='(?P<path>[^']+)'")
_NAME = re.compile(
    r"Expected a dot import path string: (?P<name>[^\s]+)|(?:Import of|No module named) '?(?P<module>[\w.]+)"
)
_EXPECTED = re.compile(r"Expected an? (?:<class '(?P<type>\w+)'>|typing\.Literal\[(?P<literal>.*?)\])\. Got value:")
_DENIED = re.compile(r"Importing '(?P<path>[^']+)' is not allowed")
_VALUE = re.compile(r"Given value: (?P<value>.+)")
_KEY = re.compile(r"Parser key \"(?P<key>[^\"]+)\"")


FIT_OPTIONS = ("config", "seed_everything", "model", "data", "trainer", "run_dir", "checkpoint", "ckpt_path")


def explain(message: str, options: Sequence[str] = FIT_OPTIONS) -> RecloomError:
    """Return one error for jsonargparse's `message`: the innermost cause, and the nearest names.

    Args:
        message: What jsonargparse says.
        options: The options that the command has at its top level.
    """
    keys = [match["key"] for match in _KEY.finditer(message)]
    where = ".".join(dict.fromkeys(keys)) if keys else ""
    if denied := _DENIED.search(message):  # first: nothing of it may be imported, not even to look for near names
        return RecloomError(
            f"{where + ': ' if where else ''}{denied['path']} is not of an installed plugin",
            "--trust registered refuses it; see `recloom components`. jsonargparse refuses some names always.",
        )
    classes = [match["path"] for match in _CLASS.finditer(message)]
    unknown_options = list(_UNKNOWN.finditer(message))
    if unknown_options:
        last = unknown_options[-1]
        name = (last["argument"] or last["option"] or last["strange"] or last["key"]).lstrip("-").partition("=")[0]
        inside = _GIVEN.match(message, last.end())  # a factory's own option: its class follows
        owner = inside["path"] if inside else classes[-1] if classes else ""
        return _unknown_option(name, owner, where, options)
    names = [match["name"] for match in _NAME.finditer(message) if match["name"]]
    if names:
        return _unknown_component(names[-1], where)
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    causes = [line for line in lines if not _is_frame(line)]
    value = _VALUE.findall(message)
    cause = causes[-1] if causes else lines[0] if lines else message
    told = bool(_EXPECTED.search(cause)) or not value or value[0] in cause or value[0].startswith("NestedArg(")
    cause = _EXPECTED.sub(_wanted, cause)
    shown = "" if told else f" (given: {value[0][:80]})"
    prefix = f"{where}: " if where and where not in cause else ""
    return OptionError(f"{prefix}{cause}{shown}", "See the options with --help.", where)


def user_error(error: BaseException) -> RecloomError | None:
    """Return the RecloomError behind `error`, which jsonargparse wraps when a constructor raises it; None if none."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, RecloomError):
            return found
        found = found.__cause__ or found.__context__
    return _told_by_union(str(error))


def _told_by_union(message: str) -> RecloomError | None:
    """Return what a constructor raised where several types were allowed: jsonargparse keeps only its words."""
    if not message.startswith("Does not validate against any of the Union subtypes"):
        return None
    causes = message.partition("Errors:")[2].partition("Given value type:")[0].split("\n  - ")[1:]
    told = [cause for cause in causes if not cause.startswith("Expected a <class 'NoneType'>")] or causes or [message]
    cause, _, hint = told[-1].strip().partition("\n")
    owner = _OWNER.search(message)
    return RecloomError(f"{owner['path'].rpartition('.')[2]}: {cause}" if owner else cause, hint.strip())


def _wanted(found: re.Match[str]) -> str:
    """Return what jsonargparse expected, without its type hint's notation."""
    if found["type"]:
        return f"Expected {'an' if found['type'][0] in 'aeiou' else 'a'} {found['type']}. Got value:"
    *most, last = found["literal"].split(", ")
    return f"Expected {', '.join(most) + ' or ' if most else ''}{last}. Got value:"


def _is_frame(line: str) -> bool:
    starts = ("Does not validate", "Subtypes:", "Errors:", "Given value", "Expected a <class 'NoneType'>", "Parser key")
    return line.startswith(starts) or line.startswith("Problem with given class_path") or line.startswith("usage:")


def _unknown_component(name: str, where: str) -> RecloomError:
    """Return the error about a name that is no component, or is one of another kind than is wanted at `where`."""
    others = ("command", "benchmark", "experiment", "raw format")
    entries = [entry for entry in catalog().entries() if entry.kind not in others]
    leaf = where.rpartition(".")[2]
    kind = KINDS.get(f"{leaf}s", "")
    place = where or "config"
    if found := [entry.kind for entry in entries if entry.name == name]:
        wanted = sorted(entry.name for entry in entries if entry.kind == kind)
        hint = f"Known: {', '.join(wanted)}." if wanted else "See recloom components."
        is_a = f"{name} is {'an' if found[0][0] in 'aeiou' else 'a'} {found[0]}"
        return UnknownNameError(f"{place}: {is_a}, which does not fit here", hint, where)
    known = [entry.name for entry in entries if not kind or entry.kind == kind]
    return UnknownNameError(f"{place}: there is no {kind or 'component'} named {name!r}", suggest(name, known), where)


def _unknown_option(name: str, class_path: str, where: str, options: Sequence[str]) -> RecloomError:
    leaf = name.split(".")[-1] if not class_path else name.split(".")[0]
    if class_path:
        owner = class_path.rpartition(".")[2]
        return UnknownNameError(
            f"{where + ': ' if where else ''}{owner} has no option {leaf!r}",
            suggest(leaf, _parameters(class_path)),
            f"{where}.{leaf}" if where else leaf,
        )
    if leaf in KINDS:
        return UnknownNameError(f"unknown option --{name}", f"List components with: recloom components {leaf}")
    message = f"{where + ': ' if where else ''}unknown option {name!r}"
    return UnknownNameError(message, _nearest_option(name, options), f"{where}.{name}" if where else name)


@contextmanager
def located(argv: Sequence[str]) -> Iterator[None]:
    """Have an error about an option say which line of a config file in `argv` gives it, if one does."""
    try:
        yield
    except OptionError as error:
        if error.key and (place := _place(error.key, argv)):
            raise type(error)(f"{place}: {error.message}", error.hint, error.key) from error
        raise


def _place(key: str, argv: Sequence[str]) -> str:
    """Return file and line of a dotted key, or "" where the command line gives it, or several lines might."""
    leaf = key.rpartition(".")[2]
    if any(argument.partition("=")[0].rpartition(".")[2].lstrip("-") == leaf for argument in argv):
        return ""
    wanted = [part for part in key.split(".") if part != "init_args"]
    lines = [(path, *found) for path in config_files(argv) for found in _lines(yaml.compose(path.read_text()))]
    fitting = [f"{path}, line {line}" for path, parts, line in lines if parts == wanted]
    fitting = fitting or [f"{path}, line {line}" for path, parts, line in lines if parts[-1:] == wanted[-1:]]
    return fitting[-1] if len(set(fitting)) == 1 else ""


def _lines(node: yaml.Node | None, above: tuple[str, ...] = ()) -> Iterator[tuple[list[str], int]]:
    """Yield the keys of a document, each as the names that lead to it without `init_args`, and their lines."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        parts = above if key.value == "init_args" else (*above, str(key.value))
        if parts != above:
            yield list(parts), key.start_mark.line + 1
        yield from _lines(value, parts)


def _nearest_option(name: str, options: Sequence[str]) -> str:
    import lightning.pytorch as pl

    head, _, rest = name.partition(".")
    if head == "trainer" and "trainer" in options and rest:
        return suggest(rest, list(inspect.signature(pl.Trainer.__init__).parameters)[1:]).replace("'?", "' in trainer?")
    return suggest(head, options)


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        target = getattr(__import__(module, fromlist=[name]), name)
        return [p for p in inspect.signature(target).parameters if p not in ("self", "args", "kwargs")]
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
