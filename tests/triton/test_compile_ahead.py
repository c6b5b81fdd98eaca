"""The kernels of a run on a device are compiled where there is none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
CALL = """
import sys, pathlib
sys.path.insert(0, "benchmarks")
import compile_ahead
compile_ahead.work(pathlib.Path(sys.argv[1]), 90, (sys.argv[2],), *map(int, sys.argv[3:]))
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler for the launchers")
def test_some_of_the_gpu_tests(tmp_path):
    command = [sys.executable, "-c", CALL, str(tmp_path / "cache"), "tests", "41", "240"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr[-3000:]
    made = {cubin.stem for cubin in (tmp_path / "cache").glob("*/*.cubin")}
    assert {"product_kernel", "cheap_kernel"} <= made
