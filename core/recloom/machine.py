"""Facts about the machine and the versions a result was measured with, for reports. Imports no torch by itself."""

from __future__ import annotations

import os
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from recloom.plugins import host

PACKAGES = ("recloom", "torch", "lightning", "torchmetrics", "numpy", "pyarrow", "polars", "fbgemm-gpu-cpu", "torchrec")


def facts() -> dict[str, str]:
    """Return what the machine is: processor, CPUs in use, memory, accelerators (once torch is imported), system."""
    found = {
        "processor": _processor(),
        "CPUs": str(cpus()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found["threads"] = str(torch.get_num_threads())
        if torch.cuda.is_available():
            names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
            found["accelerators"] = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    found["system"] = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return found


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that results depend on, and of every plugin in use."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    plugins = {info.name: info.origin for info in host().plugins if not info.error}
    return {**found, "plugins": ", ".join(f"{name} ({origin})" for name, origin in plugins.items())}


def line() -> str:
    """Return the machine in one line: "AMD EPYC, 2 CPUs, 24 GiB memory, Linux x86_64, Python 3.11.7, torch 2.13.0"."""
    found = facts()
    parts = [found["processor"], f"{found['CPUs']} CPUs", f"{found['memory']} memory", found.get("accelerators", "")]
    return ", ".join([*filter(None, parts), found["system"], f"torch {versions().get('torch', 'none')}"])


def cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory() -> int:
    """Return the most memory this process has held at once, in bytes.

    `getrusage` alone would not do on Linux: what it says of a process begins at the peak of the one that started it.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        lines = []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, bytes there and KiB elsewhere
    return found[0] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
