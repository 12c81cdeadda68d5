"""Small C kernels, compiled on first use by the system's C compiler and called through ctypes.

For a plugin's own kernels:

    library = native.load("mine.c", Path(__file__).parent)   # a ctypes.CDLL, or None
    if library is not None:
        library.my_function(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_int64(len(tensor)))

Write plain C11 that includes no torch header, take the number of threads (`torch.get_num_threads()`) as an argument
for `#pragma omp parallel num_threads(n)`, put what several kernels share into a header beside them
(`#include "mine.h"`), and keep a version in torch operations for machines where `load` returns
None: those without a C compiler, and those with RECLOOM_NATIVE=0. The library is linked to the OpenMP runtime that
torch has loaded, so that both use one pool of threads. Compiled libraries are kept in the user's cache directory
(XDG_CACHE_HOME, else ~/.cache) under a hash of source, compiler and processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

log = logging.getLogger(__name__)

FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fPIC")


@functools.cache
def load(name: str, folder: Path | None = None) -> ctypes.CDLL | None:
    """Return the library compiled from the C file `name`, or None where none can be had (logged once, at INFO).

    Args:
        name: File name of the C source.
        folder: Its folder; recloom's own by default.
    """
    if os.environ.get("RECLOOM_NATIVE", "1") == "0":
        log.info("Native kernels are switched off by RECLOOM_NATIVE=0: %s runs as torch operations.", name)
        return None
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        log.info("There is no C compiler: %s runs as torch operations, which is slower.", name)
        return None
    source = (folder or Path(__file__).parent) / name
    try:
        return ctypes.CDLL(str(_build(source, compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        log.info("%s cannot be compiled (%s): it runs as torch operations, which is slower.", name, reason)
        return None


def _build(source: Path, compiler: str) -> Path:
    """Return the compiled library, from the cache if it is there."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    parts = [*_texts(source), version, _processor(), torch.__version__, *FLAGS]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    target = _cache() / f"{source.stem}-{key}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # aside, then renamed: several processes may build at once, and any of their results is good
    handle, aside = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        _compile(source, compiler, Path(aside))
        os.chmod(aside, 0o755)
        os.replace(aside, target)
    finally:
        Path(aside).unlink(missing_ok=True)
    return target


def _texts(source: Path) -> Iterator[str]:
    """Yield the text of a source, and of the headers beside it that it includes."""
    text = source.read_text(encoding="utf-8")
    yield text
    for name in re.findall(r'^#include "([^"]+)"', text, re.MULTILINE):
        yield from _texts(source.parent / name)


def _compile(source: Path, compiler: str, target: Path) -> None:
    """Compile with OpenMP, or without where the compiler has none (then kernels use one thread)."""
    error: subprocess.CalledProcessError | None = None
    thing = target.with_suffix(".o")
    for compiling, linking in _openmp():
        try:
            # in two steps: -fopenmp when linking would bring in a second OpenMP runtime beside torch's
            for command in (
                [compiler, *FLAGS, *compiling, "-c", str(source), "-o", str(thing)],
                [compiler, "-shared", str(thing), "-o", str(target), *linking, "-lm"],
            ):
                subprocess.run(command, capture_output=True, text=True, check=True)
            return
        except subprocess.CalledProcessError as failed:
            error = error or failed
        finally:
            thing.unlink(missing_ok=True)
    assert error is not None
    raise error


def _openmp() -> Iterator[tuple[list[str], list[str]]]:
    """Yield the OpenMP options to try, for compiling and for linking: torch's own runtime first."""
    package = Path(torch.__file__).parent
    for folder in (package / "lib", package.parent / "torch.libs"):
        for runtime in sorted(folder.glob("libgomp*.so*")):
            yield ["-fopenmp"], [str(runtime), f"-Wl,-rpath,{folder}"]
    yield ["-fopenmp"], ["-fopenmp"]
    yield [], []


def _processor() -> str:
    """Return what -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.split(":")[0].strip() in wanted}))


def _cache() -> Path:
    """Return the folder of compiled libraries; a private temporary one where the user has no writable home."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base) / "recloom" / "native"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="recloom-native-"))
