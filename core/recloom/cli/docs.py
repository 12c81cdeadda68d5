"""`recloom docs`: the documentation of what is installed, built on this machine and opened without a network."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import shutil
import webbrowser
from pathlib import Path

from recloom import __version__, resources
from recloom.errors import RecloomError
from recloom.plugins import host


def main(argv: list[str]) -> int:
    """Build the pages unless they are there, and open them; return 0."""
    parser = argparse.ArgumentParser(
        prog="recloom docs",
        description="Build the documentation, the installed plugins' components included, and open it in a browser.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the pages (default: in the user's cache)")
    parser.add_argument("--no-open", action="store_true", help="only build, and say where the pages are")
    options = parser.parse_args(argv)
    source = resources.folder("docs")
    if source is None:
        raise RecloomError(
            "this installation has no documentation", "Install a released wheel, or clone the repository."
        )
    pages = options.out or _cache() / f"docs-{__version__}-{_fingerprint(source)}"
    if not (pages / "index.html").is_file():
        build(source, pages)
    print(f"documentation: {pages / 'index.html'}")
    if not options.no_open and not webbrowser.open((pages / "index.html").resolve().as_uri()):
        print("There is no browser here: open that file in one.")
    return 0


def build(source: Path, pages: Path) -> None:
    """Build the HTML pages of `source` into the folder `pages`, aside first.

    Raises:
        RecloomError: Sphinx is missing, or has errors; or the folder has other files.
    """
    try:
        from sphinx.cmd.build import build_main
    except ImportError as error:
        raise RecloomError(f"recloom docs needs {error.name}", "Try: pip install 'recloom[docs]'") from error
    if pages.exists() and any(pages.iterdir()):
        raise RecloomError(f"{pages} has other files", "Give an empty or a new folder with --out.")
    aside = pages.with_name(f"{pages.name}.part-{os.getpid()}")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = build_main(["-q", "-b", "html", "-d", str(aside / ".doctrees"), str(source), str(aside / "html")])
        if code:
            raise RecloomError(f"the documentation cannot be built: {said.getvalue().strip()[-500:]}")
        if pages.exists():
            pages.rmdir()
        (aside / "html").rename(pages)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recloom"


def _fingerprint(source: Path) -> str:
    """Return what changes when a page, or the set of installed plugins, does: the pages list their components."""
    digest = hashlib.sha256("".join(f"{p.name} {p.origin} {bool(p.error)};" for p in host().plugins).encode())
    for path in sorted(source.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(source)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
