"""Runs the examples of a Markdown page: commands in ```console blocks, Python in ```python blocks, in order.

A comment before a block changes what is done with it:

    <!-- file: PATH -->               write the block to PATH
    <!-- test: --trainer.x 1 ... -->  add options to its fit, validate, test and predict commands that these do not give
    <!-- test: fails 2 -->            its commands end with that exit code
    <!-- test: skip, run by FILE -->  FILE, a test that exists, runs them
"""

from __future__ import annotations

import os
import random
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recloom.testing import run_cli

FENCE = re.compile(r"(?:<!-- (file|test): ([^>]*?) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LIGHTNING = ("fit", "validate", "test", "predict")


@dataclass(frozen=True)
class Block:
    """A fenced block and the comment before it."""

    language: str
    text: str
    file: str = ""
    note: str = ""

    def commands(self) -> list[str]:
        joined = self.text.replace("\\\n", " ")
        return [line[2:].strip() for line in joined.splitlines() if line.startswith("$ ")]


def blocks(page: Path) -> list[Block]:
    found = []
    for kind, note, language, text in FENCE.findall(page.read_text()):
        found.append(Block(language, text, note if kind == "file" else "", note if kind == "test" else ""))
    return found


def run_page(page: Path, root: Path, folder: Path) -> int:
    """Run the examples of `page` in `folder`, which is the working directory; return how many there were."""
    (folder / "configs").symlink_to(root / "configs")
    write_samples(folder)
    names: dict[str, Any] = {"__name__": "example"}
    count = 0
    for block in blocks(page):
        if block.file:
            Path(block.file).write_text(block.text)
        elif block.note.startswith("skip"):
            test = block.note.rpartition("run by ")[2].strip()
            assert test.startswith("tests/"), f"{page.name}: say which test runs what is skipped: {block.note}"
            assert (root / test).exists(), f"{page.name}: {test} does not exist"
        elif block.language == "python":
            exec(compile(block.text, f"{page.name}: {block.text[:40]!r}", "exec"), names)
            count += 1
        elif block.language == "console":
            for command in block.commands():
                run_command(command, block.note, root)
                count += 1
    return count


def run_command(command: str, note: str, root: Path) -> None:
    words = shlex.split(command)
    expected = int(note.split()[1]) if note.startswith("fails") else 0
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (root / "Makefile").read_text(), re.MULTILINE), f"no target: {command}"
        return
    assert words[0] == "recloom", f"no rule to run {command!r}"
    argv = words[1:]
    if argv[0] in LIGHTNING and not expected:
        argv += [*options(note, argv), "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    # several processes: Lightning starts the others with this process's arguments
    apart = "hybrid" in command
    if apart:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        command_line = [sys.executable, "-m", "recloom.cli.main", *argv]
        done = subprocess.run(command_line, env=env, capture_output=True, text=True, check=False)
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        code, out, err = run_cli(argv)
    assert code == expected, f"{command}\n(run as: recloom {' '.join(argv)})\nexit code {code}\n{out}\n{err}"


def options(note: str, argv: list[str]) -> list[str]:
    """The note's options, but for those of generated data when the command is not about these."""
    words = shlex.split(note)
    pairs = [f"{name}={value}" for name, value in zip(words[::2], words[1::2], strict=True)]
    parquet = "ParquetClicks" in argv
    given = {word.partition("=")[0] for word in argv}
    pairs = [pair for pair in pairs if pair.partition("=")[0] not in given]
    return [pair for pair in pairs if not (parquet and pair.startswith("--data.num_") and "workers" not in pair)]


def write_samples(folder: Path) -> None:
    """Write the raw logs that pages name: clicks.csv, and train.txt in Criteo's format."""
    draw = random.Random(0)
    rows = []
    for time in range(1000, 3000):
        user, item = f"u{draw.randint(0, 50)}", f"i{draw.randint(0, 30)}"
        rows.append(f"{draw.random() < 0.3:d},{draw.random():.3f},{draw.randint(18, 80)},{user},{item},{time}")
    (folder / "clicks.csv").write_text("\n".join(["clicked,price,age,user,item,time", *rows]) + "\n")
    lines = []
    for _ in range(2000):
        counts = ["" if draw.random() < 0.2 else str(draw.randint(-1, 300)) for _ in range(13)]
        categories = ["" if draw.random() < 0.1 else f"{draw.randint(0, 40):08x}" for _ in range(26)]
        lines.append("\t".join([str(int(draw.random() < 0.25)), *counts, *categories]))
    (folder / "train.txt").write_text("\n".join(lines) + "\n")
