"""What a measured number depends on: the machine, its threads and load, the versions, the commit, and the command."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["installed", "machine", "memory_mb", "provenance"]

PACKAGES = ("onedva", "numpy", "av", "torch", "onnxruntime", "onnxruntime-gpu", "openvino")


def installed(package: str) -> str | None:
    """The version of an installed distribution, or None; nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def memory_mb() -> tuple[float, float]:
    """Resident memory of this process in MB (10⁶ bytes): now, and at its highest."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # no /proc on this system: the highest is an upper bound of now
        return peak / 1e6, peak / 1e6
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, peak / 1e6


def machine() -> dict[str, Any]:
    """The CPU, the cores this process may use, memory, operating system and Python."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "cores": cores,
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def provenance(*, threads: int | None) -> dict[str, Any]:
    """The record that goes beside every measurement, ready for JSON.

    threads: what the backend was given, None for its default.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["onedva", *sys.argv[1:]]),
        **machine(),
        "threads": threads,
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
        "commit": _commit(),
    }


def _cpu_model() -> str:
    """The CPU's name as the kernel has it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout this runs from, "+changes" where files differ; None for an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return f"{head}+changes" if _git(root, "status", "--porcelain") else head
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
