"""Memory whose neighbours must not be touched: tensors, and all that torch and the kernels take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import guard_pages

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory):
    return os.environ | guard_pages.preloaded(tmp_path_factory.mktemp("guard")) | {"OMP_NUM_THREADS": "1"}


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_every_operator(preloaded):
    """Forward and backward: arguments, results and the memory that kernels work in."""
    ran = run(preloaded, "-m", "tests.ops.guard_pages", "every operator")
    assert ran.returncode == 0, f"exit status {ran.returncode}\n{ran.stderr[-2000:]}"


TOUCH = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.free.argtypes = [ctypes.c_void_p]
size, kind = 4096 - 64, sys.argv[1]
for i in range(64):
    p = ctypes.c_void_p()
    assert libc.posix_memalign(ctypes.byref(p), 64, size) == 0
    at_end = p.value % 4096 != 0
    ctypes.memset(p, 1, size)
    beside = p.value + (size if at_end else -1)
    if kind == "read" and at_end:
        ctypes.c_char.from_address(beside).value
    if kind in ("past", "before") and at_end == (kind == "past"):
        ctypes.memset(beside, 1, 1)
    if kind == "gap":
        ctypes.memset(p.value + (-1 if at_end else size), 1, 1)
    libc.free(p)
    if kind == "freed":
        ctypes.c_char.from_address(p.value).value
"""


@pytest.mark.parametrize("kind, status", [("nothing", 0), ("past", -11), ("before", -11), ("read", -11), ("freed", -11),
                                          ("gap", -6)])  # fmt: skip
def test_what_touches_a_neighbour_ends(preloaded, kind, status):
    assert run(preloaded, "-c", TOUCH, kind).returncode == status
