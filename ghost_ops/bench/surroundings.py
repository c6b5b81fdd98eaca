"""What a maintainer asks for when something is wrong: build, compiler, threads, environment, system, GPUs."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
from pathlib import Path

import torch

from ..backends import native

# Prefixes of environment variables that change what runs or how fast.
VARIABLES = (
    "GHOST_OPS_", "OMP_", "GOMP_", "KMP_", "MKL_", "ONEDNN_", "DNNL_", "ATEN_", "PYTORCH_", "TORCH", "TRITON_", "CUDA_",
    "NVIDIA_", "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "OPENBLAS_",
)  # fmt: skip
SECRET = re.compile("TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
CPU_LIMIT, MEMORY_LIMIT = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/memory.max")


def describe() -> dict[str, object]:
    """All of it, ready for JSON, without names of the user's folders."""
    return {
        "build": build(),
        "threads": threads(),
        "environment": environment(),
        "host": host(),
        "torch": of_torch(),
        "gpus": gpus(),
    }


def build() -> dict[str, object]:
    """The compiled library: whether it is loaded, its compiler and its digest; empty where there is none."""
    if not native.LIBRARY.is_file():
        return {}
    content = native.LIBRARY.read_bytes()
    compilers = {
        text.decode(errors="replace") for text in re.findall(rb"(?:GCC: \(|clang version )[ -~]{3,80}", content)
    }
    return {
        "library": native.LIBRARY.name,
        "loaded": native.available(),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest()[:16],
        "compiler": ", ".join(sorted(compilers)) or "unknown",
    }


def threads() -> dict[str, object]:
    """How many threads PyTorch uses, and the limit of a container."""
    found: dict[str, object] = {"intra_op": torch.get_num_threads(), "inter_op": torch.get_num_interop_threads()}
    quota = _limit(CPU_LIMIT)
    if quota and " " in quota and not quota.startswith("max"):
        share, period = map(int, quota.split())
        found["cpu_limit"] = round(share / period, 2)
    parallel = torch.__config__.parallel_info()
    found["library"] = next((line.strip() for line in parallel.splitlines() if line.startswith("OpenMP")), "unknown")
    return found


def environment() -> dict[str, str]:
    """The variables that are set, with ``~`` for the user's folder and nothing that may be a secret."""
    home = str(Path.home())
    return {
        name: "(hidden)" if SECRET.search(name) else value.replace(home, "~") if len(home) > 1 else value
        for name, value in sorted(os.environ.items())
        if name.startswith(VARIABLES)
    }


def host() -> dict[str, object]:
    """Kernel, C library and memory."""
    found: dict[str, object] = {"kernel": platform.platform(), "libc": " ".join(platform.libc_ver()).strip()}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_mib"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    limit = _limit(MEMORY_LIMIT)
    if limit and limit.isdigit():
        found["memory_limit_mib"] = int(limit) >> 20
    return found


def of_torch() -> dict[str, object]:
    """How PyTorch was built."""
    return {
        "git": (torch.version.git_version or "")[:12],
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": torch.backends.mkldnn.is_available(),
    }


def gpus() -> dict[str, object]:
    """The CUDA driver's version, and each device; no device where PyTorch sees none."""
    found: dict[str, object] = {"driver": driver(), "devices": []}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            found["devices"].append({
                "name": device.name,
                "capability": f"{device.major}.{device.minor}",
                "memory_mib": device.total_memory >> 20,
                "multiprocessors": device.multi_processor_count,
            })  # fmt: skip
    return found


def driver() -> str | None:
    """The version of NVIDIA's driver, and of the CUDA that it brings; None where there is none."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        text = ""
    version, cuda = re.search(r"(\d+\.\d+(?:\.\d+)?)", text), ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(cuda))
    except OSError:
        return version and version.group(1)
    brings = f"CUDA {cuda.value // 1000}.{cuda.value % 1000 // 10}"
    return f"{version.group(1)} ({brings})" if version else brings


def _limit(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
