"""`recloom new-plugin NAME`: writes an installable plugin with an interaction, a model, a config and a test."""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import re
import shutil
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from recloom import __version__
from recloom.errors import RecloomError
from recloom.plugins import host


def main(argv: list[str]) -> int:
    """Write the plugin and print what to do next."""
    parser = argparse.ArgumentParser(
        prog="recloom new-plugin",
        description="Write a plugin of your own to start from: an interaction, a model, a config, a test.",
    )
    parser.add_argument("name", metavar="NAME", help="the plugin's name: lower-case letters, digits, underscores")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="folder to write it to (default: recloom-NAME)")
    options = parser.parse_args(argv)
    target = options.dir or Path(f"recloom-{options.name}".replace("_", "-"))
    write_plugin(options.name, target)
    print(f"wrote {target}. Next:")
    print(f"  cd {target}\n  pip install -e .\n  recloom plugins")
    print(f"  recloom fit --config configs/{options.name}.yaml\n  pytest")
    return 0


def write_plugin(name: str, target: Path) -> None:
    """Write plugin `name` into the folder `target`, aside first and then renamed.

    Raises:
        RecloomError: The name is not usable or taken, or the folder is not empty.
    """
    check_name(name)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RecloomError(f"{target} already exists", "Choose another folder with --dir.")
    names = {"name": name, "dashed": name.replace("_", "-"), "camel": camel_case(name), "version": __version__}
    aside = target.with_name(target.name + ".part")
    if aside.exists():
        shutil.rmtree(aside)
    _copy(files("recloom") / "templates" / "plugin", aside, names)
    (aside / f"recloom_{name}" / "py.typed").touch()
    if target.exists():
        target.rmdir()
    aside.rename(target)


def check_name(name: str) -> None:
    """Raise RecloomError unless a new plugin can be called `name`."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        suggestion = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_")
        usable = re.fullmatch(r"[a-z][a-z0-9_]*", suggestion) and not keyword.iskeyword(suggestion)
        raise RecloomError(
            f"{name!r} cannot be a plugin's name",
            "Use lower-case letters, digits and underscores" + (f", for example {suggestion!r}." if usable else "."),
        )
    if owner := next((info for info in host().plugins if info.name == name), None):
        raise RecloomError(f"there is a plugin named {name!r} already, from {owner.origin}", "Choose another name.")
    if importlib.util.find_spec(f"recloom_{name}") is not None:
        raise RecloomError(f"there is a package recloom_{name} already", "Choose another name.")
    catalog = host().catalog
    for registry, suffix in ((catalog.interactions, "Interaction"), (catalog.models, "Model")):
        component = camel_case(name) + suffix
        if component in registry:
            raise RecloomError(
                f"plugin {registry.get(component).plugin!r} has {registry.kind} {component!r} already",
                "Choose another name.",
            )


def camel_case(name: str) -> str:
    """Return "FieldAware" for "field_aware"."""
    return "".join(part.capitalize() for part in name.split("_"))


def _copy(source: Traversable, target: Path, names: dict[str, str]) -> None:
    """Write the template folder `source` to `target`, with `names` filled in; NAME in file names, .txt dropped."""
    target.mkdir(parents=True)
    for item in source.iterdir():
        path = target / item.name.replace("NAME", names["name"]).removesuffix(".txt")
        if item.is_dir():
            _copy(item, path, names)
        else:
            path.write_text(Template(item.read_text(encoding="utf-8")).substitute(names), encoding="utf-8")
