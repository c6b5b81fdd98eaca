"""The machine and the software of a run, which a result must name."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

from ..backends import native
from ..dispatch import BACKENDS

PACKAGE = Path(__file__).resolve().parents[1]
ENGINES = {name: name for name in ("onnxruntime", "openvino", "ncnn", "executorch")}  # import name: distribution
CACHES = {1: 32 << 10, 2: 1 << 20, 3: 16 << 20}  # bytes, where the system does not say


class Unavailable(Exception):
    """Says why a baseline cannot run here, and what to do about it."""


def need(module: str, extra: str = "bench", command: str | None = None) -> None:
    """Raises ``Unavailable`` with the command that installs it where an optional package is missing."""
    if importlib.util.find_spec(module) is None:
        command = command or f'pip install "ghost-ops[{extra}]"'
        raise Unavailable(f"{module} is not installed: {command}")


def version_of(distribution: str) -> str | None:
    """The version of an installed distribution; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def own_version() -> str:
    return version_of("ghost-ops") or "not installed (run from its sources)"


def commit() -> str | None:
    """The git commit of the sources, with ``-dirty`` where they differ from it; None outside of a checkout."""
    root = PACKAGE.parent
    if not (root / ".git").exists() or not (root / "csrc").is_dir():
        return None
    try:
        git = lambda *args: subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True)
        changed = git("status", "--porcelain", "--untracked-files=no").stdout.strip()
        return git("rev-parse", "--short=12", "HEAD").stdout.strip() + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def cores() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_bytes(level: int) -> int:
    """Size of the data cache of this level that one core sees.

    py-cpuinfo has no such number: it adds up the second level over all cores, and takes the third from /proc/cpuinfo.
    """
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if (index / "type").read_text().strip() == "Instruction" or int((index / "level").read_text()) != level:
                continue
            number, unit = re.fullmatch(r"(\d+)([KMG]?)", (index / "size").read_text().strip()).groups()
        except (OSError, AttributeError, ValueError):
            continue
        return int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]
    return CACHES[level]


def describe() -> dict[str, object]:
    """Everything that a result has to name, ready for JSON."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "cores": cores(),
        "caches": {f"L{level}": cache_bytes(level) for level in CACHES},
        "ghost_ops": own_version(),
        "commit": commit(),
        "isa": native.isa(),
        "isas": list(native.isas()),
        "backends": {name: backend.state() for name, backend in BACKENDS.items()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: version_of(name) for name in ("timm", "triton", *ENGINES.values())},
        },
    }
