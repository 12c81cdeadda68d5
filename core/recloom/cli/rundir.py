"""The folder of a run: where a new one goes, which one `--ckpt_path last|best` means, and its checkpoints."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from recloom.errors import RecloomError
from recloom.mention import config_files
from recloom.runs import NAMES, checkpoint_of, existing_file, named


@dataclass(frozen=True)
class Choice:
    """Where a command works.

    Args:
        path: The run's folder.
        checkpoint: The checkpoint to start from, if any.
    """

    path: Path
    checkpoint: Path | None


def take_option(argv: list[str], name: str) -> tuple[list[str], str | None]:
    """Return `argv` without option `name`, and the option's value."""
    rest: list[str] = []
    value: str | None = None
    items = iter(argv)
    for item in items:
        if item == name:
            value = next(items, None)
            if value is None:
                raise RecloomError(f"{name} needs a value", f"Write {name} last, {name} best, or a file.")
        elif item.startswith(name + "="):
            value = item.partition("=")[2]
        else:
            rest.append(item)
    return rest, value


def choose(command: str, run_dir: str | None, ckpt_path: str | None, argv: list[str], model: str) -> Choice:
    """Return the run's folder and the checkpoint.

    A new fit gets a folder of its own: `run_dir`, or runs/NAME of the config file, numbered if it is taken; `run_dir`
    may hold a run that ended before its first checkpoint. With `--ckpt_path last` or `best`, and for other commands, it
    is the newest run of that name that has that checkpoint; with a checkpoint file it is the run that the file lies in.
    """
    if ckpt_path is not None and ckpt_path not in NAMES:
        file = existing_file(Path(ckpt_path))
        inside = file.parent.name == "checkpoints"
        return Choice(Path(run_dir) if run_dir else file.parent.parent if inside else file.parent, file)
    base = Path(run_dir) if run_dir else Path("runs") / _stem(argv, model)
    existing = [base] if run_dir else _numbered(base)
    existing = [path for path in existing if (path / "config.yaml").exists()]
    if command == "fit" and ckpt_path is None:
        if run_dir and existing and (any((base / "checkpoints").glob("*")) or (base / "report.html").exists()):
            raise RecloomError(
                f"{base} already holds a run", "Go on with it: --ckpt_path last. Or choose another --run_dir."
            )
        return Choice(base if not base.exists() or run_dir else _next(base), None)
    if not existing:
        raise RecloomError(f"{base}: there is no run here to take a checkpoint from", "Train first: recloom fit ...")
    written = [path for path in existing if named(path, ckpt_path).exists()]
    path = written[-1] if written else existing[-1]
    return Choice(path, checkpoint_of(path, ckpt_path))


def with_run(command: str, argv: list[str], ckpt_path: str | None) -> tuple[list[str], str | None]:
    """Return `argv` and `ckpt_path` with what `--run DIR` stands for: the run's config, folder and checkpoint."""
    argv, run = take_option(argv, "--run")
    if run is None:
        return argv, ckpt_path
    if command == "fit":
        ckpt_path = ckpt_path or "last"
    checkpoint_of(Path(run), ckpt_path)
    return ["--config", str(Path(run) / "config.yaml"), "--run_dir", run, *argv], ckpt_path


def choose_search(run_dir: str | None, resume: bool, argv: list[str], space: str) -> Path:
    """Return a search's folder: `run_dir`, or runs/search-NAME of the config file, numbered if it is taken.

    With `resume` it is the one that exists, and the newest of several.
    """
    base = Path(run_dir) if run_dir else Path("runs") / f"search-{_stem(argv, space).removeprefix('search-')}"
    existing = [base] if run_dir else _numbered(base)
    existing = [path for path in existing if (path / "config.yaml").exists()]
    if resume:
        if not existing:
            raise RecloomError(f"{base}: there is no search here to go on with", "Start it without --resume.")
        return existing[-1]
    if run_dir and existing:
        raise RecloomError(f"{base} already holds a search", "Go on with it: --resume. Or choose another --run_dir.")
    return base if run_dir or not base.exists() else _next(base)


def save_config(path: Path, text: str) -> None:
    """Write `text` as config.yaml in `path`, aside and then renamed; an earlier, different one is kept by number."""
    path.mkdir(parents=True, exist_ok=True)
    target = path / "config.yaml"
    if target.exists():
        if target.read_text() == text:
            return
        number = 1
        while (path / f"config-{number}.yaml").exists():
            number += 1
        target.replace(path / f"config-{number}.yaml")
    aside = path / "config.yaml.part"
    aside.write_text(text)
    aside.replace(target)


def _stem(argv: list[str], model: str) -> str:
    files = config_files(argv)
    if not files:
        return model.lower()
    file = files[0]
    if file.name == "config.yaml":  # a run's own config
        return file.parent.name
    return f"{file.parent.name}-{file.stem}" if file.parent.name not in ("", "configs") else file.stem


def _numbered(base: Path) -> list[Path]:
    """Return base, base-2, base-3, ... as far as they exist, in the order of their numbers."""
    if not base.parent.is_dir():
        return []
    pattern = re.compile(re.escape(base.name) + r"(?:-(\d+))?")
    found = [(int(match[1] or 1), path) for path in base.parent.iterdir() if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _next(base: Path) -> Path:
    taken = _numbered(base)
    last = taken[-1].name.removeprefix(base.name).lstrip("-") if taken else ""
    return base.with_name(f"{base.name}-{int(last or 1) + 1}")
