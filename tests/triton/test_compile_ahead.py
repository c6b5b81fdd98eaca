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
@pytest.mark.parametrize(
    "what, part, parts, expected",
    [
        ("tests", 41, 240, {"product_kernel", "cheap_kernel"}),
        ("check", -1, 1, {"empty_kernel", "depthwise_kernel", "product_kernel"}),  # the part ``host``
    ],
)
def test_some_of_a_run(what, part, parts, expected, tmp_path):
    command = [sys.executable, "-c", CALL, str(tmp_path / "cache"), what, str(part), str(parts)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr[-3000:]
    made = {cubin.stem for cubin in (tmp_path / "cache").glob("*/*.cubin")}
    assert expected <= made
