"""Runs the tests of every tool, each file in a process of its own, since their libraries do not all bear each other.

    python -m tests.toolchains.run [log]

Prints versions and results, writes them to the log, and fails where a tool is missing or a test fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

TOOLS = (
    "torch", "onnx", "onnxscript", "onnxruntime", "openvino", "executorch", "nncf", "torchao", "pnnx", "coremltools",
)  # fmt: skip
FOLDER = Path(__file__).resolve().parent


def main(log: str | None = None) -> int:
    missing = [tool for tool in TOOLS if not _version(tool)]
    if missing:
        print(f"not installed: {', '.join(missing)}")
        return 1
    commit = subprocess.run(["git", "log", "-1", "--format=commit %h"], cwd=FOLDER, capture_output=True, text=True)
    lines = [commit.stdout.strip(), ", ".join(f"{tool} {_version(tool)}" for tool in TOOLS)]
    print(*lines, sep="\n", flush=True)
    failed = False
    for file in sorted(FOLDER.glob("test_*.py")):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
        done = subprocess.run(
            command, cwd=FOLDER.parents[1], capture_output=True, text=True, check=False,
            env={**os.environ, "GHOST_OPS_EVERY_TOOLCHAIN": "1"},
        )  # fmt: skip
        failed |= done.returncode != 0
        result = next(iter(done.stdout.strip().splitlines()[::-1]), "") or f"ended with {done.returncode}"
        lines.append(f"{file.name}: {result.strip('= ')}")
        print(lines[-1], flush=True)
        if done.returncode:
            print(done.stdout, done.stderr, sep="\n", flush=True)
    if log is not None:
        Path(log).write_text("\n".join(lines) + "\n")
    return int(failed)


def _version(tool: str) -> str | None:
    try:
        return metadata.version(tool)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
