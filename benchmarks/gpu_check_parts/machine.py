"""The machine that a run was on."""

from __future__ import annotations

import shutil
import subprocess

import torch

from ghost_ops.bench import machine
from ghost_ops.bench.gpu import Device

from .runner import Report


def describe(settings: dict, report: Report) -> dict:
    """Device, driver, versions, commit, host, and the bandwidth of a copy on the device, bytes read and written."""
    if not settings["dry"] and not torch.cuda.is_available():
        raise RuntimeError("no CUDA device is there; --dry-run shows on the CPU that the check works")
    device, found = Device(settings["dry"]), machine.describe()
    found["commit"] = settings["commit"] or found["commit"]
    found |= {"gpu": device.label, "cuda": torch.version.cuda, "driver": None if device.dry else _driver()}
    if not device.dry:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "capability": [properties.major, properties.minor],
            "gpu_memory": properties.total_memory,
            "gpus": torch.cuda.device_count(),
        }
    return found | {"copy_bytes_per_second": device.bandwidth()}


def _driver() -> str | None:
    """The driver's version; None where nvidia-smi is not found or does not say."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return None
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True).stdout.split()
    return said[0] if said else None
