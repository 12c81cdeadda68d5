"""`recloom search`: the constructor of `Search` as options, a folder for each search, workers, resuming."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from recloom import machine, mention, problems, quiet
from recloom.cli import rundir
from recloom.errors import RecloomError

if TYPE_CHECKING:
    from recloom.search.run import Search

DESCRIPTION = (
    "Search a space of models. The search's folder gets config.yaml, the study (study.db), the best model as found.yaml"
    " (for recloom fit) and found.ckpt, trials.csv, search.json and a report. An interrupted search goes on with"
    " --resume; started with --resume while it runs, the same command adds a worker."
)
_OWN = ("config", "seed_everything", "run_dir", "resume", "workers", "progress", "finish")


class SearchParser(ArgumentParser):
    """Tells one cause, one hint and the nearest names."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise a RecloomError about `message`; a nested parser's message reaches the outermost one."""
        if not self.exit_on_error:
            return super().error(message, ex)
        if unnamed := re.search(r'"(\w+)":.*is abstract.*NestedArg\(key=\'(\w+)\'', message, re.DOTALL):
            part, option = unnamed.groups()
            raise RecloomError(f"--{part}.{option} is given, but no {part}", f"Name it before: --{part} NAME")
        raise problems.explain(message, _top_level())


def make_parser() -> ArgumentParser:
    """Return the command's parser."""
    from recloom.search.run import Search

    parser = SearchParser(prog="recloom search", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="config", help="YAML file with any of the options below.")
    parser.add_argument("--seed_everything", type=int | None, default=None, help="The same as `seed`.")
    parser.add_argument(
        "--run_dir",
        type=str | None,
        default=None,
        help="Folder of the search. Default: runs/search-NAME of the config file, numbered if it is taken.",
    )
    parser.add_argument("--workers", type=int, default=1, help="Processes on this machine that try candidates.")
    parser.add_argument("--progress", type=bool, default=True, help="Show progress.")
    parser.add_argument(
        "--finish", type=bool, default=True, help="When all is tried, retrain the best and write the report."
    )
    parser.add_argument("--resume", action="store_true", help="Go on with the search in the folder, or help with it.")
    parser.add_class_arguments(Search, None, fail_untyped=True)
    return parser


def main(argv: list[str]) -> int:
    """Run a search in a new folder, or go on with one."""
    argv = mention.long_names(_with_own_config(argv))
    mention.load_mentioned(argv)
    quiet.hush()
    try:
        parser = make_parser()
        with problems.located(argv):
            config = parser.parse_args(argv)
        if config.seed_everything is not None:
            config.seed = config.seed_everything
        name = str(config.space.class_path).rpartition(".")[2].lower()
        folder = rundir.choose_search(config.run_dir, config.resume, argv, name)
        search, text = _build(parser, config, folder)
    except ValueError as error:
        if (cause := problems.user_error(error)) is not None:
            raise cause from error
        raise
    helpers: list[subprocess.Popen[bytes]] = []
    try:
        run = search.run(
            folder,
            yaml.safe_load(text),
            config.progress,
            config.finish,
            on_ready=lambda: helpers.extend(_start(argv, folder, config.workers) for _ in range(config.workers - 1)),
        )
    except KeyboardInterrupt:
        print(f"\nfinished trials are kept in {folder}; go on with --resume --run_dir {folder}", file=sys.stderr)
        raise
    finally:
        for helper in helpers:
            if sys.exc_info()[0] is not None:
                helper.send_signal(signal.SIGINT)
            helper.wait()
    if run.report is not None:
        print(f"found: {folder / 'found.yaml'}\nreport: {run.report}")
    return 0


def _build(parser: ArgumentParser, config: Namespace, folder: Path) -> tuple[Search, str]:
    """Return the search and its configuration as YAML, which is written into the folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jsonargparse's deprecations of names that its tested range still needs
        kept = config.clone()
        for name in _OWN:
            kept.pop(name, None)
        text = parser.dump(kept, skip_none=False, skip_validation=True)
        built = parser.instantiate_classes(config)
    from recloom.search.run import Search

    options = {name: value for name, value in built.as_dict().items() if name not in _OWN}
    search = Search(**options)
    _check_same(folder, text)
    rundir.save_config(folder, text)
    return search, text


def _check_same(folder: Path, text: str) -> None:
    """Refuse to go on with a search under options that its finished trials do not share."""
    path = folder / "config.yaml"
    before, now = (yaml.safe_load(path.read_text()) if path.exists() else {}), yaml.safe_load(text)
    for part in ("space", "data", "evaluator", "objective", "costs", "seed") if before else ():
        if before.get(part) != now.get(part):
            raise RecloomError(
                f"{part} is not what it was in {path}",
                "Go on with its own config (no --config), or start another search.",
            )


def _with_own_config(argv: list[str]) -> list[str]:
    """Return `argv` with the config of the folder that is resumed, if none is given."""
    _, run_dir = rundir.take_option(argv, "--run_dir")
    if "--resume" in argv and run_dir is not None and not mention.config_files(argv):
        own = Path(run_dir) / "config.yaml"
        if own.exists():
            return ["--config", str(own), *argv]
    return argv


def _start(argv: list[str], folder: Path, workers: int) -> subprocess.Popen[bytes]:
    """Start another of `workers` workers on the search in `folder`, with its share of the CPUs."""
    rest = argv
    for option in ("--run_dir", "--workers", "--progress", "--finish"):
        rest, _ = rundir.take_option(rest, option)
    own = ["--run_dir", str(folder), "--workers=1", "--progress=false", "--finish=false"]
    command = [sys.executable, "-m", "recloom.cli.main", "search", *(a for a in rest if a != "--resume"), *own]
    threads = str(max(1, machine.cpus() // workers))
    return subprocess.Popen([*command, "--resume"], env={"OMP_NUM_THREADS": threads, **os.environ})


def _top_level() -> list[str]:
    import inspect

    from recloom.search.run import Search

    return [*_OWN, *list(inspect.signature(Search).parameters)]
