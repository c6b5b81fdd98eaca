"""Every kernel in Triton's interpreter: the tests of ``interpreted/``, in processes of their own."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EVERY = os.environ.get("GHOST_OPS_EVERY_INTERPRETED") == "1"
ONLY_THERE = {"test_graphed_blocks"}  # takes a minute and a half: in `make interpreted` only
FILES = sorted((Path(__file__).parent / "interpreted").glob("test_*.py"))
FILES = [file for file in FILES if EVERY or file.stem not in ONLY_THERE]
GROUPS = [[file] for file in FILES] if EVERY else [FILES[i::5] for i in range(5)]  # a process takes seconds to start


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("files", GROUPS, ids=[" ".join(file.stem for file in files) for files in GROUPS])
def test_interpreted(files):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "GHOST_OPS_BACKEND": "reference"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and "skipped" not in done.stdout, done.stdout
