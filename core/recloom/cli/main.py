"""The `recloom` command: finds the command by name and turns errors into sentences and exit codes. Imports no torch.

Exit codes: 0 done; 2 a user's mistake, told in one sentence with a hint; 130 interrupted; 1 anything else.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from recloom import __version__
from recloom.catalog import Entry
from recloom.cli import trust
from recloom.errors import RecloomError, unknown
from recloom.plugins import host
from recloom.resources import with_configs

USAGE = """usage: recloom COMMAND [...]

{commands}

recloom COMMAND --help   shows a command's options
recloom --version        {version}
recloom COMMAND --trust registered   lets configs name what plugins bring, and nothing else
RECLOOM_TRACEBACK=1      shows tracebacks of users' mistakes too
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"recloom {__version__}")
        return 0
    return guarded(arguments[0], arguments[1:])


def usage() -> str:
    """Return the list of commands."""
    entries: list[Entry] = list(host().catalog.commands)
    width = max(len(entry.name) for entry in entries)
    lines = (f"  {entry.name:<{width}}  {entry.summary}" for entry in entries)
    return USAGE.format(commands="\n".join(lines), version=__version__)


def guarded(name: str, arguments: list[str]) -> int:
    """Run command `name`, with every error told as its kind deserves."""
    try:
        commands = host().catalog.commands
        if name not in commands:
            raise unknown("command", name, [entry.name for entry in commands])
        arguments = with_configs(trust.take_option(arguments))
        command = _load(commands.get(name))
        trust.enforce()
        return command(arguments)
    except RecloomError as error:
        if os.environ.get("RECLOOM_TRACEBACK"):
            traceback.print_exc()
        print(f"recloom {name}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # the reader of our output (head, less) went away: nothing more to say, and not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"recloom {name}: the disk is full ({error.filename or 'while writing'})", file=sys.stderr)
        print("  Free some space and run it again; a fit goes on with --ckpt_path last.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nrecloom {name}: interrupted", file=sys.stderr)
        return 130


def _load(entry: Entry) -> Callable[[list[str]], int]:
    """Import a command without collecting garbage: torch and Lightning make half a million objects that all stay."""
    gc.disable()
    try:
        command: Callable[[list[str]], int] = entry.load()
    finally:
        gc.freeze()
        gc.enable()
    return command


if __name__ == "__main__":
    sys.exit(main())
