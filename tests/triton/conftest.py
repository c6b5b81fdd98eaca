"""Triton reads TRITON_INTERPRET when it is imported: interpreted kernels and compiled ones need a process each.

Without it the tests here compile kernels, and ``test_interpreter.py`` runs those of ``interpreted/`` in processes of
their own; ``TRITON_INTERPRET=1 pytest tests/triton/interpreted`` runs these alone.
"""

from __future__ import annotations

import importlib.util
import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None
collect_ignore = [] if INTERPRETED else ["interpreted"]
if INTERPRETED or not HAS_TRITON:
    collect_ignore += ["test_compiled.py", "test_static_speed.py"]
