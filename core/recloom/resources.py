"""Configs and documentation as they are installed: in a clone of the repository, or inside of the wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path | None:
    """Return the folder "configs" or "docs": the clone's, or the one that the wheel brought; None without either."""
    for found in (PACKAGE / f"_{name}", PACKAGE.parents[1] / name):
        if found.is_dir():
            return found
    return None


def with_configs(argv: list[str]) -> list[str]:
    """Return `argv` with recloom's own configs in place of paths like "configs/dlrm/synthetic.yaml" that are not there.

    A config of that path in the working directory goes first. So what the documentation types works anywhere.
    """
    found = []
    for argument in argv:
        option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
        if value.startswith("configs/") and value.endswith((".yaml", ".yml")) and not Path(value).exists():
            configs = folder("configs")
            if configs is not None and (configs / value.removeprefix("configs/")).is_file():
                argument = f"{option}{equals}{configs / value.removeprefix('configs/')}"
        found.append(argument)
    return found
