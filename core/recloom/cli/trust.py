"""Which classes a config may name: any that can be imported, or with `--trust registered` installed plugins' alone.

A config's `class_path` is imported and called with the config's arguments, so that whoever writes configs can run any
code that is installed. Where others' configs are run, `--trust registered` (or RECLOOM_TRUST=registered, which also
holds for programs that recloom starts) lets them name what plugins registered, what is defined in the packages that
these components come from (their settings' classes), and Lightning's own callbacks, strategies, profilers and file
loggers. What a package imports from elsewhere does not count as its own.
"""

from __future__ import annotations

import os

from recloom.errors import RecloomError

VARIABLE = "RECLOOM_TRUST"
LEVELS = ("all", "registered")
# a class's own module counts, not only the package that offers it: CSVLogger is of loggers.csv_logs
LIGHTNING = (
    *("callbacks", "strategies", "profilers", "loggers.CSVLogger", "loggers.csv_logs"),
    *("loggers.TensorBoardLogger", "loggers.tensorboard"),
)


def take_option(argv: list[str]) -> list[str]:
    """Return `argv` without `--trust LEVEL`; the level is kept in the environment, for processes started later.

    Raises:
        RecloomError: There is no such level.
    """
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--trust" or word.startswith("--trust="):
            os.environ[VARIABLE] = word.partition("=")[2] if "=" in word else next(words, "")
        else:
            rest.append(word)
    level = os.environ.get(VARIABLE) or "all"
    if level not in LEVELS:
        raise RecloomError(f"--trust {level}: there is no such level", f"One of: {', '.join(LEVELS)}.")
    return rest


def enforce() -> None:
    """Have configs name what plugins bring, and nothing else, from now on, where that is asked for."""
    if os.environ.get(VARIABLE) != "registered":
        return
    from jsonargparse import set_parsing_settings

    from recloom.plugins import catalog

    packages = {entry.path.partition(":")[0].partition(".")[0] for entry in catalog().entries()}
    allowed = [*sorted(packages), *(f"lightning.pytorch.{name}" for name in LIGHTNING)]
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=allowed)
