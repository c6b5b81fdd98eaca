"""The GPU tests that no other part has done, and a memory check where compute-sanitizer is."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from . import time_limit
from .runner import Report, Skipped, Wrong

ROOT = Path(__file__).resolve().parents[2]
IN_ORDER_OF_WORTH = "running launches graphs operators layers cuda".split()
FILES = tuple(f"tests/gpu/test_{name}.py" for name in IN_ORDER_OF_WORTH)
DONE_BEFORE = ("tests/gpu/test_operators.py::test_drawn",)  # the part ``operators``
IN_A_DRY_RUN = ("tests/gpu/test_running.py",)
SECONDS = 60  # for one test
MEMORY = 16 << 30  # bytes of the device for each process of tests
MOST_PROCESSES = 8


def tests(settings: dict, report: Report) -> dict:
    """The files of ``tests/gpu``, in several processes where pytest-xdist is; a test that hangs ends only its own."""
    chosen = IN_A_DRY_RUN if settings["dry"] else (*FILES, "-m", "gpu")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu_check_parts.time_limit", *chosen]
    command += [f"--deselect={test}" for test in DONE_BEFORE]
    if not settings["dry"] and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(_processes()), "--dist", "load"]
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "tests.jsonl"
        told.touch()
        environment = os.environ | {time_limit.TOLD: str(told), time_limit.SECONDS: str(SECONDS)}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
        if settings["dry"]:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        with (Path(folder) / "output").open("w+") as output:
            child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
            while child.poll() is None:
                time.sleep(0.5)
                report(_figures(told))
            output.seek(0)
            tail = output.read()[-1500:]
        found = _figures(told)
    report(found)
    if found["failed"] or child.returncode:
        raise Wrong("; ".join(found["failed"]) or f"pytest ended with exit code {child.returncode}: {tail}")
    return found


def _processes() -> int:
    import torch

    memory = torch.cuda.get_device_properties(0).total_memory
    return max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) // 2, memory // MEMORY))


def _figures(told: Path) -> dict:
    """What the tests that have ended came to."""
    rows = [json.loads(line) for line in told.read_text().splitlines() if line.endswith("}")]
    failed = {row["test"]: row["reason"] for row in rows if row["outcome"] == "failed"}
    slow = sorted(((row["seconds"], row["test"]) for row in rows), reverse=True)[:5]
    return {
        "passed": sum(row["outcome"] == "passed" and row["when"] == "call" for row in rows),
        "failed": [f"{test}: {why}" for test, why in failed.items()],
        "skipped": dict(Counter(row["reason"] for row in rows if row["outcome"] == "skipped")),
        "slowest": [[test, seconds] for seconds, test in slow],
    }


def sanitizer(settings: dict, report: Report) -> dict:
    """compute-sanitizer's memcheck over a few calls of every operator."""
    if settings["dry"]:
        raise Skipped("a dry run has no device")
    if (tool := shutil.which("compute-sanitizer")) is None:
        raise Skipped("compute-sanitizer was not found: memory was not checked")
    command = [tool, "--tool", "memcheck", "--error-exitcode", "1", sys.executable, "-m", "tests.gpu.sanitize"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    report({"output": (done.stdout + done.stderr)[-2000:]})
    if done.returncode:
        raise Wrong(f"compute-sanitizer ended with exit code {done.returncode}")
    return {"output": done.stdout.strip()[-200:]}
